"""Held-out numbers: bits per byte per domain, and what every part did meanwhile."""

from expertise.lm.evaluate.perplexity import DomainText, Evaluation, domain_texts, evaluate

__all__ = ["DomainText", "Evaluation", "domain_texts", "evaluate"]
