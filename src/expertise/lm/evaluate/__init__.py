"""Evaluation on held-out text: bits per byte per domain, and the use of every part."""

from expertise.lm.evaluate.perplexity import DomainText, Evaluation, domain_texts, evaluate, in_words
from expertise.lm.evaluate.switches import Switches, switched

__all__ = ["DomainText", "Evaluation", "Switches", "domain_texts", "evaluate", "in_words", "switched"]
