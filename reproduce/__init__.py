"""Experiments of the papers, each a package: `python -m reproduce.NAME`; results in `docs/results`."""
