"""PSEC (arXiv 2502.05932) on simulators that install today: its scenarios, its baselines, one loop.

Reading order: `sizes.py` → `bench.py` (one seed: trainings, episodes, rows) → `policy_shift.py`, `safe.py`,
`dynamics.py`, `many_tasks.py`, `ours.py` (the scenarios) → `__main__.py`. Data and recipes are in `data`.
"""
