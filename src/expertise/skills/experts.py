"""Stacked experts with skills: each grouped product becomes `W_e x + sum of alpha_i s_i B_ie A_ie x`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.dispatch.grouped import grouped
from expertise.mixture.grouped_linear import grouped_linear
from expertise.mixture.parts.base import Parts
from expertise.mixture.parts.swiglu import SwiGLUExperts, gated_silu
from expertise.mixture.routers.base import Router
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int
from expertise.skills.adapted import Slot
from expertise.skills.joined import of_ranks, spans
from expertise.skills.routing import ask
from expertise.skills.skill import Factors
from expertise.skills.targets import stacks_of

if TYPE_CHECKING:
    from expertise.skills.composition import Composition


def _missing(width: int, dtype: torch.dtype) -> int:
    """How many columns are missing for rows of whole 16 bytes, which `grouped_mm` wants."""
    return -width % max(1, 16 // dtype.itemsize)


class StackedSkills(nn.Module):
    """The skills on one stack of weights, joined along the rank: `lora_A [E, R, in]`, `lora_B [E, out, R]`.

    Args:
        factors: skill number → factors with a leading E.
        trainable: whether they learn.
    """

    owner: Tensor
    scaling: Tensor

    def __init__(self, factors: Mapping[int, Factors], trainable: bool) -> None:
        super().__init__()
        self.skills = tuple(factors)
        self.ranks = tuple(f.rank for f in factors.values())
        self.scalings = tuple(f.scaling for f in factors.values())
        all_factors = list(factors.values())
        down = torch.cat([f.A.detach() for f in all_factors], dim=1)
        up = torch.cat([f.B.detach() for f in all_factors], dim=2)
        missing = _missing(down.shape[1], down.dtype)
        self.lora_A = nn.Parameter(F.pad(down, (0, 0, 0, missing)), requires_grad=trainable)
        self.lora_B = nn.Parameter(F.pad(up, (0, missing)), requires_grad=trainable)
        owner, scaling = of_ranks(all_factors, missing)
        skills = torch.tensor(self.skills, device=owner.device)
        self.register_buffer("owner", skills[owner], persistent=False)
        self.register_buffer("scaling", scaling, persistent=False)

    def onto(
        self,
        y: Float[Tensor, "rows out_features"],
        rows: Float[Tensor, "rows in_features"],
        alpha: Float[Tensor, "rows_or_one skills"],
        offsets: Int[Tensor, " experts"],
    ) -> Float[Tensor, "rows out_features"]:
        """A grouped product y, and what the skills add to it.

        Args:
            y: the product; written over where no gradient is wanted.
            rows: sorted by expert.
            alpha: a row for each row, or one for all.
            offsets: where each expert's rows end.
        """
        low = grouped_linear(rows, self.lora_A, offsets) * self._weights(alpha)
        added = grouped_linear(low, self.lora_B, offsets)
        return y + added if torch.is_grad_enabled() else y.add_(added)

    def one(
        self, expert: int, x: Float[Tensor, "tokens in_features"], alpha: Float[Tensor, "rows_or_one skills"]
    ) -> Float[Tensor, "tokens out_features"]:
        """What the skills add to a single expert's product."""
        return F.linear(F.linear(x, self.lora_A[expert]) * self._weights(alpha), self.lora_B[expert])

    def _weights(self, alpha: Tensor) -> Tensor:
        return (alpha.index_select(1, self.owner) * self.scaling).to(self.lora_A.dtype)

    def slots(self) -> Iterator[Slot]:
        """The factors of each skill."""
        for skill, span, scaling in zip(self.skills, spans(self.ranks), self.scalings, strict=True):
            yield Slot(skill, Factors(A=self.lora_A[:, span], B=self.lora_B[:, :, span], scaling=scaling))


