"""What bits per byte are computed on: the same bytes whatever the tokenizer, each token predicted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expertise.lm.data.prepare import Prepared
from expertise.lm.data.tokenizer import encode
from expertise.shapes import Int

IGNORED = -100
"""The target of padding, which `torch.nn.functional.cross_entropy` leaves out by default."""


@dataclass(frozen=True)
class EvaluationWindows:
    """Documents of one domain, cut into windows; all int64.

    With `nll` the sum of the negative log-likelihoods (nats) of all targets that are not ignored,
    `nll / ln 2 / num_bytes` is bits per byte.
    """

    tokens: Int[Tensor, "windows time"]
    """Ids that go in; the last window is padded with the end of text."""

    targets: Int[Tensor, "windows time"]
    """The id that follows each of them (an end of text counts too), or `IGNORED` for padding."""

    num_bytes: int
    """UTF-8 bytes of the text covered."""

    ids: Int[Tensor, " ids"]
    """The same tokens in one row, the first end of text included."""


def evaluation_windows(
    prepared: Prepared, split: str, domain: str, max_bytes: int, context: int
) -> EvaluationWindows:
    """Cut a domain's documents into windows in which every token but the very first is a target once.

    The documents come in stored order, each after an end of text. The one that reaches `max_bytes` is cut
    there, on a character boundary: so the bytes do not depend on the tokenizer.

    Args:
        prepared: text and tokenizer.
        split: `validation` or `test` (or `train`).
        domain: one of `prepared.domains`.
        max_bytes: how much text at most; 0 takes all.
        context: tokens per window.
    """
    texts = list(_first_bytes(prepared.documents(split, domain), max_bytes))
    end = np.array([prepared.end_of_text], dtype=np.int64)
    flat = np.concatenate([part for ids in encode(prepared.tokenizer, texts) for part in (end, ids)] or [end])
    num_windows = -(-(len(flat) - 1) // context)
    tokens = np.full(num_windows * context, prepared.end_of_text, dtype=np.int64)
    targets = np.full(num_windows * context, IGNORED, dtype=np.int64)
    tokens[: len(flat) - 1] = flat[:-1]
    targets[: len(flat) - 1] = flat[1:]
    return EvaluationWindows(
        tokens=torch.from_numpy(tokens).view(num_windows, context),
        targets=torch.from_numpy(targets).view(num_windows, context),
        num_bytes=sum(len(text.encode()) for text in texts),
        ids=torch.from_numpy(flat),
    )


def _first_bytes(texts: Iterator[str], max_bytes: int) -> Iterator[str]:
    left = max_bytes
    for text in texts:
        raw = text.encode()
        if max_bytes and len(raw) >= left:
            part = raw[:left].decode(errors="ignore")
            if part:
                yield part
            return
        yield text
        left -= len(raw)
