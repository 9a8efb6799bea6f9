"""Six families from one reference: counts, widths, refusals, and that all of them are built and learn so."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expertise.errors import RecipeError
from expertise.lm import load
from expertise.lm.config import ModelConfig
from expertise.lm.data import prepare
from expertise.lm.family import FAMILIES, FamilyConfig
from expertise.lm.model import LanguageModel
from expertise.lm.recipe import Recipe
from expertise.lm.train import train
from expertise.mixture import SwiGLU, SwiGLUExperts, TopK, TopP
from expertise.mixture.mixture import Mixture, recording
from expertise.runs import recipe as recipes
from expertise.runs.metrics import read_lines

# The validation study's reference in small: 16 full-size experts, 2 per token, cut into 4, 1 shared.
REFERENCE: dict[str, Any] = {"num_experts": 16, "top_k": 2, "hidden": 64, "segments": 4, "shared": 1}
SMALL: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2, "context": 8, "vocab_size": 50}


def family(name: str, **changes: Any) -> FamilyConfig:
    return FamilyConfig(**{"name": name, **REFERENCE, **changes})


# Family: routed experts, how many a token takes, their width, the width of what is always on; and what a
# layer then has in all and activated, in full-size experts.
TABLE: dict[str, tuple[int, float, int, int, float, float]] = {
    "dense": (0, 0, 0, 64, 1, 1),
    "hash": (16, 1, 64, 0, 16, 1),
    "switch": (16, 1, 64, 0, 16, 1),
    "gshard": (16, 2, 64, 0, 16, 2),
    "deepseekmoe": (63, 7, 16, 16, 16, 2),
    "dynamic": (63, 7, 16, 16, 16, 2),
}


def test_the_table_has_every_family() -> None:
    assert set(TABLE) == set(FAMILIES)


@pytest.mark.parametrize("name", TABLE)
def test_counts_and_widths(name: str) -> None:
    sizes = family(name).sizes()
    *counts, total, activated = TABLE[name]
    assert [sizes.num_parts, sizes.parts_per_token, sizes.part_hidden, sizes.always_hidden] == counts
    full = 3 * 16 * 64
    assert sizes.num_params(16) == total * full
    assert sizes.num_active_params(16) == activated * full
    assert set(sizes.differences(16).values()) == {0}


@pytest.mark.parametrize(
    ("name", "changes", "total", "activated"),
    [
        ("gshard", {"widen": 1.5}, 24, 3),
        ("gshard", {"widen": 1.25}, 20, 2.5),
        ("dense", {"multiple": 2}, 2, 2),
        ("dense", {"multiple": 4}, 4, 4),
        ("dense", {"multiple": 16}, 16, 16),
    ],
)
def test_wider_experts_and_more_dense_ones(
    name: str, changes: dict[str, Any], total: float, activated: float
) -> None:
    sizes = family(name, **changes).sizes()
    assert sizes.num_params(16) == total * 3 * 16 * 64
    assert sizes.num_active_params(16) == activated * 3 * 16 * 64
    assert set(sizes.differences(16).values()) == {0}


def test_rounding_is_reported() -> None:
    """The 2B: 3413 / 4 is 853.25; sixteen full-size experts miss 16 of their 54,608 hidden units."""
    sizes = family("deepseekmoe", hidden=3413).sizes()
    assert (sizes.part_hidden, sizes.always_hidden) == (853, 853)
    assert sizes.differences(1280) == pytest.approx(
        {
            "total": -16 * 3 * 1280,
            "total_percent": -100 * 16 / 54_608,
            "activated": -2 * 3 * 1280,
            "activated_percent": -100 * 2 / 6826,
        }
    )
    assert family("gshard", hidden=3413, widen=1.2).sizes().part_hidden == 4096  # of 4095.6
    aligned = family("deepseekmoe", hidden=3413, align=64).sizes()
    assert aligned.part_hidden == 832
    assert family("dense", hidden=3413, align=64, multiple=2).sizes().always_hidden == 2 * 3392


@given(
    experts=st.integers(1, 40),
    top_k=st.integers(1, 6),
    segments=st.integers(1, 8),
    shared=st.integers(0, 20),
    hidden=st.integers(1, 300),
    align=st.sampled_from([1, 4, 16]),
    name=st.sampled_from(["deepseekmoe", "dynamic"]),
)
def test_sizes_are_the_references_to_within_rounding(
    experts: int, top_k: int, segments: int, shared: int, hidden: int, align: int, name: str
) -> None:
    settings = {"segments": segments, "shared": shared, "hidden": hidden, "align": align, "top_k": top_k}
    if top_k > experts or shared >= segments * top_k:
        with pytest.raises(RecipeError):
            family(name, num_experts=experts, **settings)
        return
    config = family(name, num_experts=experts, **settings)
    sizes, dim = config.sizes(), 8
    # Each of the mN (for a token: mK) experts is at most half a multiple off, or one wide at least.
    worst = max(align / 2, align - hidden / segments)
    lost = sizes.num_params(dim) - 3 * dim * experts * hidden
    lost_active = sizes.num_active_params(dim) - 3 * dim * top_k * hidden
    assert abs(lost) <= 3 * dim * segments * experts * worst + 1e-6
    assert abs(lost_active) <= 3 * dim * segments * top_k * worst + 1e-6
    assert sizes.differences(dim)["total"] == pytest.approx(lost)
    assert sizes.differences(dim)["activated"] == pytest.approx(lost_active)
    if hidden % (segments * align) == 0:
        assert lost == lost_active == 0


def built(model: nn.Module) -> tuple[list[int], list[float]]:
    """Expert parameters of each layer of a model, and those that a token takes, by its modules."""
    total, activated = [], []
    for block in model.blocks:  # type: ignore[union-attr]
        layer = block.feed_forward
        always = layer.always if isinstance(layer, Mixture) else layer
        fixed = sum(p.numel() for p in always.parameters()) if always is not None else 0
        routed, taken = 0, 0.0
        if isinstance(layer, Mixture):
            routed = sum(p.numel() for p in layer.parts.parameters())
            k = getattr(layer.router, "k", 1 if type(layer.router).__name__ == "Hash" else None)
            # Top-p: at the reference's size, which the helper states and no module knows.
            taken = routed / layer.parts.num_parts * (7 if k is None else k)
        total.append(fixed + routed)
        activated.append(fixed + taken)
    return total, activated


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("hidden", [64, 30])
def test_the_built_model_has_the_helpers_counts(name: str, hidden: int) -> None:
    config = ModelConfig(**SMALL, family=family(name, hidden=hidden))
    assert config.family is not None
    sizes = config.family.sizes()
    total, activated = built(LanguageModel(config))
    assert total == [sizes.num_params(16)] * 2
    assert activated == [sizes.num_active_params(16)] * 2
    kinds, active = config.num_params_by_kind(), config.num_active_params_by_kind()
    experts = ("dense", "always", "routed")
    assert sum(kinds[kind] for kind in experts) == sum(total)
    assert sum(active[kind] for kind in experts) == sum(activated)


def test_gates_are_raw_and_p_is_the_recipes() -> None:
    for name in ("switch", "gshard", "deepseekmoe"):
        router = family(name).build().router
        assert isinstance(router, TopK.Config)
        assert (router.normalize, router.scale) == (False, 1.0)
    router = family("dynamic", p=0.3, max_parts=9).build().router
    assert isinstance(router, TopP.Config)
    assert (router.p, router.max_parts, router.assumed_parts) == (0.3, 9, 7)
    assert (router.normalize, router.scale) == (False, 1.0)
    whole = family("dynamic", segments=1, shared=0).sizes()
    assert (whole.num_parts, whole.parts_per_token, whole.part_hidden) == (16, 2, 64)


def test_dense_leaves_the_width_of_first_layers_alone() -> None:
    """The layers that are dense in every family keep their own width."""
    for name, others in (("dense", 64), ("gshard", None)):
        fields = {**SMALL, "num_layers": 4, "first_dense": 1, "dense_hidden": 90}
        model = LanguageModel(ModelConfig(**fields, family=family(name)))
        layers = [block.feed_forward for block in model.blocks]
        widths = [layer.down.in_features if isinstance(layer, SwiGLU) else None for layer in layers]
        assert widths == [90, others, others, others]


def test_without_a_router_what_is_always_on_is_the_layer() -> None:
    config = ModelConfig(**SMALL, always=SwiGLU.Config(hidden=24))
    model = LanguageModel(config)
    assert config.num_params() == sum(p.numel() for p in model.parameters())
    assert config.num_params_by_kind()["dense"] == 2 * 3 * 16 * 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 17}, r"model\.family\.top_k \(17\) is larger than its num_experts \(16\)"),
        ({"shared": 8}, r"model\.family\.shared \(8\) leaves no routed expert"),
        ({"shared": -1}, r"model\.family\.shared \(-1\)"),
        ({"hidden": 0}, r"model\.family\.hidden must be above 0"),
        ({"align": 0}, r"model\.family\.align must be above 0"),
        ({"widen": float("nan")}, r"model\.family\.widen must be above 0"),
        ({"widen": 1.5}, r"model\.family\.widen belongs to the family 'gshard', not to 'deepseekmoe'"),
        ({"multiple": 2}, r"model\.family\.multiple belongs to the family 'dense'"),
        ({"name": "dynamic", "p": 1.5}, "p must lie in"),
        ({"name": "dynamic", "max_parts": 64}, r"max_parts \(64\) exceeds"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        FamilyConfig(**{"name": "deepseekmoe", **REFERENCE, **changes})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("router", TopK.Config(k=7)),
        ("parts", SwiGLUExperts.Config(num_parts=63, hidden=16)),
        ("always", SwiGLU.Config(hidden=16)),
    ],
)
def test_a_family_beside_what_it_decides_is_refused(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"model\.{key} and model\.family exclude each other"):
        ModelConfig(**SMALL, family=family("deepseekmoe"), **{key: value})


@pytest.fixture(scope="module")
def family_recipe(small_values: dict[str, Any]) -> Callable[..., Recipe]:
    """One recipe; `family_recipe("model.family.name=hash", …)` turns the one switch."""
    kept = {k: v for k, v in small_values["model"].items() if k not in ("router", "parts", "always")}
    reference = {
        "name": "deepseekmoe",
        "num_experts": 4,
        "top_k": 2,
        "hidden": 32,
        "segments": 4,
        "shared": 2,
    }
    values = {**small_values, "model": {**kept, "family": reference}}

    def make(*settings: str) -> Recipe:
        return recipes.build(recipes.override(values, settings), Recipe)

    return make


@pytest.mark.parametrize("name", TABLE)
def test_a_runs_recipe_reads_back_equal(name: str, family_recipe: Callable[..., Recipe]) -> None:
    recipe = family_recipe(f"model.family.name={name}", "model.family.align=4")
    text = recipes.to_toml(recipe)
    assert recipes.build(recipes.parse(text, "recipe.toml"), Recipe) == recipe
    assert "router" not in text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.family.name=switsh", "model.family.name: input should be"),
        ("model.family.segmets=2", "unknown key model.family.segmets"),
        ("model.family={name='hash'}", "the recipe lacks model.family.num_experts"),
        ("model.family.top_k=5", "model.family.top_k (5) is larger"),
        ("model.router={name='top_k', k=2}", "model.router and model.family exclude each other"),
    ],
)
def test_a_mistake_in_a_recipe_names_the_key(
    family_recipe: Callable[..., Recipe], setting: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        family_recipe(setting)
    assert message in caught.value.message


def unigram_entropy(recipe: Recipe) -> float:
    """Nats per token of the best model that ignores the context, on the training text."""
    tokens = torch.from_numpy(prepare(recipe.data, recipe.tokenizer).stream("train").tokens.astype("int64"))
    shares = tokens.bincount().double() / len(tokens)
    return float(-(shares * shares.clamp(min=1e-12).log()).sum())


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize("name", TABLE)
def test_every_family_learns(name: str, tmp_path: Path, family_recipe: Callable[..., Recipe]) -> None:
    recipe = family_recipe(f"model.family.name={name}", "train.steps=200", "train.log_every=10")
    train(recipe, tmp_path / "run", lambda _line: None)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert sum(losses[-3:]) / 3 < unigram_entropy(recipe) - 1.5
    evaluation = next(line for line in lines if line["kind"] == "evaluation")
    assert math.isfinite(evaluation["bits_per_byte"]["mean"])
    model = load(tmp_path / "run")
    family_config = model.config.family
    assert family_config is not None
    assert family_config.name == name
    assert built(model)[0] == [family_config.sizes().num_params(32)] * 2
    with recording(model) as mixtures:
        model(torch.arange(20).repeat(2)[None, :32])
    taken = family_config.sizes().parts_per_token
    for mixture in mixtures:
        assert mixture.last_routes is not None
        counts = mixture.last_routes.parts_per_token()
        if name == "dynamic":
            assert counts.min() >= 1
        else:
            assert counts.unique().tolist() == [taken]
        if name == "hash":
            ids = mixture.last_routes.part_ids
            assert ids is not None
            # Tokens 0 to 11 come again at 20 to 31, in another context, and go where they went.
            assert torch.equal(ids[:12], ids[20:32])
            assert len(ids.unique()) > 1
