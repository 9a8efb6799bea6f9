"""Pages for readers: each is one self-contained file, drawn from a typed record (`records.py`).

`render(record)` of `language_model`, `skills` and `policy` draws a page, a function of its record alone: the
same record gives the same bytes. `*_record.py` measure what the pages show.
"""
