"""Skills on language models: learnt on domains, composed on mixtures of them (PSEC, arXiv 2502.05932).

Reading order: `plan.py` (sizes) → `text.py` → `measure.py` → `ours.py`, `llama.py` (the two experiments) →
`page.py`.
"""
