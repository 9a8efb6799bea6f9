"""What a human sees: pages that are one self-contained file, drawn from a plain record of a run.

`language_model.render(record)` makes `report.html` of a language model. Nothing here knows a model or torch:
a page is a function of its record alone, and the same record gives the same bytes.
"""
