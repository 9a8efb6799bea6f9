"""From text to a composed model that evaluates and generates, on a run of ours and on a Llama."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from expertise.errors import RecipeError, RunError, SkillError
from expertise.lm.data import DataConfig
from expertise.lm.evaluate import Switches
from expertise.lm.evaluate.run import evaluate_model
from expertise.lm.open import open_model
from expertise.lm.skills import ComposeConfig, LearnConfig
from expertise.lm.skills.config import config_of
from expertise.lm.skills.disk import compose_into, learn_into, weigh_into
from expertise.lm.text import continue_text
from expertise.runs.files import sha256_of, sha256_of_json
from expertise.skills.composed import load_composed
from expertise.skills.composed_json import read_composed
from expertise.skills.composing import compose
from expertise.skills.library import Library

Settings = Callable[..., list[str]]


def silent(_line: str) -> None:
    """Print nothing."""


def test_a_card_says_what_is_known(library: Library, small_text: Path) -> None:
    card = library.card("prose")
    assert card is not None
    assert card.base is not None
    assert card.data == f"{small_text}: prose"
    assert card.scale_convention == "alpha/r"
    assert set(card.ranks) == {8}
    bits = card.metrics["bits_per_byte"]
    assert bits["after"]["prose"] < bits["before"]["prose"]


def test_learn_compose_save_load_evaluate_generate(
    base_path: Path, library: Library, settings: Settings, tmp_path: Path
) -> None:
    files = {f: sha256_of(f) for p in (base_path, library.path) for f in p.rglob("*") if f.is_file()}
    out = tmp_path / "mix"
    config = config_of(ComposeConfig, settings("", "train.steps=40"))
    found, metrics = compose_into(
        out, base_path, library, ["prose", "code"], config, tmp_path / "w", say=silent
    )
    assert {f: sha256_of(f) for f in files} == files
    composed = read_composed(out)
    assert composed.metrics == metrics
    result = evaluate_model(out, "validation", 600, "cpu", 0, silent)
    assert result["bits_per_byte"] == pytest.approx(found.composed.rounded_bits(), abs=1e-5)
    assert result["step"] is None
    assert set(result["skills"]) == {"prose", "code"}
    other = evaluate_model(out, "test", 600, "cpu", 0, silent)
    assert other["bits_per_byte"] != result["bits_per_byte"]
    base = evaluate_model(base_path, "validation", 600, "cpu", 0, silent, data=config.data)
    assert base["bits_per_byte"] == pytest.approx(found.base.rounded_bits(), abs=1e-5)
    assert "skills" not in base
    model = open_model(out)
    pieces = list(continue_text(model, "the red", max_new_tokens=6, temperature=0.0, with_prompt=True))
    assert "".join(piece.text for piece in pieces).startswith("the red")
    for piece in pieces[:-1]:
        assert list(piece.skills) == ["prose", "code"]
        assert sum(piece.skills.values()) == pytest.approx(1, abs=1e-5)
    assert pieces[-1].skills == {}


def test_alpha_of_generated_tokens_is_that_of_the_whole_text(
    base_path: Path, library: Library, settings: Settings, tmp_path: Path
) -> None:
    """Streaming reads token by token with a cache; what it shows is what one call over all of it gives."""
    out = tmp_path / "mix"
    config = config_of(ComposeConfig, settings("", "train.steps=5"))
    compose_into(out, base_path, library, ["prose", "code"], config, tmp_path / "w", say=silent)
    model = open_model(out)
    prompt = "def return"
    pieces = list(continue_text(model, prompt, max_new_tokens=8, temperature=0.0, with_prompt=True))
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(prompt).ids
    tokens = torch.tensor([ids])
    composition = model.core.composition
    from expertise.lm.generate import Sampling, stream

    for step in stream(model, tokens, 8, Sampling(temperature=0.0)):
        ids.append(int(step.tokens[0]))
    with torch.no_grad(), composition.recording():  # type: ignore[union-attr, operator]
        model(torch.tensor([ids]))
    table = composition.alpha()  # type: ignore[union-attr, operator]
    shown = [list(piece.skills.values()) for piece in pieces[:-1]]
    assert torch.allclose(table[: len(shown)], torch.tensor(shown), atol=1e-5)


def test_weights_alone_need_no_text(base_path: Path, library: Library, tmp_path: Path) -> None:
    found, metrics = weigh_into(
        tmp_path / "mix", base_path, library, ["code", "prose"], [0.7, -0.3], say=silent
    )
    assert (found, metrics) == (None, {})
    base = open_model(base_path)
    expected = compose(base.core, library, ["code", "prose"], weights=[0.7, -0.3])
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(open_model(tmp_path / "mix")(tokens), base.around(expected)(tokens))
    with pytest.raises(RecipeError, match="was composed without any text"):
        evaluate_model(tmp_path / "mix", "validation", 600, "cpu", 0, silent)


def test_weights_with_text_are_looked_at(
    base_path: Path, library: Library, small_text: Path, tmp_path: Path
) -> None:
    data = DataConfig(source=str(small_text), domains=["code"])
    found, metrics = weigh_into(
        tmp_path / "mix", base_path, library, ["code", "prose"], [0.5, 0.5], data=data, say=silent
    )
    assert found is not None
    assert found.uniform.bits_per_byte == found.composed.bits_per_byte
    assert metrics["bits_per_byte"]["composed"]["code"] == found.composed.rounded_bits()["code"]
    # Nothing was learnt from it, so all of it was scored, up to the bytes that a training looks at.
    result = evaluate_model(tmp_path / "mix", None, 65_536, "cpu", 0, silent)
    assert result["split"] == "all"
    assert result["bits_per_byte"]["code"] == pytest.approx(found.composed.bits_per_byte["code"], abs=1e-4)
    (small,) = evaluate_model(tmp_path / "mix", "validation", 0, "cpu", 0, silent)["bytes"].values()
    assert small < 0.1 * result["bytes"]["code"]


def test_text_that_changed_is_not_taken_for_the_old_one(
    run_base: Path, small_text: Path, settings: Settings, tmp_path: Path
) -> None:
    library = Library(tmp_path / "library")
    config = config_of(LearnConfig, settings("prose", "train.steps=2"))
    learn_into(library, run_base, "x", config, tmp_path / "wx", say=silent)
    text = tmp_path / "text"
    shutil.copytree(small_text, text)
    mix = config_of(ComposeConfig, [*settings("", "train.steps=2"), f"data.source={text}"])
    compose_into(tmp_path / "mix", run_base, library, ["x"], mix, tmp_path / "w", say=silent)
    before = evaluate_model(tmp_path / "mix", None, 600, "cpu", 0, silent)
    (text / "prose" / "00.txt").write_text("something else")
    said: list[str] = []
    after = evaluate_model(tmp_path / "mix", None, 600, "cpu", 0, said.append)
    assert (before["source_changed"], after["source_changed"]) == (False, True)
    assert after["bits_per_byte"] == before["bits_per_byte"], "the folder keeps its held-out text"
    assert "has changed" in said[-1]
    # One of an earlier version keeps none: it is refused as before.
    shutil.rmtree(tmp_path / "mix" / "held-out")
    composed = json.loads((tmp_path / "mix" / "composed.json").read_text())
    composed["files"] = {k: v for k, v in composed["files"].items() if not k.startswith("held-out/")}
    composed["sha256"] = sha256_of_json({k: v for k, v in composed.items() if k != "sha256"})
    (tmp_path / "mix" / "composed.json").write_text(json.dumps(composed))
    with pytest.raises(RunError, match="the text has changed") as caught:
        evaluate_model(tmp_path / "mix", None, 600, "cpu", 0, silent)
    assert "--data" in caught.value.hints[0]


def test_long_work_is_refused_before_it_begins(run_base: Path, settings: Settings, tmp_path: Path) -> None:
    library = Library(tmp_path / "library")
    learn = config_of(LearnConfig, settings("prose", "train.steps=2"))
    learn_into(library, run_base, "x", learn, tmp_path / "wx", say=silent)
    with pytest.raises(SkillError, match="has a skill 'x' already"):
        learn_into(library, run_base, "x", learn, tmp_path / "w2", say=silent)
    mix = config_of(ComposeConfig, settings("", "train.steps=2"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(SkillError, match="is there already"):
        compose_into(tmp_path / "full", run_base, library, ["x"], mix, tmp_path / "w2", say=silent)
    with pytest.raises(SkillError, match="no skill 'y'"):
        compose_into(tmp_path / "mix", run_base, library, ["y"], mix, tmp_path / "w2", say=silent)
    with pytest.raises(SkillError, match="named twice"):
        compose_into(tmp_path / "mix", run_base, library, ["x", "x"], mix, tmp_path / "w2", say=silent)
    with pytest.raises(SkillError, match="as many weights"):
        weigh_into(tmp_path / "mix", run_base, library, ["x"], [1.0, 2.0], say=silent)
    assert not (tmp_path / "w2").exists()
    weigh_into(tmp_path / "mix", run_base, library, ["x"], [1.0], say=silent)
    with pytest.raises(SkillError, match="is a composed model"):
        learn_into(library, tmp_path / "mix", "y", learn, tmp_path / "w2", say=silent)
    with pytest.raises(SkillError, match="has no base to be named"):
        open_model(run_base, base=run_base)


def test_parents_are_those_that_a_skill_grew_beside(
    run_base: Path, settings: Settings, tmp_path: Path
) -> None:
    library = Library(tmp_path / "library")
    config = config_of(LearnConfig, settings("prose", "train.steps=2"))
    learn_into(library, run_base, "x", config, tmp_path / "wx", say=silent)
    before = {f: sha256_of(f) for f in (library.path / "x").iterdir()}
    card = learn_into(
        library, run_base, "y", config, tmp_path / "wy", beside=["x"], weights=[0.5], say=silent
    )
    assert set(card.parents) == {"x"}
    assert card.metrics["beside"] == {"x": 0.5}
    assert {f: sha256_of(f) for f in (library.path / "x").iterdir()} == before


def test_switches_reach_the_mixtures_of_a_composed_run(
    run_base: Path, settings: Settings, small_text: Path, tmp_path: Path
) -> None:
    library = Library(tmp_path / "library")
    config = config_of(LearnConfig, settings("prose", "train.steps=2"))
    learn_into(library, run_base, "x", config, tmp_path / "wx", say=silent)
    data = DataConfig(source=str(small_text))
    weigh_into(tmp_path / "mix", run_base, library, ["x"], [1.0], data=data, say=silent)
    plain = evaluate_model(tmp_path / "mix", "validation", 600, "cpu", 0, silent)
    more = evaluate_model(tmp_path / "mix", "validation", 600, "cpu", 0, silent, Switches(extra_parts=1))
    assert more["parts_per_token"]["mean"] > plain["parts_per_token"]["mean"]


def test_load_composed_needs_no_word_of_language_models(
    base_path: Path, library: Library, tmp_path: Path
) -> None:
    weigh_into(tmp_path / "mix", base_path, library, ["code"], [1.0], say=silent)
    core = load_composed(tmp_path / "mix")
    model = open_model(tmp_path / "mix")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens), model.around(core)(tokens))


def test_a_base_of_another_family_is_no_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expertise.skills.bases import BASES

    class Other:
        """A kind that can be opened, but not as a language model."""

        @staticmethod
        def can_open(path: str) -> bool:
            return path.endswith("policy")

    monkeypatch.setitem(BASES._table, "other", "nowhere:Nothing")
    monkeypatch.setitem(BASES._loaded, "other", Other)
    with pytest.raises(SkillError, match="is no language model, but of the kind 'other'"):
        open_model(tmp_path / "policy")
