"""What recipes say of routers. No torch here: a recipe is validated before torch is imported."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, get_args, runtime_checkable

from annotated_types import Ge, Gt, Le

from expertise.errors import RecipeError

if TYPE_CHECKING:
    from expertise.mixture.routers.base import Router
    from expertise.mixture.routers.context import Context
    from expertise.mixture.routers.hash import Hash
    from expertise.mixture.routers.top_k import TopK
    from expertise.mixture.routers.top_p import TopP

ContextKind = Literal["nothing", "token ids", "a context vector"]
"""What a router wants as `context`."""

Scale = float | Literal["mean-one"]
"""A constant on the routed gates; "mean-one": normalise over the chosen parts, then times their number."""

RoutingDtype = Literal["float32", "activation"]
"""Where scores are computed: at least float32, or in x's own dtype as the released codes do."""

ScoreFunction = Literal["softmax", "sigmoid"]
"""How logits become scores; sigmoid scores (DeepSeek-V3) are raw gates that do not compete."""

Squash = Literal["softmax", "sigmoid", "none"]
"""What bounds the weights: a softmax (they sum to 1), a sigmoid (each in 0 to 1), or nothing (any sign)."""


@runtime_checkable
class RouterConfig(Protocol):
    """What every router's `Config` answers; it holds what a recipe says, not the model's widths."""

    context_kind: ClassVar[ContextKind]
    """What the router wants beside the tokens."""

    @property
    def name(self) -> str:
        """The router's name in the registry."""

    def check(self, num_parts: int) -> None:
        """Refuse, by a RecipeError, what cannot be with so many parts."""

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Router:
        """The router for tokens of width `dim` over `num_parts` parts; some need the vocabulary's size."""

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers, without building anything."""

    def num_active_parts(self, num_parts: int) -> float:
        """Parts that a token takes, known or assumed."""

    def has_logits(self) -> bool:
        """Whether its routes carry logits and probabilities, which every loss on the routes needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Fields that the configurations of all learned routers share."""

    context_kind: ClassVar[ContextKind] = "nothing"
    """What the router wants beside the tokens."""
    normalize: bool = False
    """Divide the gates by their sum over the chosen parts."""
    scale: Scale = 1.0
    """Constant on the gates, or "mean-one"."""
    scores: ScoreFunction = "softmax"
    """How logits become scores: "softmax" over the routed parts, or "sigmoid" of each."""
    bias_step: Annotated[float, Ge(0)] = 0.0
    """Loss-free balancing: how far a step moves each part's bias in the choice; 0: no bias."""
    routing_dtype: RoutingDtype = "float32"
    """Compute scores in float32, or in the "activation"'s dtype."""

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            if self.scale not in get_args(get_args(Scale)[1]):
                raise RecipeError(f"a router's scale is a number or 'mean-one', not {self.scale!r}")
        elif not math.isfinite(self.scale):
            raise RecipeError(f"a router's scale must be finite, not {self.scale}")
        for name, known in (("routing_dtype", RoutingDtype), ("scores", ScoreFunction)):
            if getattr(self, name) not in get_args(known):
                raise RecipeError(
                    f"{name} is one of {', '.join(get_args(known))}, not {getattr(self, name)!r}"
                )
        if not (math.isfinite(self.bias_step) and self.bias_step >= 0):
            raise RecipeError(f"a router's bias_step must be 0 or more, not {self.bias_step}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKConfig(GateOptions):
    """What a recipe says of a top-k router."""

    name: Literal["top_k"] = "top_k"
    """Which router."""
    k: Annotated[int, Ge(1)]
    """Parts per token."""

    def __post_init__(self) -> None:
        GateOptions.__post_init__(self)
        if self.k < 1:
            raise RecipeError(f"a router's k must be at least 1, not {self.k}")

    def check(self, num_parts: int) -> None:
        """Refuse more parts per token than there are."""
        if self.k > num_parts:
            raise RecipeError(f"a router's k ({self.k}) is larger than its number of parts ({num_parts})")

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> TopK:
        """The router for tokens of width `dim` over `num_parts` parts."""
        from expertise.mixture.routers.top_k import TopK

        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(GateOptions)}
        return TopK(dim, num_parts, self.k, **options)

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers."""
        return dim * num_parts

    def num_active_parts(self, num_parts: int) -> float:
        """Parts that a token takes, for counting activated parameters."""
        return float(min(self.k, num_parts))

    def has_logits(self) -> bool:
        """Yes."""
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopPConfig(GateOptions):
    """What a recipe says of a top-p router."""

    name: Literal["top_p"] = "top_p"
    """Which router."""
    p: Annotated[float, Gt(0), Le(1)]
    """Probability mass that the chosen parts must pass."""
    max_parts: Annotated[int, Ge(1)] | None = None
    """At most so many parts per token; left out: no cap."""
    assumed_parts: Annotated[float, Ge(1)] = 2.0
    """Parts per token that counts of activated parameters and FLOPs assume."""

    def __post_init__(self) -> None:
        GateOptions.__post_init__(self)
        if not 0.0 < self.p <= 1.0:
            raise RecipeError(f"a router's p must lie in (0, 1], not {self.p}")
        if self.max_parts is not None and self.max_parts < 1:
            raise RecipeError(f"a router's max_parts must be at least 1, not {self.max_parts}")
        if self.assumed_parts < 1:
            raise RecipeError(f"a router's assumed_parts must be at least 1, not {self.assumed_parts}")

    def check(self, num_parts: int) -> None:
        """Refuse a cap above the number of parts."""
        if self.max_parts is not None and self.max_parts > num_parts:
            raise RecipeError(
                f"a router's max_parts ({self.max_parts}) exceeds its number of parts ({num_parts})"
            )

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> TopP:
        """The router for tokens of width `dim` over `num_parts` parts."""
        from expertise.mixture.routers.top_p import TopP

        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(GateOptions)}
        return TopP(dim, num_parts, self.p, self.max_parts, **options)

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers."""
        return dim * num_parts

    def num_active_parts(self, num_parts: int) -> float:
        """Parts that a token is assumed to take, for counting activated parameters."""
        return float(min(self.assumed_parts, self.max_parts or num_parts))

    def has_logits(self) -> bool:
        """Yes."""
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashConfig:
    """What a recipe says of a hash router."""

    context_kind: ClassVar[ContextKind] = "token ids"
    """What the router wants beside the tokens."""
    name: Literal["hash"] = "hash"
    """Which router."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the draw of a part for each token id."""
    balanced: bool = False
    """Give frequent tokens out so that all parts get the same number of training tokens."""

    def check(self, num_parts: int) -> None:
        """Any number of parts will do."""

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Hash:
        """The router over `num_parts` parts for `vocab_size` token ids."""
        from expertise.mixture.routers.hash import Hash

        return Hash(num_parts, vocab_size, self.seed)

    def num_params(self, dim: int, num_parts: int) -> int:
        """Nothing is learned."""
        return 0

    def num_active_parts(self, num_parts: int) -> float:
        """One."""
        return 1.0

    def has_logits(self) -> bool:
        """No: nothing is scored."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """What a recipe says of a context router."""

    context_kind: ClassVar[ContextKind] = "a context vector"
    """What the router wants beside the tokens."""
    name: Literal["context"] = "context"
    """Which router."""
    context_dim: Annotated[int, Ge(1)]
    """Width of the context vector."""
    hidden: list[int] = dataclasses.field(default_factory=lambda: [256, 256])
    """Widths of the hidden layers."""
    squash: Squash = "none"
    """What bounds the weights."""
    normalize: bool = False
    """Divide each context by its root mean square: for hidden states, whose size differs by model."""

    def check(self, num_parts: int) -> None:
        """Any number of parts will do."""

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Context:
        """The router over `num_parts` parts."""
        from expertise.mixture.routers.context import Context

        return Context(self.context_dim, num_parts, self.hidden, self.squash, self.normalize)

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers of the MLP."""
        widths = [self.context_dim, *self.hidden, num_parts]
        return sum((a + 1) * b for a, b in itertools.pairwise(widths))

    def num_active_parts(self, num_parts: int) -> float:
        """All of them."""
        return float(num_parts)

    def has_logits(self) -> bool:
        """Only under a softmax are the weights probabilities."""
        return self.squash == "softmax"
