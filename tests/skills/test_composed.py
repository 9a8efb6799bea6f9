"""Composed models on disk: what is saved comes back bit for bit, what was damaged or changed is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import llama, logits_of, own_model, random_skill, tokens
from torch import nn

from expertise.errors import SkillError
from expertise.mixture.routers.configs import RouterConfig
from expertise.mixture.routers.context import Context
from expertise.mixture.routers.top_k import TopK
from expertise.mixture.routers.top_p import TopP
from expertise.runs.files import sha256_of
from expertise.skills import bases
from expertise.skills.composed import base_of, load_composed, save_composed
from expertise.skills.composed_json import COMPOSED, is_composed, read_composed
from expertise.skills.composing import compose
from expertise.skills.library import Library

NAMES = ["a", "b"]
CONTEXT = Context.Config(context_dim=1, hidden=[8], squash="sigmoid")


class InFolder:
    """A kind of base whose seed stands in a file; its weights follow from that."""

    @staticmethod
    def can_open(path: str) -> bool:
        return (Path(path) / "seed").is_file()

    @staticmethod
    def open(path: str, device: str) -> nn.Module:
        with torch.random.fork_rng():
            return own_model(seed=int((Path(path) / "seed").read_text())).to(device)


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of base that needs no training."""
    monkeypatch.setitem(bases.BASES._table, "in-folder", "nowhere:Nothing")
    monkeypatch.setitem(bases.BASES._loaded, "in-folder", InFolder)


