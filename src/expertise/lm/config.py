"""The architecture of a language model, and its size without a tensor."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from expertise.errors import RecipeError
from expertise.lm.family import FamilyConfig, FeedForward
from expertise.mixture.parts import PARTS
from expertise.mixture.parts.configs import PartsConfig, SwiGLUConfig
from expertise.mixture.routers import ROUTERS, context_kind_of
from expertise.mixture.routers.configs import RouterConfig
from expertise.runs.recipe import Choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOverride:
    """What some mixture layers have differently."""

    layers: list[int]
    """Indices of the layers, from 0."""
    num_parts: Annotated[int, Ge(1)] | None = None
    """Their number of parts."""
    k: Annotated[int, Ge(1)] | None = None
    """Their k (top-k)."""
    p: Annotated[float, Gt(0)] | None = None
    """Their p (top-p)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureLayer:
    """Feed-forward half of one mixture layer, all overrides applied."""

    router: RouterConfig
    parts: PartsConfig
    always: SwiGLUConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder: RMSNorm, rotary positions, grouped-query attention, and in each layer a mixture or a SwiGLU.

    Layer l (from 0) is a mixture when `l >= first_dense and l % every == 0`, as in DeepSeekMoE's released
    code; the others are dense. Without `router` and `parts` every layer is dense: those that would be
    mixtures are as wide as `always` where it is given, else as `dense_hidden`, like the others. `family`
    stands for `router`, `parts` and `always`; `feed_forward` is what they come to.
    """

    dim: Annotated[int, Ge(1)]
    """Width of the residual stream."""
    num_layers: Annotated[int, Ge(1)]
    """Number of layers."""
    num_heads: Annotated[int, Ge(1)]
    """Query heads; each is dim / num_heads wide."""
    context: Annotated[int, Ge(1)]
    """Longest sequence, in tokens."""
    num_kv_heads: Annotated[int, Ge(0)] = 0
    """Key and value heads (grouped-query attention); 0: as many as query heads."""
    router: Annotated[RouterConfig, Choice(ROUTERS)] | None = None
    """Who chooses the parts of a token."""
    parts: Annotated[PartsConfig, Choice(PARTS, default="swiglu")] | None = None
    """What is chosen from."""
    always: SwiGLUConfig = dataclasses.field(default_factory=lambda: SwiGLUConfig(hidden=0))
    """Shared experts, merged into one network that is always on."""
    family: FamilyConfig | None = None
    """Instead of router, parts and always: a family of equal size from a reference mixture."""
    first_dense: Annotated[int, Ge(0)] = 0
    """So many first layers are dense."""
    every: Annotated[int, Ge(1)] = 1
    """A mixture in every so many layers."""
    dense_hidden: Annotated[int, Ge(0)] = 0
    """Hidden width of the dense layers; needed when there is one."""
    override: list[LayerOverride] = dataclasses.field(default_factory=list)
    """Layers whose number of parts, k or p differs."""
    vocab_size: Annotated[int, Ge(0)] = 0
    """Rows of the embedding; 0: the tokenizer's size."""
    tied: bool = False
    """Use the embedding as the head."""
    qkv_bias: bool = False
    """Biases in the query, key and value products."""
    qk_norm: bool = False
    """RMSNorm over each query and key head."""
    rope_theta: Annotated[float, Gt(0)] = 10000.0
    """Base of the rotary frequencies."""
    norm_epsilon: Annotated[float, Gt(0)] = 1e-6
    """RMSNorm's epsilon."""
    init: Annotated[float, Gt(0)] | Literal["width-scaled"] = "width-scaled"
    """Std of all initial weights (the paper: 0.006), or 1 / sqrt(fan-in) with smaller residual outputs."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise RecipeError(
                f"model.dim ({self.dim}) is not a multiple of model.num_heads ({self.num_heads})"
            )
        if self.head_dim % 2:
            raise RecipeError(
                f"model.dim / model.num_heads ({self.head_dim}) must be even (rotary positions)"
            )
        if self.num_heads % self.kv_heads:
            raise RecipeError(
                f"model.num_heads ({self.num_heads}) is no multiple of model.num_kv_heads ({self.kv_heads})"
            )
        self._refuse_family_beside_its_parts()
        if self.router is not None and context_kind_of(self.router) == "a context vector":
            raise RecipeError(
                f"model.router.name = {self.router.name!r} needs a context vector, which a language model's "
                "layers do not have"
            )
        if (self.router is None) != (self.parts is None):
            raise RecipeError("model.router and model.parts belong together: give both or neither")
        for index in range(self.num_layers):
            layer = self.layer(index)
            if layer is None and not self.dense_width(index):
                raise RecipeError(f"layer {index} is dense: set model.dense_hidden to its width")
            if layer is not None:
                overridden = any(index in change.layers for change in self.override)
                with _naming("model.override" if overridden else "model.router"):
                    layer.router.check(layer.parts.num_parts)
        for change in self.override:
            for index in change.layers:
                if not 0 <= index < self.num_layers or self.layer(index) is None:
                    raise RecipeError(f"model.override names layer {index}, which is no mixture layer")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def mixture_layers(self) -> list[int]:
        """Indices of the mixture layers."""
        return [index for index in range(self.num_layers) if self.layer(index) is not None]

    @property
    def feed_forward(self) -> FeedForward:
        """Router, parts and always of the mixture layers, as given or as the family makes them."""
        if self.family is not None:
            return self.family.build()
        return FeedForward(router=self.router, parts=self.parts, always=self.always)

    def layer(self, index: int) -> MixtureLayer | None:
        """What layer `index` (from 0) holds: a mixture, or None for a dense one."""
        what = self.feed_forward
        router, parts = what.router, what.parts
        if router is None or parts is None or index < self.first_dense or index % self.every:
            return None
        for change in self.override:
            if index not in change.layers:
                continue
            if change.num_parts is not None:
                parts = _replace(parts, "num_parts", change.num_parts)
            if change.k is not None:
                router = _replace(router, "k", change.k)
            if change.p is not None:
                router = _replace(router, "p", change.p)
        return MixtureLayer(router=router, parts=parts, always=what.always)

    def dense_width(self, index: int) -> int:
        """Hidden width of layer `index`, which holds no mixture."""
        what = self.feed_forward
        only_always = what.router is None and index >= self.first_dense and not index % self.every
        return what.always.hidden if only_always and what.always.hidden else self.dense_hidden

    def num_params_by_kind(self) -> dict[str, int]:
        """Learned numbers by kind: embedding, head, attention, norms, dense, always, routed, router."""
        d, heads = self.dim, self.num_heads + 2 * self.kv_heads
        attention = d * heads * self.head_dim + self.num_heads * self.head_dim * d
        attention += heads * self.head_dim if self.qkv_bias else 0
        norms = self.num_layers * (2 * d + (2 * self.head_dim if self.qk_norm else 0)) + d
        counts = dict.fromkeys(("dense", "always", "routed", "router"), 0)
        for index in range(self.num_layers):
            layer = self.layer(index)
            if layer is None:
                counts["dense"] += 3 * d * self.dense_width(index)
                continue
            num_parts = layer.parts.num_parts
            counts["always"] += layer.always.num_params(d)
            counts["routed"] += num_parts * layer.parts.num_params_each(d)
            counts["router"] += layer.router.num_params(d, num_parts)
        return {
            "embedding": self._vocab() * d,
            "head": 0 if self.tied else self._vocab() * d,
            "attention": self.num_layers * attention,
            "norms": norms,
            **counts,
        }

    def num_params(self) -> int:
        """All learned numbers."""
        return sum(self.num_params_by_kind().values())

    def num_active_params(self) -> int:
        """Learned numbers that one token uses; a top-p router's at its `assumed_parts`."""
        return sum(self.num_active_params_by_kind().values())

    def num_active_params_by_kind(self) -> dict[str, int]:
        """Learned numbers that one token uses, by kind: all but the routed parts that it does not take."""
        return {**self.num_params_by_kind(), "routed": round(self._active_routed())}

    def flops_per_sequence(self) -> float:
        """FLOPs of a forward and a backward pass over `context` tokens, counted as in the papers.

        `6 * (activated parameters without the input embedding) * T + 12 * L * d * T^2`.
        """
        tokens = self.context
        input_embedding = 0 if self.tied else self.num_params_by_kind()["embedding"]
        products = 6 * (self.num_active_params() - input_embedding) * tokens
        return float(products + 12 * self.num_layers * self.dim * tokens**2)

    def _active_routed(self) -> float:
        total = 0.0
        for layer in map(self.layer, range(self.num_layers)):
            if layer is not None:
                active = layer.router.num_active_parts(layer.parts.num_parts)
                total += active * layer.parts.num_params_each(self.dim)
        return total

    def _refuse_family_beside_its_parts(self) -> None:
        if self.family is None:
            return
        for key, given in (
            ("router", self.router is not None),
            ("parts", self.parts is not None),
            ("always", self.always.hidden > 0),
        ):
            if given:
                raise RecipeError(
                    f"model.{key} and model.family exclude each other: the family decides about {key}",
                    f"leave out model.{key}, or model.family",
                )

    def _vocab(self) -> int:
        if not self.vocab_size:
            raise RecipeError("sizes need a vocabulary: set model.vocab_size")
        return self.vocab_size


def _replace(config: Any, key: str, value: int | float) -> Any:
    if not hasattr(config, key):
        raise RecipeError(f"model.override sets {key}, which {config.name!r} does not have")
    with _naming("model.override"):
        return dataclasses.replace(config, **{key: value})


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Put the recipe's key before the message of a configuration that does not know where it stands."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{key}: {error.message}", *error.hints) from None