class AdaptedExperts(Parts):
    """Gated experts in two stacks, with skills on either or both.

    Which weights a token's skills have travels with the token through the dispatch, as extra columns behind
    it, so every dispatch serves and gradients reach whoever made the weights.

    Args:
        layer: the frozen experts, ours or those of transformers.
        stacks: the names of its two stacks, in the order in which they are applied.
        gate: from the first product to the input of the second.
        skills: for each of the two, the groups of skills on it.
        composition: who knows alpha.
        router: this layer's own, fed with the tokens; None: the composition's weights.
    """

    def __init__(
        self,
        layer: nn.Module,
        stacks: tuple[str, str],
        gate: Callable[[Tensor], Tensor],
        skills: tuple[Sequence[StackedSkills], Sequence[StackedSkills]],
        composition: Composition,
        router: Router | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.stacks = stacks
        self._gate = gate
        first, second = (getattr(layer, name) for name in stacks)
        self.num_parts, self.out_features = first.shape[0], second.shape[1]
        self.in_features = first.shape[2]
        self.first, self.second = (nn.ModuleList(groups) for groups in skills)
        self.router = router
        self._composition = (composition,)

    def alpha(self, x: Float[Tensor, "tokens in_features"]) -> Tensor | None:
        """The skills' weights `[tokens, K]`; None: all are zero."""
        composition = self._composition[0]
        if self.router is not None and not composition.is_given:
            own = ask(self.router, x)
            composition.note(tuple(range(len(composition.names))), own)
            return own.weights()
        routes = composition.routes(x.shape[:1])
        return None if routes is None else routes.weights()

    def carry(self, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens carried"]:
        """The tokens with their weights of skills behind them, unless these are zero or equal for all."""
        alpha = self.alpha(x)
        if alpha is None or self._composition[0].constant is not None:
            return x
        # Filled up to whole strides, so that the part that holds x can be multiplied where it lies.
        return torch.cat([x, F.pad(alpha.to(x.dtype), (0, _missing(alpha.shape[1], x.dtype)))], dim=1)

    def grouped(
        self, rows: Float[Tensor, "rows carried"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        """Two grouped products, each with its skills."""
        first, second = (getattr(self.layer, name) for name in self.stacks)
        x, alpha = self._split(rows)
        hidden = grouped_linear(x, first, offsets)
        if alpha is not None:
            for group in _groups(self.first):
                hidden = group.onto(hidden, x, alpha, offsets)
        hidden = self._gate(hidden)
        y = grouped_linear(hidden, second, offsets)
        if alpha is not None:
            for group in _groups(self.second):
                y = group.onto(y, hidden, alpha, offsets)
        return y

    def one(self, part: int, x: Float[Tensor, "tokens carried"]) -> Float[Tensor, "tokens out_features"]:
        """A single expert with its skills."""
        first, second = (getattr(self.layer, name)[part] for name in self.stacks)
        tokens, alpha = self._split(x)
        hidden = F.linear(tokens, first)
        if alpha is not None:
            for group in _groups(self.first):
                hidden = hidden + group.one(part, tokens, alpha)
        hidden = self._gate(hidden)
        y = F.linear(hidden, second)
        if alpha is not None:
            for group in _groups(self.second):
                y = y + group.one(part, hidden, alpha)
        return y

    def dense(
        self, x: Float[Tensor, "tokens carried"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """Every expert for every token, the base's part as `SwiGLUExperts.dense` computes it."""
        first, second = (getattr(self.layer, name) for name in self.stacks)
        tokens, alpha = self._split(x)
        hidden = F.linear(tokens, first.flatten(0, 1)).view(-1, *first.shape[:2])
        experts = range(self.num_parts)
        if alpha is not None:
            for group in _groups(self.first):
                hidden = hidden + torch.stack([group.one(e, tokens, alpha) for e in experts], dim=1)
        hidden = self._gate(hidden)
        hidden = hidden * gates.to(hidden.dtype).unsqueeze(-1)
        y = F.linear(hidden.flatten(1), second.transpose(0, 1).flatten(1))
        if alpha is not None:
            for group in _groups(self.second):
                y = y + torch.stack([group.one(e, hidden[:, e], alpha) for e in experts]).sum(0)
        return y

    def is_idle(self, carried: Tensor) -> bool:
        """Whether no skill has any weight in what `carry` returned."""
        return self._split(carried)[1] is None

    def reset_parameters(self) -> None:
        """Nothing is drawn anew: the experts are frozen, the skills belong to their library."""

    @property
    def device(self) -> torch.device:
        """Where the skills are."""
        return self.layer.get_parameter(self.stacks[0]).device

    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Name of the stack, and the factors of each skill on it."""
        for name, groups in zip(self.stacks, (self.first, self.second), strict=True):
            for group in _groups(groups):
                for slot in group.slots():
                    yield name, slot

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if rows.shape[1] == self.in_features:
            constant = self._composition[0].constant
            return rows, None if constant is None else constant[None]
        return rows[:, : self.in_features], rows[:, self.in_features :]


def _groups(modules: nn.ModuleList) -> Iterator[StackedSkills]:
    for module in modules:
        assert isinstance(module, StackedSkills)
        yield module


class ForeignExperts(nn.Module):
    """The experts module of a transformers model, with skills.

    Args:
        parts: its stacks and the skills on them.
    """

    def __init__(self, parts: AdaptedExperts) -> None:
        super().__init__()
        self.parts = parts

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens dim"],
        top_k_index: Int[Tensor, "tokens chosen"],
        top_k_weights: Float[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens dim"]:
        """As the module that it stands for; without skills at work it is that module."""
        carried = self.parts.carry(hidden_states)
        if self.parts.is_idle(carried):
            return self.parts.layer(hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
        # The dispatch reads ids and gates only: who scored the experts stays the model's own business.
        affinities = top_k_weights.new_empty(hidden_states.shape[0], self.parts.num_parts)
        # A router may say "no expert" by an id behind the last one, with weight 0: then any expert will do.
        part_ids = top_k_index.clamp(max=self.parts.num_parts - 1)
        routes = Routes(gates=top_k_weights, affinities=affinities, part_ids=part_ids)
        return grouped(carried, routes, self.parts).to(hidden_states.dtype)


def adapt_experts(
    layer: nn.Module,
    skills: tuple[Sequence[StackedSkills], Sequence[StackedSkills]],
    composition: Composition,
    router: Router | None,
) -> tuple[nn.Module, AdaptedExperts]:
    """What stands in the place of a module of stacked experts, and the parts inside it."""
    if isinstance(layer, SwiGLUExperts):
        parts = AdaptedExperts(layer, stacks_of(layer), gated_silu, skills, composition, router)
        return parts, parts
    gate: Callable[[Tensor], Tensor] = layer._apply_gate  # type: ignore[assignment]
    parts = AdaptedExperts(layer, stacks_of(layer), gate, skills, composition, router)
    return ForeignExperts(parts), parts
