"""`Routes`: for each token, which parts it takes and with which weight.

Dimension letters used in this package: T tokens, D model width, F expert width, E parts, M slots of a token,
S chosen (token, part) pairs, R rows after sorting by part (R = S), r rank.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from expertise.shapes import Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routes:
    """The one record of "who did what"; made by routers, read by dispatches, losses, measures and pages.

    It is in token order; sorting by part is the dispatch's business. Sparse routes give each token M slots,
    of which its first `counts[t]` are used, the part with the greatest affinity first; unused slots hold
    part id -1 and gate 0. Dense routes (`part_ids is None`) have M = E: slot e belongs to part e.
    """

    gates: Float[Tensor, "tokens slots"]
    """Weight of each slot's part; any real number (a skill's weight may be negative)."""
    affinities: Float[Tensor, "tokens parts"]
    """Affinity of each token to every part before the choice: s_{i,t} of DeepSeekMoE, P of Dynamic MoE."""
    part_ids: Int[Tensor, "tokens slots"] | None = None
    """Chosen parts (int64), -1 in unused slots and nowhere else; None: every part, in order (dense)."""
    counts: Int[Tensor, " tokens"] | None = None
    """Parts per token (int64); None: every slot of every token is used."""
    logits: Float[Tensor, "tokens parts"] | None = None
    """What the affinities were made from; None where these are no probabilities that a router learns, so that
    no loss on the routes makes sense (hash, a context router without softmax, given weights)."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.affinities.shape[0]

    @property
    def num_parts(self) -> int:
        """E."""
        return self.affinities.shape[1]

    @property
    def num_slots(self) -> int:
        """M: the largest number of parts that a token can take here."""
        return self.gates.shape[1]

    @property
    def is_dense(self) -> bool:
        """Whether every token takes every part."""
        return self.part_ids is None

    @classmethod
    def dense(cls, gates: Float[Tensor, "tokens parts"]) -> Routes:
        """Routes that give every part to every token, with these weights.

        Args:
            gates: the weights, any real numbers; they also stand as affinities.
        """
        return cls(gates=gates, affinities=gates)

    def used(self) -> Bool[Tensor, "tokens slots"]:
        """Which slots hold a part."""
        if self.counts is None:
            return torch.ones_like(self.gates, dtype=torch.bool)
        slots = torch.arange(self.num_slots, device=self.gates.device)
        return slots < self.counts[:, None]

    def parts_per_token(self) -> Int[Tensor, " tokens"]:
        """How many parts each token takes, from 0 to M (0 only where a router lets a token take none)."""
        if self.counts is not None:
            return self.counts
        return torch.full((self.num_tokens,), self.num_slots, device=self.gates.device)

    def chosen(self) -> Bool[Tensor, "tokens parts"]:
        """Table of tokens by parts: true where the token takes the part."""
        if self.part_ids is None:
            return torch.ones_like(self.affinities, dtype=torch.bool)
        table = torch.zeros_like(self.affinities, dtype=torch.int32)
        # An unused slot adds 0 to column 0; parts of one token are distinct, so no entry exceeds 1.
        table.scatter_add_(1, self.part_ids.clamp(min=0), self.used().to(torch.int32))
        return table > 0

    def weights(self) -> Float[Tensor, "tokens parts"]:
        """The gates as a dense table, 0 where a token does not take a part; differentiable."""
        if self.part_ids is None:
            return self.gates
        table = torch.zeros_like(self.affinities, dtype=self.gates.dtype)
        return table.scatter_add(1, self.part_ids.clamp(min=0), self.gates * self.used())

    def select(self, tokens: Bool[Tensor, " tokens"]) -> Routes:
        """The record of these tokens alone."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Routes(**{k: v[tokens] if isinstance(v, Tensor) else v for k, v in fields.items()})

    def each(self, times: int) -> Routes:
        """The record in which every token stands `times` times in a row: one choice for a whole sequence."""
        if times == 1:
            return self
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Routes(
            **{k: v.repeat_interleave(times, 0) if isinstance(v, Tensor) else v for k, v in fields.items()}
        )

    def detached(self) -> Routes:
        """The same record without its graph, to keep or to move."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Routes(**{k: v.detach() if isinstance(v, Tensor) else v for k, v in fields.items()})
