"""Stacked experts with skills: each grouped product becomes `W_e x + sum of alpha_i s_i B_ie A_ie x`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from expertise.mixture.dispatch.grouped import grouped
from expertise.mixture.grouped_linear import grouped_linear, missing_columns
from expertise.mixture.parts.base import Parts
from expertise.mixture.parts.low_rank import LowRankExperts
from expertise.mixture.parts.swiglu import SwiGLUExperts, gated_silu
from expertise.mixture.routers.base import Router
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int
from expertise.skills.adapted import Slot
from expertise.skills.joined import factors_of
from expertise.skills.routing import ask
from expertise.skills.targets import stacks_of

if TYPE_CHECKING:
    from expertise.skills.composition import Composition


class StackedSkills(NamedTuple):
    """Skills on one stack of weights."""

    columns: tuple[int, ...]
    """Numbers of the skills in the composition, ascending."""
    parts: LowRankExperts
    """Factors of the skills, joined along the rank."""

    def weigh(self, alpha: Float[Tensor, "rows_or_one carried"]) -> Float[Tensor, "rows_or_one all_ranks"]:
        """Weights of the ranks, from an alpha whose first K columns are the composition's skills."""
        number = len(self.columns)
        first = self.columns[-1] == number - 1
        return self.parts.weigh(alpha[:, :number] if first else alpha[:, self.columns])


class AdaptedExperts(Parts):
    """Gated experts in two stacks, with skills on either or both.

    Which weights a token's skills have travels with the token through the dispatch, as extra columns behind
    it, so every dispatch serves and gradients reach whoever made the weights.

    Args:
        layer: the frozen experts, ours or those of transformers.
        stacks: the names of its two stacks, in the order in which they are applied.
        gate: from the first product to the input of the second.
        skills: for each of the two, the groups of skills on it.
        composition: holds alpha.
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
        self.first, self.second = (nn.ModuleList(group.parts for group in groups) for groups in skills)
        self._groups = skills
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
        """Append the skills' weights to the tokens, unless these are zero or the same for all tokens."""
        alpha = self.alpha(x)
        if alpha is None or self._composition[0].constant is not None:
            return x
        # Padded so that strides fit the grouped product, which then reads x without a copy.
        return torch.cat([x, F.pad(alpha.to(x.dtype), (0, missing_columns(alpha.shape[1], x.dtype)))], dim=1)

    def grouped(
        self, rows: Float[Tensor, "rows carried"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        """Two grouped products, each with its skills added."""
        x, alpha = self._split(rows)
        # Without a graph nothing else refers to the product, so the sum is added in place.
        in_place = not torch.is_grad_enabled()

        def product(stage: int, x: Tensor) -> Tensor:
            y = grouped_linear(x, getattr(self.layer, self.stacks[stage]), offsets)
            if alpha is not None:
                for group in self._groups[stage]:
                    y = group.parts.onto(y, x, group.weigh(alpha), offsets, in_place)
            return y

        return product(1, self._gate(product(0, x)))

    @override
    def one(self, part: int, x: Float[Tensor, "tokens carried"]) -> Float[Tensor, "tokens out_features"]:
        tokens, alpha = self._split(x)
        hidden = F.linear(tokens, getattr(self.layer, self.stacks[0])[part])
        hidden = self._gate(hidden + self._of_expert(0, part, tokens, alpha))
        y = F.linear(hidden, getattr(self.layer, self.stacks[1])[part])
        return y + self._of_expert(1, part, hidden, alpha)

    def dense(
        self, x: Float[Tensor, "tokens carried"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """Compute every expert for every token; the base's part as in `SwiGLUExperts.dense`."""
        first, second = (getattr(self.layer, name) for name in self.stacks)
        tokens, alpha = self._split(x)
        hidden = F.linear(tokens, first.flatten(0, 1)).view(-1, *first.shape[:2])
        experts = range(self.num_parts)
        if alpha is not None:
            added = [self._of_expert(0, expert, tokens, alpha) for expert in experts]
            hidden = hidden + torch.stack(added, dim=1)
        hidden = self._gate(hidden)
        hidden = hidden * gates.to(hidden.dtype).unsqueeze(-1)
        y = F.linear(hidden.flatten(1), second.transpose(0, 1).flatten(1))
        if alpha is not None:
            added = [self._of_expert(1, expert, hidden[:, expert], alpha) for expert in experts]
            y = y + torch.stack(added).sum(0)
        return y

    def _of_expert(self, stage: int, expert: int, x: Tensor, alpha: Tensor | None) -> Tensor:
        """The sum over the skills on one expert's weight in the first or second stack."""
        total = x.new_zeros(x.shape[0], getattr(self.layer, self.stacks[stage]).shape[1])
        if alpha is not None:
            for group in self._groups[stage]:
                total = total + group.parts.of_expert(expert, x, group.weigh(alpha))
        return total

    def is_idle(self, carried: Tensor) -> bool:
        """True if every skill's weight is zero in the output of `carry`."""
        return self._split(carried)[1] is None

    def reset_parameters(self) -> None:
        """Do nothing: the experts are frozen, and the skills keep their weights."""

    @property
    def device(self) -> torch.device:
        """Device of the skills."""
        return self.layer.get_parameter(self.stacks[0]).device

    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Name of each stack with the factors of each skill on it."""
        for name, groups in zip(self.stacks, self._groups, strict=True):
            for group in groups:
                for skill, factors in zip(group.columns, factors_of(group.parts), strict=True):
                    yield name, Slot(skill, factors)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if rows.shape[1] == self.in_features:
            constant = self._composition[0].constant
            return rows, None if constant is None else constant[None]
        return rows[:, : self.in_features], rows[:, self.in_features :]


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
        """Replace the module's forward; without active skills it calls the original module."""
        carried = self.parts.carry(hidden_states)
        if self.parts.is_idle(carried):
            return self.parts.layer(hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
        # The dispatch reads only ids and gates; the model's router keeps its own scores.
        affinities = top_k_weights.new_empty(hidden_states.shape[0], self.parts.num_parts)
        # A router may mark an unused slot by an id past the last expert; with weight 0 any expert will do.
        part_ids = top_k_index.clamp(max=self.parts.num_parts - 1)
        routes = Routes(gates=top_k_weights, affinities=affinities, part_ids=part_ids)
        return grouped(carried, routes, self.parts).to(hidden_states.dtype)


def adapt_experts(
    layer: nn.Module,
    skills: tuple[Sequence[StackedSkills], Sequence[StackedSkills]],
    composition: Composition,
    router: Router | None,
) -> tuple[nn.Module, AdaptedExperts]:
    """The module that replaces one of stacked experts, and the parts inside it."""
    if isinstance(layer, SwiGLUExperts):
        parts = AdaptedExperts(layer, stacks_of(layer), gated_silu, skills, composition, router)
        return parts, parts
    gate: Callable[[Tensor], Tensor] = layer._apply_gate  # type: ignore[assignment]
    parts = AdaptedExperts(layer, stacks_of(layer), gate, skills, composition, router)
    return ForeignExperts(parts), parts