@pytest.fixture
def base_path(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "base"
    path.mkdir(parents=True)
    (path / "seed").write_text("0")
    return path


@pytest.fixture
def base() -> nn.Module:
    return own_model()


@pytest.fixture
def library(tmp_path: Path, base: nn.Module) -> Library:
    found = Library(tmp_path / "library")
    for number, name in enumerate(NAMES):
        skill = random_skill(base, name, "all", rank=2 + number, scaling=0.7, seed=number)
        found.add(skill, base=base, purpose=f"for {name}", metrics={"x": number})
    return found


def composed_model(base: nn.Module, library: Library, **given: Any) -> nn.Module:
    torch.manual_seed(7)
    model = compose(base, library, NAMES, **given)
    for parameter in model.parameters():
        if parameter.requires_grad:  # a start in which every router differs from any other start
            parameter.data.normal_()
    return model


def out(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(model, tokens())


CASES: list[dict[str, Any]] = [
    {"weights": [0.7, -0.3]},
    {"weights": [0.0, 0.0]},
    {"router": CONTEXT, "reads": "pooled"},
    {"router": CONTEXT, "reads": "token"},
    {"router": CONTEXT, "reads": "layer"},
    {"router": TopK.Config(k=1), "reads": "token"},
    {"router": TopP.Config(p=0.6), "reads": "layer"},
    {"router": CONTEXT, "reads": "pooled", "source": "blocks.0"},
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_what_is_saved_comes_back_bit_for_bit(
    base: nn.Module, base_path: Path, library: Library, tmp_path: Path, given: dict[str, Any]
) -> None:
    model = composed_model(base, library, **given)
    state = torch.get_rng_state()
    saved = save_composed(model, tmp_path / "mix", base=base_path, library=library, metrics={"y": 1.5})
    assert read_composed(tmp_path / "mix") == saved
    found = load_composed(tmp_path / "mix")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(found) is type(base)
    assert not found.training
    assert torch.equal(out(found), out(model))
    assert found.composition.names == ("a", "b")
    assert saved.metrics == {"y": 1.5}
    assert saved.weights == given.get("weights")
    again = tmp_path / "again"
    save_composed(found, again, base=base_path, library=library)
    assert torch.equal(out(load_composed(again)), out(model))


def test_a_context_router_comes_back(base: nn.Module, library: Library, tmp_path: Path) -> None:
    config: RouterConfig = Context.Config(context_dim=3, hidden=[4])
    model = composed_model(base, library, router=config)
    save_composed(model, tmp_path / "mix", library=library)
    found = load_composed(tmp_path / "mix", base)
    context = torch.randn(3, 3)
    with torch.no_grad():
        assert torch.equal(found(tokens(), context=context), model(tokens(), context=context))


def test_models_of_transformers_come_back(tmp_path: Path) -> None:
    base = llama()
    skills = [random_skill(base, name, "all-linear", seed=n) for n, name in enumerate(NAMES)]
    model = compose(base, skills, router=CONTEXT, reads="pooled")
    save_composed(model, tmp_path / "mix")
    found = load_composed(tmp_path / "mix", base)
    assert type(found) is type(base)
    assert torch.equal(out(found), out(model))


def test_the_folder_stands_by_itself(
    base: nn.Module, base_path: Path, library: Library, tmp_path: Path
) -> None:
    model = composed_model(base, library, weights=[0.5, 0.5])
    before = {f: sha256_of(f) for f in library.path.rglob("*") if f.is_file()}
    save_composed(model, tmp_path / "mix", base=base_path, library=library)
    assert {f: sha256_of(f) for f in library.path.rglob("*") if f.is_file()} == before
    for name in NAMES:
        for file in (library.path / name).iterdir():
            assert (tmp_path / "mix" / "skills" / name / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(library.path)
    assert torch.equal(out(load_composed(tmp_path / "mix")), out(model))
    copies = Library(tmp_path / "mix" / "skills")
    assert copies.names() == NAMES
    card = copies.card("a")
    assert card is not None
    assert card.purpose == "for a"
    assert not list((tmp_path / "mix").rglob(".*"))


def test_skills_in_memory_are_written(base: nn.Module, base_path: Path, tmp_path: Path) -> None:
    skills = [random_skill(base, name, "all", seed=n) for n, name in enumerate(NAMES)]
    model = compose(base, skills, weights={"b": 2.0})
    save_composed(model, tmp_path / "mix", base=base_path)
    assert torch.equal(out(load_composed(tmp_path / "mix")), out(model))
    assert not list((tmp_path / "mix").rglob(".*"))


def test_the_base_is_found_where_it_was_or_beside_or_where_it_is_said_to_be(
    base: nn.Module, base_path: Path, library: Library, tmp_path: Path
) -> None:
    model = composed_model(base, library, weights=[0.5, 0.5])
    save_composed(model, tmp_path / "models" / "mix", base=base_path, library=library)
    shutil.move(tmp_path / "models", tmp_path / "elsewhere")  # both moved together
    mix = tmp_path / "elsewhere" / "mix"
    assert torch.equal(out(load_composed(mix)), out(model))
    shutil.move(tmp_path / "elsewhere" / "base", tmp_path / "alone")
    with pytest.raises(SkillError, match=r"the base of .*mix is not at .* any more") as caught:
        load_composed(mix)
    assert "--base" in caught.value.hints[0]
    assert torch.equal(out(load_composed(mix, tmp_path / "alone")), out(model))
    assert torch.equal(out(load_composed(mix, str(tmp_path / "alone"))), out(model))
    with pytest.raises(SkillError, match="no model at"):
        load_composed(mix, tmp_path / "nowhere")
    assert base_of(mix, read_composed(mix), tmp_path / "alone") == ("in-folder", str(tmp_path / "alone"))


def test_another_base_is_refused_unless_forced(
    base: nn.Module, base_path: Path, library: Library, tmp_path: Path
) -> None:
    model = composed_model(base, library, weights=[0.5, 0.5])
    save_composed(model, tmp_path / "mix", base=base_path, library=library)
    (base_path / "seed").write_text("1")
    with pytest.raises(SkillError, match="composed on another base: this one has the same shapes with other"):
        load_composed(tmp_path / "mix")
    forced = load_composed(tmp_path / "mix", force=True)
    assert not torch.equal(out(forced), out(model))
    with pytest.raises(SkillError, match="parameters, not"):
        load_composed(tmp_path / "mix", own_model(dense_hidden=32))


def test_a_base_that_was_never_on_disk_must_be_given(
    base: nn.Module, library: Library, tmp_path: Path
) -> None:
    save_composed(composed_model(base, library, weights=[1.0, 0.0]), tmp_path / "mix", library=library)
    with pytest.raises(SkillError, match="does not say where its base is"):
        load_composed(tmp_path / "mix")


def test_every_damaged_file_is_named(
    base: nn.Module, base_path: Path, library: Library, tmp_path: Path
) -> None:
    model = composed_model(base, library, router=CONTEXT, reads="pooled")
    whole = tmp_path / "whole"
    save_composed(model, whole, base=base_path, library=library)
    files = [f.relative_to(whole).as_posix() for f in whole.rglob("*") if f.is_file()]
    assert {COMPOSED, "router.safetensors", "skills/a/card.json"} < set(files)
    for number, name in enumerate(files):
        for damage in ("flip", "cut", "gone"):
            copy = tmp_path / f"{number}-{damage}"
            shutil.copytree(whole, copy)
            content = bytearray((copy / name).read_bytes())
            content[len(content) // 2] ^= 1
            if damage == "gone":
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(bytes(content) if damage == "flip" else bytes(content[:-1]))
            with pytest.raises(SkillError) as caught:
                load_composed(copy, base)
            assert name in caught.value.message
    (whole / "router.safetensors").unlink()
    (whole / "skills" / "b" / "card.json").write_text("{}")
    with pytest.raises(SkillError, match=r"router\.safetensors is missing; skills/b/card\.json is not what"):
        load_composed(whole, base)


def test_another_versions_folder_is_refused(base: nn.Module, library: Library, tmp_path: Path) -> None:
    from expertise.runs.files import sha256_of_json

    save_composed(composed_model(base, library, weights=[1.0, 0.0]), tmp_path / "mix", library=library)
    file = tmp_path / "mix" / COMPOSED
    content = json.loads(file.read_text())
    content.pop("sha256")
    content |= {"schema": 99, "version": "9.1"}
    file.write_text(json.dumps({**content, "sha256": sha256_of_json(content)}))
    with pytest.raises(SkillError, match="has schema 99, this version reads 1") as caught:
        load_composed(tmp_path / "mix", base)
    assert "9.1" in caught.value.hints[0]


@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_what_is_no_composed_model_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert not is_composed(tmp_path / place)
    with pytest.raises(SkillError, match=f"no composed model at .*{place}"):
        load_composed(tmp_path / place)


def test_a_taken_folder_is_left_alone(base: nn.Module, library: Library, tmp_path: Path) -> None:
    model = composed_model(base, library, weights=[1.0, 0.0])
    (tmp_path / "mix").mkdir()
    (tmp_path / "mix" / "mine").write_text("x")
    with pytest.raises(SkillError, match="is there already"):
        save_composed(model, tmp_path / "mix", library=library)
    assert [f.name for f in (tmp_path / "mix").iterdir()] == ["mine"]


def test_nothing_is_left_when_saving_fails(base: nn.Module, library: Library, tmp_path: Path) -> None:
    model = composed_model(base, library, weights=[1.0, 0.0])
    target = tmp_path / "out" / "mix"
    with pytest.raises(SkillError, match="cannot be written as JSON"):
        save_composed(model, target, library=library, metrics={"x": float("nan")})
    assert list(target.parent.iterdir()) == []
    other = Library(tmp_path / "other")
    for name in NAMES:
        other.add(random_skill(base, name, "all", rank=2, seed=9), base=base)
    with pytest.raises(SkillError, match=r"skill a of .*other is not the one in the model"):
        save_composed(model, target, library=other)
    assert list(target.parent.iterdir()) == []


def test_what_cannot_be_described_is_refused(base: nn.Module, library: Library, tmp_path: Path) -> None:
    router = Context(32, 2)
    with pytest.raises(SkillError, match="router was given as a module"):
        save_composed(compose(base, library, NAMES, router=router, reads="token"), tmp_path / "mix")
    with pytest.raises(SkillError, match="not composed"):
        save_composed(base, tmp_path / "mix")
    assert not (tmp_path / "mix").exists()


def test_a_router_of_another_shape_is_refused(base: nn.Module, library: Library, tmp_path: Path) -> None:
    """Whole by its digests, but of another model: put there by hand, with the digest made to fit."""
    from expertise.runs.files import sha256_of_json

    for name, hidden in (("small", [4]), ("large", [8])):
        config = Context.Config(context_dim=1, hidden=hidden)
        model = composed_model(base, library, router=config, reads="pooled")
        save_composed(model, tmp_path / name, library=library)
    router = tmp_path / "small" / "router.safetensors"
    shutil.copy(tmp_path / "large" / "router.safetensors", router)
    file = tmp_path / "small" / COMPOSED
    content = json.loads(file.read_text())
    content.pop("sha256")
    content["files"]["router.safetensors"] = {"size": router.stat().st_size, "sha256": sha256_of(router)}
    file.write_text(json.dumps({**content, "sha256": sha256_of_json(content)}))
    with pytest.raises(SkillError, match="does not fit its"):
        load_composed(tmp_path / "small", base)
