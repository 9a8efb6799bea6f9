"""Running mean of a row's hidden states, kept across calls with a key-value cache."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch import Tensor

from expertise.errors import SkillError
from expertise.skills.call import Call


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Sums over the tokens of each row of a cache."""

    total: Tensor
    """Sum of the hidden states, `[rows, D]`."""
    count: Tensor
    """Number of tokens, `[rows]`."""
    length: int = 0
    """Number of tokens in the cache."""


class RunningMean:
    """Mean of each row's hidden states up to each token: a context in which no token sees the future.

    With a key-value cache the mean goes on from what earlier calls with the same cache saw, so a text read
    token by token gets the same contexts as one read at once. Documents that stand side by side in a row each
    have a mean of their own.
    """

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[Any, _Seen] = weakref.WeakKeyDictionary()
        self._last: _Seen | None = None

    def __call__(self, hidden: Tensor, call: Call) -> Tensor:
        """The means, in float32 at least, of hidden states `[rows, tokens, D]`.

        Raises:
            SkillError: the cache holds tokens that were not seen here, or a shape is another one.
        """
        if hidden.ndim != 3:
            raise SkillError(f"the pooled context needs [rows, tokens, width], not {list(hidden.shape)}")
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        counted = _counted(hidden, call.mask)
        total, count = (hidden * counted[..., None]).cumsum(1), counted.cumsum(1)
        if call.documents is not None:
            total, count = (_of_documents(sums, call.documents) for sums in (total, count))
        before = self._before(call.cache, len(hidden))
        if before is not None:
            total, count = total + before.total[:, None], count + before.count[:, None]
        if hidden.shape[1]:
            self._last = _Seen(total[:, -1].detach(), count[:, -1].detach())
        return total / count.clamp(min=1)[..., None]

    def keep(self, cache: Any) -> None:
        """After a call: remember the sums for the next call with the same cache."""
        last, self._last = self._last, None
        if cache is not None and last is not None:
            self._seen[cache] = dataclasses.replace(last, length=_length(cache))
            self._follow(cache)

    def _before(self, cache: Any, num_rows: int) -> _Seen | None:
        if cache is None or not _length(cache):
            return None
        before = self._seen.get(cache)
        if before is None or len(before.total) != num_rows or before.length != _length(cache):
            raise SkillError("the pooled context needs a cache that this model filled itself, row for row")
        return before

    def _follow(self, cache: Any) -> None:
        """Reorder the sums whenever beam search reorders the rows of the cache."""
        if not hasattr(cache, "reorder_cache") or "reorder_cache" in vars(cache):
            return
        # A weak reference: a cache that refers to itself would wait for the garbage collector.
        found, reorder, seen = weakref.ref(cache), type(cache).reorder_cache, self._seen

        def both(beams: Tensor) -> None:
            own = found()
            reorder(own, beams)
            before = seen[own]
            total, count = (
                sums.index_select(0, beams.to(sums.device)) for sums in (before.total, before.count)
            )
            seen[own] = dataclasses.replace(before, total=total, count=count)

        cache.reorder_cache = both


def _counted(hidden: Tensor, mask: Any) -> Tensor:
    """1 for tokens, 0 for padding, `[rows, tokens]`."""
    if mask is None:
        return hidden.new_ones(hidden.shape[:2])
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] < hidden.shape[1]:
        raise SkillError("the pooled context needs an attention mask [rows, tokens], 0 for padding")
    return mask[:, mask.shape[1] - hidden.shape[1] :].to(hidden.dtype)


def _of_documents(sums: Tensor, documents: Tensor) -> Tensor:
    """Convert sums since the start of each row to sums since the start of each token's document."""
    tokens = torch.arange(documents.shape[1], device=documents.device)
    new = documents.diff(dim=1, prepend=documents[:, :1] - 1) != 0
    first = torch.where(new, tokens, 0).cummax(1).values
    ahead = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)
    return sums - ahead[torch.arange(len(sums), device=sums.device)[:, None], first]


def _length(cache: Any) -> int:
    length = getattr(cache, "length", None)
    return int(length if length is not None else cache.get_seq_length())
