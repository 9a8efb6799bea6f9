"""What the page of skills shows is what the composed model does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from page_reader import PageReader, require_sound

from expertise.errors import RecipeError, SkillError
from expertise.lm import LanguageModel
from expertise.lm.data import DataConfig
from expertise.lm.evaluate import domain_texts, evaluate
from expertise.lm.open import open_model
from expertise.lm.reading import prepare_for
from expertise.lm.train import train
from expertise.mixture.routers.configs import RouterConfig
from expertise.mixture.routers.context import Context
from expertise.mixture.routers.top_p import TopP
from expertise.report.records import SkillsRecord, from_json, to_json
from expertise.report.skills_record import PAGE, skills_record, write_skills_report
from expertise.skills import Library, Skill, compose
from expertise.skills.composed import save_composed
from expertise.skills.learn import SkillConfig, fresh

ROUTER = Context.Config(context_dim=1, hidden=[8], squash="none")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Any]) -> Path:
    made = tmp_path_factory.mktemp("report") / "base"
    train(small_recipe("train.steps=2"), made, lambda line: None)
    return made


@pytest.fixture(scope="module")
def base(run: Path) -> LanguageModel:
    opened = open_model(run)
    assert isinstance(opened, LanguageModel)
    return opened


def skill(base: LanguageModel, name: str, seed: int, rank: int = 2) -> Skill:
    """A skill that does something."""
    made = fresh(base, name, SkillConfig(rank=rank), seed)
    drawn = torch.Generator().manual_seed(seed)
    return dataclasses.replace(
        made,
        factors={
            address: dataclasses.replace(f, B=0.1 * torch.randn(f.B.shape, generator=drawn))
            for address, f in made.factors.items()
        },
    )


@pytest.fixture(scope="module")
def skills(base: LanguageModel) -> list[Skill]:
    return [skill(base, "a", 1), skill(base, "b", 2, rank=3)]


def record_of(
    base: LanguageModel,
    text: Path,
    skills: list[Skill],
    weights: Sequence[float] | None = None,
    router: RouterConfig | None = None,
    reads: Any = None,
) -> tuple[dict[str, Any], LanguageModel, list[Any]]:
    torch.manual_seed(0)
    model = compose(base, skills, weights=weights, router=router, reads=reads)
    assert isinstance(model, LanguageModel)
    prepared = prepare_for(base, DataConfig(source=str(text)), lambda line: None)
    texts = domain_texts(prepared, "validation", 600, base.context)
    return to_json(skills_record(model, texts, 4)), model, texts


def test_losses_are_those_of_an_evaluation(
    base: LanguageModel, small_text: Path, skills: list[Skill]
) -> None:
    made, model, texts = record_of(base, small_text, skills, router=ROUTER, reads="token")
    bits = made["bits_per_byte"]
    assert bits["base"] == pytest.approx(evaluate(base, texts, 4).bits_per_byte)
    assert bits["composed"] == pytest.approx(evaluate(model, texts, 4).bits_per_byte)
    alone = compose(base, skills[:1], weights=[1.0])
    assert bits["skills"]["a"] == pytest.approx(evaluate(alone, texts, 4).bits_per_byte)
    assert made["domains"] == list(bits["base"])
    assert len({json.dumps(row) for row in (bits["base"], bits["composed"], bits["skills"]["a"])}) == 3


def test_weights_of_text_and_tokens_are_the_routers(
    base: LanguageModel, small_text: Path, skills: list[Skill]
) -> None:
    made, model, texts = record_of(base, small_text, skills, router=ROUTER, reads="token")
    for text, passage in zip(texts, made["passages"], strict=True):
        ids = text.windows.ids[: base.context]
        with torch.inference_mode():
            hidden = base.embedding(ids)
            alpha = model.composition.router(hidden, hidden).gates
        assert len(passage["tokens"]) == len(ids)
        found = torch.tensor([token["alpha"] for token in passage["tokens"]])
        torch.testing.assert_close(found, alpha, atol=6e-4, rtol=0)
    means = made["alpha"][texts[0].domain]
    assert means["a"]["std"] > 0
    assert means["a"]["mean"] != means["b"]["mean"]
    assert made["composition"] == {"router": "context", "reads": "token", "weights": None}


def test_a_router_in_each_layer_is_shown_by_its_mean(
    base: LanguageModel, small_text: Path, skills: list[Skill]
) -> None:
    made, _, _ = record_of(base, small_text, skills, router=TopP.Config(p=0.5, normalize=True), reads="layer")
    assert made["composition"]["router"] == "top_p"
    for passage in made["passages"]:
        for token in passage["tokens"]:
            assert sum(token["alpha"]) == pytest.approx(1.0, abs=2e-3)


def test_constant_weights_need_no_table(base: LanguageModel, small_text: Path, skills: list[Skill]) -> None:
    made, _, _ = record_of(base, small_text, skills, weights=[0.7, -0.3])
    assert made["composition"]["weights"] == pytest.approx({"a": 0.7, "b": -0.3})
    assert made["alpha"] == {}
    assert made["passages"] == []


def test_energy_rises_to_one_and_similarity_is_symmetric(
    base: LanguageModel, small_text: Path, skills: list[Skill]
) -> None:
    same = dataclasses.replace(skills[0], name="c")
    made, _, _ = record_of(base, small_text, [*skills, same], weights=[1.0, 0.0, 0.0])
    for each, rank in zip(made["skills"], (2, 3, 2), strict=True):
        assert len(each["energy"]) == rank == each["rank"]
        assert each["energy"] == sorted(each["energy"])
        assert each["energy"][-1] == pytest.approx(1.0)
        assert each["energy"][0] > 1 / rank
    for matrix in made["similarity"].values():
        table = torch.tensor(matrix)
        torch.testing.assert_close(table, table.T)
        assert table[0, 2] == pytest.approx(1.0, abs=1e-3)
        assert table[0, 1] < 0.9
    assert len(made["similarity"]) == 3
    assert any("a and c change the base in the same direction" in line for line in made["proposals"])


@pytest.fixture
def composed(base: LanguageModel, run: Path, skills: list[Skill], tmp_path: Path) -> Path:
    library = Library(tmp_path / "library")
    for each in skills:
        library.add(each, base=base, purpose=f"skill {each.name}", data="made up")
    model = compose(base, library, ["a", "b"], router=ROUTER, reads="pooled")
    save_composed(model, tmp_path / "mixed", base=run, library=library)
    return tmp_path / "mixed"


def test_a_composed_models_folder_gives_its_page(composed: Path, small_text: Path) -> None:
    page = write_skills_report(
        composed, lambda line: None, data=DataConfig(source=str(small_text)), max_bytes=600, device="cpu"
    )
    assert page == composed / PAGE
    read = require_sound(page.read_text("utf-8"))
    assert "mixed · 2 skills, on base" in read.text
    assert "skill a" in read.text
    assert "made up" in read.text
    made = json.loads((composed / PAGE).with_suffix(".json").read_text("utf-8"))
    assert made["skills"][0]["date"]
    # The page beside it does no harm to the model.
    open_model(composed)


def test_what_cannot_be_looked_at_is_refused(composed: Path, small_text: Path, tmp_path: Path) -> None:
    data = DataConfig(source=str(small_text))
    with pytest.raises(RecipeError, match="was composed without any text"):
        write_skills_report(composed, lambda line: None, device="cpu")
    with pytest.raises(RecipeError, match="no split 'training'"):
        write_skills_report(composed, lambda line: None, data=data, split="training")
    with pytest.raises(SkillError, match="no composed model"):
        write_skills_report(tmp_path / "nothing", lambda line: None, data=data)
    assert not (composed / PAGE).exists()


def test_a_page_of_a_real_record_is_sound(base: LanguageModel, small_text: Path, skills: list[Skill]) -> None:
    from expertise.report.skills import render

    made, _, _ = record_of(base, small_text, skills, router=ROUTER, reads="pooled")
    page = render(from_json(SkillsRecord, made))
    assert page == render(from_json(SkillsRecord, json.loads(json.dumps(made))))
    assert "from the mean of the hidden states so far" in PageReader(page).text
