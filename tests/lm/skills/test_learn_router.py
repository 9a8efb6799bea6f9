"""Learning a router over skills, for every router and everything that it can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from expertise.errors import RecipeError, SkillError
from expertise.lm.causal import CausalLM
from expertise.lm.evaluate import domain_texts, evaluate
from expertise.lm.reading import prepare_for
from expertise.lm.skills import ComposeConfig, comparison, evaluate_weights, learn_router
from expertise.lm.skills.config import config_of
from expertise.mixture import ROUTERS
from expertise.skills.composing import compose
from expertise.skills.derived import merged
from expertise.skills.fingerprints import fingerprint
from expertise.skills.library import Library

Settings = Callable[..., list[str]]


def silent(_line: str) -> None:
    """Print nothing."""


def test_a_router_beats_the_base_each_skill_and_equal_weights(
    base: CausalLM, library: Library, settings: Settings, tmp_path: Path
) -> None:
    skills = library.load_all(["prose", "code"], base.core)
    before = fingerprint(base.core)
    got = learn_router(base, skills, config_of(ComposeConfig, settings("", "train.steps=60")), tmp_path / "w")
    rows = {title: row.mean_bits_per_byte for title, row in got.comparison.rows().items()}
    assert list(rows) == ["base", "skill prose", "skill code", "uniform", "composed"]
    assert rows["composed"] == min(rows.values())
    assert rows["composed"] < rows["base"] - 0.02
    assert got.metrics["bits_per_byte"]["skills"]["code"]["mean"] == pytest.approx(
        rows["skill code"], abs=1e-5
    )
    alpha = got.metrics["skills"]
    assert alpha["prose"]["prose"] > alpha["code"]["prose"]
    assert sum(alpha["code"].values()) == pytest.approx(1, abs=1e-3)
    assert fingerprint(base.core) == before
    for skill in got.model.core.composition.slots():  # type: ignore[union-attr, operator]
        assert not skill[1].factors.A.requires_grad


@pytest.mark.parametrize("reads", ["pooled", "token", "layer"])
@pytest.mark.parametrize("router", [n for n in ROUTERS if ROUTERS[n].context_kind != "token ids"])
def test_every_router_learns_whatever_it_reads(
    base: CausalLM, library: Library, settings: Settings, tmp_path: Path, router: str, reads: str
) -> None:
    skills = library.load_all(["prose", "code"], base.core)
    changes = [f'router={{name = "{router}"}}', f"reads={reads}", "train.steps=3"]
    config = config_of(ComposeConfig, settings("", *changes))
    got = learn_router(base, skills, config, tmp_path / "w")
    learning = [name for name, p in got.model.core.named_parameters() if p.requires_grad]
    assert learning
    assert all("router" in name for name in learning)
    # The weights moved from where the seed put them.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        start = compose(base.core, skills, router=config.router, reads=config.reads)
    now = dict(got.model.core.named_parameters())
    assert any(not torch.equal(p, now[n]) for n, p in start.named_parameters() if n in learning)


def test_rows_of_a_comparison_are_the_merged_models(
    base: CausalLM, library: Library, settings: Settings
) -> None:
    skills = library.load_all(["prose", "code"], base.core)
    prepared = prepare_for(base, config_of(ComposeConfig, settings()).data, silent)
    texts = domain_texts(prepared, "validation", 400, 32)
    core = compose(base.core, skills, weights=[0.3, 0.9])
    rows = comparison(base.around(core), texts, 4).rows()
    for title, weights in (
        ("base", [0.0, 0.0]),
        ("skill prose", [1.0, 0.0]),
        ("skill code", [0.0, 1.0]),
        ("uniform", [0.5, 0.5]),
        ("composed", [0.3, 0.9]),
    ):
        plain = evaluate(base.around(merged(core, weights)), texts, 4)
        assert rows[title].bits_per_byte == pytest.approx(plain.bits_per_byte, abs=2e-5), title
        found = rows[title].skills
        assert found["code"] == pytest.approx(dict(zip(("prose", "code"), weights, strict=True)), abs=1e-6)
    given = evaluate_weights(base.around(core), texts, 4, {"code": 1.0})
    assert given.bits_per_byte == rows["skill code"].bits_per_byte
    assert evaluate(base, texts, 4).bits_per_byte == rows["base"].bits_per_byte
    assert evaluate(base, texts, 4).skills == {}


def test_windows_of_documents_keep_their_alphas_apart(
    base: CausalLM, library: Library, settings: Settings, tmp_path: Path
) -> None:
    """A text's pooled context must not hold the text that happens to stand before it in its window."""
    skills = library.load_all(["prose", "code"], base.core)
    config = config_of(ComposeConfig, settings("", "data.pack=documents", "train.steps=4"))
    got = learn_router(base, skills, config, tmp_path / "w")
    assert got.notes.reads_documents is True
    tokens = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 7 + [-1] * 2])
    with torch.no_grad():
        packed = got.model(tokens, documents=documents)
        for row, start, end in ((0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 10)):
            alone = got.model(tokens[row : row + 1, start:end])
            assert torch.allclose(packed[row, start:end], alone[0], atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["reads=context"], "reads is token, pooled or layer"),
        (['router={name = "hash"}'], "a hash router learns nothing"),
        (['router={name = "fixed", learn = false}'], "a fixed router learns nothing"),
        (['router={name = "topk"}'], "router.name: unknown 'topk'"),
        (["reads=pool"], "reads: input should be"),
        (["router.squash=tanh"], "router.squash: input should be"),
    ],
)
def test_what_no_router_can_be_is_refused(settings: Settings, changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config_of(ComposeConfig, settings("", *changes))


def test_an_unknown_source_is_refused(run_base: Path, settings: Settings, tmp_path: Path) -> None:
    from expertise.lm.open import open_model
    from expertise.skills.learn import SkillConfig, fresh

    base = open_model(run_base)
    skill = fresh(base.core, "x", SkillConfig())
    config = config_of(ComposeConfig, settings("", "source=blocks.7"))
    with pytest.raises(SkillError, match=r"no module 'blocks\.7' for the router to read"):
        learn_router(base, [skill], config, tmp_path / "w")
    with pytest.raises(SkillError, match="cannot have two skills of the name"):
        learn_router(base, [skill, skill], config_of(ComposeConfig, settings()), tmp_path / "w")


def test_a_router_that_is_only_named_has_the_defaults_of_skills(settings: Settings) -> None:
    def router(*changes: str) -> Any:
        return config_of(ComposeConfig, settings("", *changes)).router

    plain = router()
    assert (plain.hidden, plain.squash, plain.normalize, plain.start) == ([64], "softmax", True, "random")
    assert router('router={name = "context"}') == plain
    assert router("router.hidden=[3]").squash == "softmax"
    # Version 0.1.0 wrote a width that meant nothing: a training that it began goes on.
    assert router("router.context_dim=1") == plain
    assert router('router={name = "top_p"}').p == 0.7
    assert router('router={name = "top_p"}').hidden == []
    assert router('router={name = "top_k"}').k == 2
    assert router('router={name = "fixed"}').learn
