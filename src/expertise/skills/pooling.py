"""The mean of a row's hidden states so far, kept beside a key-value cache."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from expertise.errors import SkillError


class RunningMean:
    """Means over each row up to each token: a context for a whole sequence in which no token sees the future.

    With a key-value cache the mean goes on from what earlier calls with the same cache saw, so a text read
    token by token gets the same contexts as one read at once.
    """

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()

    def __call__(self, hidden: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        """The means `[rows, tokens, D]`, float32.

        Args:
            hidden: `[rows, tokens, D]`.
            mask: `[rows, at least tokens]`, 0 for padding; None: no padding.
            cache: the call's key-value cache, or None.

        Raises:
            SkillError: the cache holds tokens that were not seen here.
        """
        hidden = hidden.float()
        counted = hidden.new_ones(hidden.shape[:2])
        if mask is not None and mask.ndim == 2:
            counted = mask[:, -hidden.shape[1] :].to(hidden.dtype)
        total, count = (hidden * counted[..., None]).cumsum(1), counted.cumsum(1)
        if cache is not None:
            if _length(cache):
                total, count = self._continued(cache, total, count)
            else:
                self._follow(cache)
            self._seen[cache] = (total[:, -1].detach(), count[:, -1].detach())
        return total / count.clamp(min=1)[..., None]

    def _continued(self, cache: Any, total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        before = self._seen.get(cache)
        if before is None or len(before[0]) != len(total):
            raise SkillError("the pooled context needs a cache that this model filled itself, row for row")
        return total + before[0][:, None], count + before[1][:, None]

    def _follow(self, cache: Any) -> None:
        """Beam search moves the rows of a cache: ours move with them."""
        reorder = getattr(cache, "reorder_cache", None)
        if reorder is None or "reorder_cache" in vars(cache):
            return

        def both(beams: Tensor) -> None:
            reorder(beams)
            total, count = self._seen[cache]
            self._seen[cache] = (
                total.index_select(0, beams.to(total.device)),
                count.index_select(0, beams.to(count.device)),
            )

        cache.reorder_cache = both


def _length(cache: Any) -> int:
    length = getattr(cache, "length", None)
    return int(length if length is not None else cache.get_seq_length())
