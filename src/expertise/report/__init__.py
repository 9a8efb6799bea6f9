"""Pages for readers: each is one self-contained file, drawn from a typed record (`records.py`).

`language_model.render(record)` makes `report.html` of a language model, `skills.render` and `policy.render` the
pages of skills and policies; `*_record.py` measure what they draw. A page is a function of its record alone, and
the same record gives the same bytes.
"""
