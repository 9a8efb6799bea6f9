"""What recipes say of routers. No torch here: a recipe is validated before torch is imported."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

from annotated_types import Ge, Gt, Le

from expertise.errors import RecipeError

if TYPE_CHECKING:
    from expertise.mixture.routers.base import Router
    from expertise.mixture.routers.context import Context
    from expertise.mixture.routers.fixed import Fixed
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


Start = list[float] | Literal["random"]
"""Weights before any training: constant ones (none given: 1 / K each), or those that a new network gives."""


@runtime_checkable
class RouterConfig(Protocol):
    """What every router's `Config` answers; it holds what a recipe says, not the model's widths."""

    @property
    def name(self) -> str:
        """The router's name in the registry."""

    def check(self, num_parts: int) -> None:
        """Refuse, by a RecipeError, what cannot be with so many parts."""

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Router:
        """The router for tokens of width `dim` over `num_parts` parts; some need the vocabulary's size.

        Whoever gives a router the tokens as its context, as skills and policies do, asks for no other width.
        """

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
    hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=list)
    """Widths of hidden layers before the centroids, ReLU after each; none: centroids of the token itself."""

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
        if min(self.hidden, default=1) < 1:
            raise RecipeError(f"a router's hidden widths must be positive, not {self.hidden}")

    def options(self) -> dict[str, Any]:
        """The shared fields by name, as the routers take them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(GateOptions)}

    def num_centroids(self, num_parts: int) -> int:
        """Rows of the router's weight."""
        return num_parts

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers: hidden layers and centroids."""
        widths = [dim, *self.hidden]
        layers = sum((a + 1) * b for a, b in itertools.pairwise(widths))
        return layers + widths[-1] * self.num_centroids(num_parts)


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

        return TopK(dim, num_parts, self.k, **self.options())

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
    nothing: bool = False
    """One more centroid, the last, that stands for no part: its probability adds nothing, so that what is
    always on may be left alone. It counts towards p and max_parts."""

    def __post_init__(self) -> None:
        GateOptions.__post_init__(self)
        if not 0.0 < self.p <= 1.0:
            raise RecipeError(f"a router's p must lie in (0, 1], not {self.p}")
        if self.max_parts is not None and self.max_parts < 1:
            raise RecipeError(f"a router's max_parts must be at least 1, not {self.max_parts}")
        if self.assumed_parts < 1:
            raise RecipeError(f"a router's assumed_parts must be at least 1, not {self.assumed_parts}")
        if self.nothing and self.bias_step:
            raise RecipeError("a router with nothing has no bias_step: that evens out the load of parts")

    def check(self, num_parts: int) -> None:
        """Refuse a cap above the number of parts."""
        if self.max_parts is not None and self.max_parts > num_parts:
            raise RecipeError(
                f"a router's max_parts ({self.max_parts}) exceeds its number of parts ({num_parts})"
            )

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> TopP:
        """The router for tokens of width `dim` over `num_parts` parts."""
        from expertise.mixture.routers.top_p import TopP

        return TopP(dim, num_parts, self.p, self.max_parts, nothing=self.nothing, **self.options())

    def num_centroids(self, num_parts: int) -> int:
        """One for each part, and one for nothing."""
        return num_parts + self.nothing

    def num_active_parts(self, num_parts: int) -> float:
        """Parts that a token is assumed to take, for counting activated parameters."""
        return float(min(self.assumed_parts, self.max_parts or num_parts))

    def has_logits(self) -> bool:
        """Yes, unless a share of the probability goes to no part."""
        return not self.nothing


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
    context_dim: Annotated[int, Ge(0)] = 0
    """Width of the context vector; 0: that of the tokens, which is right wherever skills are weighed."""
    hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
    """Widths of the hidden layers, ReLU after each (PSEC's release: 256, 256)."""
    squash: Squash = "none"
    """What bounds the weights."""
    normalize: bool = False
    """Divide each context by its root mean square: for hidden states, whose size differs by model."""
    start: Start = "random"
    """Weight of each part at first, whatever the context; empty: 1 over their number; "random" (PSEC's
    release): what a new network gives, near 0."""

    def check(self, num_parts: int) -> None:
        """Refuse a start for another number of parts, or one that the squash cannot give."""
        outputs_at_start(self.start, num_parts, self.squash)

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Context:
        """The router over `num_parts` parts."""
        from expertise.mixture.routers.context import Context

        width = self.context_dim or dim
        return Context(width, num_parts, self.hidden, self.squash, self.normalize, self.start)

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers of the MLP."""
        widths = [self.context_dim or dim, *self.hidden, num_parts]
        return sum((a + 1) * b for a, b in itertools.pairwise(widths))

    def num_active_parts(self, num_parts: int) -> float:
        """All of them."""
        return float(num_parts)

    def has_logits(self) -> bool:
        """Only under a softmax are the weights probabilities."""
        return self.squash == "softmax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedConfig:
    """What a recipe says of constant weights."""

    context_kind: ClassVar[ContextKind] = "nothing"
    """What the router wants beside the tokens."""
    name: Literal["fixed"] = "fixed"
    """Which router."""
    values: list[float] = dataclasses.field(default_factory=list)
    """Weight of each part; empty: 1 over their number."""
    learn: bool = False
    """Whether they are a start only, and training changes them."""

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.values)):
            raise RecipeError(f"a fixed router's values must be finite, not {self.values}")

    def check(self, num_parts: int) -> None:
        """Refuse weights for another number of parts."""
        one_each(self.values, num_parts, "values")

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Fixed:
        """The router over `num_parts` parts."""
        from expertise.mixture.routers.fixed import Fixed

        return Fixed(num_parts, self.values, self.learn)

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers: the weights, where they learn."""
        return num_parts if self.learn else 0

    def num_active_parts(self, num_parts: int) -> float:
        """All of them."""
        return float(num_parts)

    def has_logits(self) -> bool:
        """No: nothing is scored."""
        return False


def one_each(values: Sequence[float], num_parts: int, what: str) -> list[float]:
    """A weight for each part: the given ones, or 1 / K each where none is given.

    Args:
        values: K numbers, or none.
        num_parts: K.
        what: what the numbers are called, for the message.

    Raises:
        RecipeError: there are values, and not one for each part.
    """
    if num_parts < 1 or len(values) not in (0, num_parts):
        raise RecipeError(f"{what} has {len(values)} weights for {num_parts} parts")
    return list(values) or [1 / num_parts] * num_parts


def outputs_at_start(start: Start, num_parts: int, squash: Squash) -> list[float] | None:
    """What the network must give so that the squashed weights are those of `start`; None: "random".

    Raises:
        RecipeError: there is not one weight for each part, or the squash cannot give them.
    """
    if isinstance(start, str):
        if start not in get_args(get_args(Start)[1]):
            raise RecipeError(f"a context router's start is a list of weights or 'random', not {start!r}")
        return None
    weights = one_each(start, num_parts, "start")
    if squash == "none":
        return weights
    least, most = min(weights), max(weights)
    if squash == "softmax":
        if least <= 0 or not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
            raise RecipeError(
                f"a softmax gives weights above 0 that sum to 1, not start = {weights}",
                'give others, or start = "random"',
            )
        return [math.log(weight) for weight in weights]
    if least <= 0 or most >= 1:
        raise RecipeError(
            f"a sigmoid gives weights between 0 and 1, not start = {weights}",
            'give others, or start = "random"',
        )
    return [math.log(weight / (1 - weight)) for weight in weights]
