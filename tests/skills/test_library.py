"""The library on disk: what is added is found again, whole, and nothing that reads writes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judges
import pytest
import torch
from judges import made_up

from expertise.errors import DiskError, SkillError
from expertise.runs.files import sha256_of_json
from expertise.skills import Library, Skill, fingerprint
from expertise.skills.card import CARD, card_text
from expertise.skills.peft_config import CONFIG, WEIGHTS

Make = Callable[..., Any]
NET = {"body.0": (2, 6, 8), "body.2.1": (3, 8, 3)}


def same(one: Skill, other: Skill) -> bool:
    return list(one.factors) == list(other.factors) and all(
        torch.equal(made.A, other.factors[a].A)
        and torch.equal(made.B, other.factors[a].B)
        and made.scaling == other.factors[a].scaling
        for a, made in one.factors.items()
    )


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Three skills of one base; `c` knows none."""
    library, base = Library(tmp_path / "skills"), judges.Net()
    for seed, name in enumerate("abc"):
        library.add(made_up(NET, seed, name), base=None if name == "c" else base, purpose=f"does {name}")
    return library


def test_a_skill_comes_back_as_it_was_with_all_that_its_card_says(tmp_path: Path) -> None:
    library, base, skill = Library(tmp_path / "new" / "skills"), judges.Net(), made_up(NET)
    assert library.names() == []
    written = library.add(
        skill,
        name="walk",
        base=base,
        purpose="walks – slowly",
        data="walks.jsonl",
        data_digest="ab" * 32,
        metrics={"loss": 0.25, "by task": {1: 2.0}},
        scale_convention="raw",
    )
    back = library.load("walk", base)
    assert same(back, skill)
    assert back.name == "walk"
    card = back.card
    assert card == library.card("walk")
    assert card is not None
    assert written.files == card.files
    assert card.base == fingerprint(base)
    assert (card.purpose, card.data, card.data_digest) == ("walks – slowly", "walks.jsonl", "ab" * 32)
    assert card.metrics == {"loss": 0.25, "by task": {"1": 2.0}}
    assert card.targets == {"body.0": 2, "body.2.1": 3}
    assert (card.scale_convention, card.parents) == ("raw", {})
    assert card.date.startswith("20")
    assert card.date.endswith("+00:00")
    assert set(card.files) == {CONFIG, WEIGHTS}
    assert card.files[WEIGHTS]["size"] == (library.path / "walk" / WEIGHTS).stat().st_size
    assert sorted(p.name for p in (library.path / "walk").iterdir()) == [CONFIG, WEIGHTS, CARD]


def test_reading_writes_nothing(library: Library, tmp_path: Path) -> None:
    base = judges.Net()
    for path in (library.path, *library.path.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree(library.path)
    library.names()
    for name in library.names():
        library.card(name)
        library.load(name, base)
    library.compare()
    assert library.verify().ok
    library.export_peft("a", tmp_path / "out")
    assert tree(library.path) == before


def test_other_skills_stay_as_they_are_to_the_byte(library: Library) -> None:
    before = tree(library.path)
    library.add(made_up(NET, 9, "d"), parents=["a", "b"])
    library.merge(["a", "b"], name="e", rank=2)
    library.rename("d", "f")
    after = tree(library.path)
    assert {key: after[key] for key in before} == before


def test_a_hundred_skills_are_listed_and_shown_at_once(tmp_path: Path) -> None:
    library, skill = (
        Library(tmp_path),
        made_up({f"layers.{i}.{n}": (4, 64, 64) for i in range(16) for n in "qkvo"}),
    )
    first = library.path / "s0"
    library.add(skill, name="s0")
    for number in range(1, 100):
        folder = Path(shutil.copytree(first, library.path / f"s{number}"))
        card = library.card("s0")
        assert card is not None
        (folder / CARD).write_text(card_text(card))
        (folder / WEIGHTS).write_bytes(b"never read")
    times = []
    for _ in range(4):
        start = time.perf_counter()
        cards = [library.card(name) for name in library.names()]
        times.append(time.perf_counter() - start)
    assert len(cards) == 100
    assert all(card is not None and len(card.targets) == 64 for card in cards)
    assert min(times) < 0.1


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "a b", "ä", "-x", "x" * 101])
def test_names_that_cannot_be_folders_everywhere_are_refused(library: Library, name: str) -> None:
    before = tree(library.path)
    for attempt in (
        lambda: library.add(made_up(NET), name=name),
        lambda: library.rename("a", name),
        lambda: library.merge(["a"], name=name),
    ):
        with pytest.raises(SkillError, match="cannot be a skill's name"):
            attempt()
    assert tree(library.path) == before


def test_a_taken_name_is_refused_and_a_wrong_one_gets_the_nearest(library: Library) -> None:
    before = tree(library.path)
    for attempt in (
        lambda: library.add(made_up(NET), name="a"),
        lambda: library.rename("b", "a"),
        lambda: library.merge(["a", "b"], name="c"),
    ):
        with pytest.raises(SkillError, match=r"has a skill '[ac]' already"):
            attempt()
    library.rename("c", "walking")
    for attempt in (
        lambda: library.load("walkin"),
        lambda: library.card("walkin"),
        lambda: library.rename("walkin", "x"),
        lambda: library.remove("walkin"),
        lambda: library.export_peft("walkin", "x"),
        lambda: library.compare(["a", "walkin"]),
        lambda: library.add(made_up(NET), name="x", parents=["walkin"]),
    ):
        with pytest.raises(SkillError, match="no skill 'walkin' in") as caught:
            attempt()
        assert caught.value.hints == ("did you mean 'walking'?",)
    with pytest.raises(SkillError, match="no skill"):
        library.load("../skills/a")
    assert set(tree(library.path)) == {key.replace("c/", "walking/") for key in before}


def test_a_skill_of_another_base_is_refused_unless_forced(library: Library) -> None:
    other = judges.Net()
    with torch.no_grad():
        other.body[0].bias[0] += 1
    message = "skill a was learnt on another base: this one has the same shapes with other weights"
    with pytest.raises(SkillError, match=message):
        library.load("a", other)
    assert same(library.load("a", other, force=True), library.load("a"))
    library.load("c", other)  # its base is unknown: only shapes are compared
    other.body[0] = torch.nn.Linear(6, 9)
    for name in "ac":
        with pytest.raises(SkillError, match=r"at body\.0: 6 → 8 against 6 → 9"):
            library.load(name, other, force=True)


def test_a_skill_that_does_not_fit_or_is_not_finite_is_not_added(library: Library) -> None:
    before = tree(library.path)
    with pytest.raises(SkillError, match=r"skill 'x' does not fit the base at body\.0: 5 → 8"):
        library.add(made_up({"body.0": (2, 5, 8)}), name="x", base=judges.Net())
    skill = made_up(NET)
    skill.factors["body.0"].B[1, 1] = torch.inf
    with pytest.raises(SkillError, match=r"skill x is not finite at body\.0"):
        library.add(skill, name="x")
    with pytest.raises(SkillError, match="the card of x cannot be written as JSON"):
        library.add(made_up(NET), name="x", metrics={"loss": float("nan")})
    with pytest.raises(SkillError, match="the card of x cannot be written as JSON"):
        library.add(made_up(NET), name="x", metrics={"model": judges.Net()})
    assert tree(library.path) == before


def test_renaming_and_removing(library: Library) -> None:
    skill = library.load("a")
    library.rename("a", "z")
    assert library.names() == ["b", "c", "z"]
    assert same(library.load("z"), skill)
    card = library.card("z")
    assert card is not None
    assert card.name == "z"
    assert json.loads((library.path / "z" / CARD).read_text())["name"] == "z"
    assert library.verify().ok
    library.remove("z")
    assert library.names() == ["b", "c"]
    assert sorted(path.name for path in library.path.iterdir()) == [".lock", "b", "c"]


def test_parents_are_named_with_the_digest_of_their_weights(library: Library) -> None:
    card = library.add(made_up(NET, 9, "d"), parents=["a", "c"])
    parent = library.card("a")
    assert parent is not None
    assert list(card.parents) == ["a", "c"]
    assert card.parents["a"] == parent.files[WEIGHTS]["sha256"]


def test_a_skill_goes_to_another_library_with_what_its_card_says(library: Library, tmp_path: Path) -> None:
    other = Library(tmp_path / "other")
    card = other.add(library.load("a"), name="copy", purpose="a copy")
    before = library.card("a")
    assert before is not None
    assert (card.base, card.targets, card.purpose) == (before.base, before.targets, "a copy")
    assert same(other.load("copy", judges.Net()), library.load("a"))


def test_a_folder_of_another_library_is_taken_with_its_card(library: Library, tmp_path: Path) -> None:
    other, base = Library(tmp_path / "other"), judges.Net()
    text = (library.path / "a" / CARD).read_text("utf-8").replace("+00:00", "+01:00", 1)
    content = json.loads(text)
    content.pop("sha256")
    (library.path / "a" / CARD).write_text(json.dumps({**content, "sha256": sha256_of_json(content)}))
    before = tree(library.path)
    other.add_folder(library.path / "a")
    assert other.card("a") == library.card("a"), "its date, too"
    assert other.add_folder(library.path / "c", name="d", base=base).base == fingerprint(base)
    assert same(other.load("d", base), library.load("c"))
    assert tree(library.path) == before
    with pytest.raises(SkillError, match="other has a skill 'a' already"):
        other.add_folder(library.path / "a")
    changed = judges.Net()
    with torch.no_grad():
        changed.body[0].weight.add_(1)  # type: ignore[operator]
    with pytest.raises(SkillError, match="skill b was learnt on another base"):
        other.add_folder(library.path / "b", base=changed)
    assert other.add_folder(library.path / "b", base=changed, force=True).base == fingerprint(base)


def test_what_is_something_else_is_no_library(library: Library, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text("")
    for folder, what in ((library.path / "a", "is a skill"), (run, "is a run")):
        for use in (
            Library(folder).names,
            lambda folder=folder: Library(folder).add(made_up(NET)),
            Library(folder).verify,
        ):
            with pytest.raises(SkillError, match=f"{folder} {what}, not a library"):
                use()
    with pytest.raises(SkillError, match="is no library: no folder in it is a skill") as caught:
        Library(tmp_path).verify()
    assert caught.value.hints == (f"{library.path} is one",)


def test_a_folder_that_was_moved_by_hand_has_its_new_name(library: Library) -> None:
    os.rename(library.path / "a", library.path / "moved")
    card = library.card("moved")
    assert card is not None
    assert card.name == "moved"
    library.load("moved", judges.Net())
    check = library.verify().skills[2]
    assert check.notes == ("its card calls it 'a': the folder was moved, and its name counts",)
    library.rename("moved", "a")
    assert library.verify().skills[0].notes == ()


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_pefts_is_taken_as_it_is_and_given_back(tmp_path: Path, peft_adapter: Make) -> None:
    base, library = judges.llama(), Library(tmp_path / "skills")
    folder, model = peft_adapter(base, r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj"])
    card = library.import_peft(folder, name="q", base=base, purpose="asks", data="questions.txt")
    assert (card.base, card.scale_convention, card.ranks) == (fingerprint(base), "alpha/sqrt(r)", (3,))
    assert set(card.files) == {CONFIG, WEIGHTS, "README.md"}
    assert all((library.path / "q" / n).read_bytes() == (folder / n).read_bytes() for n in card.files)
    out = library.export_peft("q", tmp_path / "out" / "q")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        n: (folder / n).read_bytes() for n in card.files
    }
    assert [p.name for p in out.parent.iterdir()] == ["q"]
    torch.testing.assert_close(
        judges.logits(judges.opened(base, out)), judges.logits(model.eval()), rtol=0, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore")
def test_two_adapters_summed_by_hand_are_what_peft_computes_with_scales(
    tmp_path: Path, peft_adapter: Make
) -> None:
    """Weights 0.7 and -0.3, on linear layers and on stacked experts, ranks and alphas apart."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    for base, targets in (
        (judges.llama(), {"target_modules": ["q_proj", "down_proj"]}),
        (judges.mixture(), {"target_modules": ["o_proj"], "target_parameters": experts}),
    ):
        library = Library(tmp_path / type(base).__name__)
        folders = [
            peft_adapter(base, seed, r=r, lora_alpha=alpha, **targets)[0]
            for seed, (r, alpha) in enumerate([(4, 6), (2, 5)])
        ]
        for name, folder in zip("ab", folders, strict=True):
            library.import_peft(folder, name=name, base=base)
        model = PeftModel.from_pretrained(base, folders[0], adapter_name="a")
        model.load_adapter(folders[1], adapter_name="b")
        model.base_model.set_adapter(["a", "b"])
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale("a", 0.7)
                module.set_scale("b", -0.3)
        wanted = judges.logits(model.eval())
        plain = type(base)(base.config).eval()
        plain.load_state_dict(
            {k.replace(".base_layer", ""): v for k, v in base.state_dict().items() if "lora_" not in k}
        )
        skills = library.load_all(["a", "b"], plain)
        by_hand = judges.merged(plain, {0.7: skills[0].factors, -0.3: skills[1].factors})
        torch.testing.assert_close(judges.logits(by_hand), wanted, rtol=0, atol=2e-5)
        library.merge(["a", "b"], name="sum", weights=[0.7, -0.3], base=plain)
        summed = judges.opened(plain, library.path / "sum")
        torch.testing.assert_close(judges.logits(summed), wanted, rtol=0, atol=2e-5)
        shutil.rmtree(tmp_path / "adapter-0")
        shutil.rmtree(tmp_path / "adapter-1")


@pytest.mark.filterwarnings("ignore")
def test_a_folder_dropped_in_by_hand_is_unverified_until_it_gets_a_card(
    tmp_path: Path, peft_adapter: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    base, library = judges.llama(), Library(tmp_path)
    folder, _ = peft_adapter(base, r=3, target_modules=["q_proj"])
    assert library.names() == ["adapter-0"]
    assert library.card("adapter-0") is None
    check = library.verify().skills[0]
    assert check.problems == ()
    assert set(check.missing) >= {"purpose", "base", "data", "metrics", "date", "parents", "files"}
    capsys.readouterr()
    assert library.load("adapter-0", base).card is None
    assert capsys.readouterr().err == f"{folder} has no card.json: taken as it is, unverified\n"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    library.import_peft(folder, purpose="asks")
    card = library.import_peft(folder, base=base, data="questions.txt")
    assert (card.purpose, card.data, card.base) == ("asks", "questions.txt", fingerprint(base))
    assert library.card("adapter-0") == card
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != CARD} == files
    assert library.verify().skills[0].missing == ("data_digest",)
    library.merge(["adapter-0"], name="made")
    assert library.verify().skills[1].missing == ("purpose",)
    assert library.load("adapter-0", base).card == card
    assert capsys.readouterr().err == ""


def test_what_is_no_adapter_is_refused_with_the_reason(library: Library, tmp_path: Path) -> None:
    with pytest.raises(SkillError, match=r"no adapter at .*nothing"):
        library.import_peft(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SkillError, match=r"no adapter at .*empty: it has no adapter_config\.json"):
        library.import_peft(tmp_path / "empty")
    (tmp_path / "empty" / CONFIG).write_text("{}")
    (tmp_path / "empty" / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SkillError, match="keeps its weights as a pickle") as caught:
        library.import_peft(tmp_path / "empty")
    shutil.copytree(tmp_path / "empty", library.path / "pickled")
    assert "keeps its weights as a pickle" in library.verify().skills[-1].problems[0]
    assert caught.value.hints == ("save it again with PEFT: save_pretrained(…, safe_serialization=True)",)
    with pytest.raises(SkillError, match="is a file, not a library"):
        Library(library.path / "a" / CARD).names()
    with pytest.raises(SkillError, match="is a file, not a library"):
        Library(library.path / "a" / CARD).add(made_up(NET))


def test_nothing_is_exported_over_what_is_there(library: Library, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    for there in (tmp_path / "full", tmp_path / "full" / "thesis.tex"):
        with pytest.raises(SkillError, match="is there already"):
            library.export_peft("a", there)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "free").mkdir()
    library.export_peft("a", tmp_path / "free")
    assert sorted(path.name for path in (tmp_path / "free").iterdir()) == [CONFIG, WEIGHTS]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "full", "skills"]


def test_a_card_of_another_version_is_named_and_kept(library: Library) -> None:
    content = json.loads((library.path / "a" / CARD).read_text())
    content |= {"schema": 2, "version": "9.0", "new": 1}
    del content["sha256"]
    text = json.dumps({**content, "sha256": sha256_of_json(content)})
    (library.path / "a" / CARD).write_text(text)
    for attempt in (lambda: library.card("a"), lambda: library.load("a"), lambda: library.rename("a", "x")):
        with pytest.raises(SkillError, match=r"card\.json has schema 2, this version reads 1") as caught:
            attempt()
        assert caught.value.hints == ("it was written by expertise 9.0: use that",)
    assert (library.path / "a" / CARD).read_text() == text


@pytest.mark.parametrize(
    "made_up_field",
    [
        {"files": {"../b/card.json": {"size": 1, "sha256": ""}}},
        {"files": {"..": {"size": 1, "sha256": ""}}},
        {"files": {CONFIG: 3}},
        {"files": {CONFIG: {}}},
        {"files": None},
        {"base": {"weights": ""}},
        {"base": "x"},
        {"targets": ["q"]},
        {"targets": {"q": "2"}},
        {"data": 3},
        {"name": 3},
        {"scale_convention": "mine"},
        {"more": 1},
    ],
)
def test_a_card_that_was_made_up_is_damaged_whatever_its_digest(
    library: Library, made_up_field: dict[str, Any], tmp_path: Path
) -> None:
    content = json.loads((library.path / "a" / CARD).read_text())
    del content["sha256"]
    content |= made_up_field
    (library.path / "a" / CARD).write_text(json.dumps({**content, "sha256": sha256_of_json(content)}))
    for attempt in (
        lambda: library.card("a"),
        lambda: library.load("a"),
        lambda: library.export_peft("a", tmp_path / "out" / "x"),
    ):
        with pytest.raises(SkillError, match=r"damaged skill .*a: card\.json is not what was written"):
            attempt()
    assert library.verify().skills[0].problems != ()
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_no_half_skill(
    library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tree(library.path)
    monkeypatch.setattr(os, "fsync", full)
    for attempt in (
        lambda: library.add(made_up(NET), name="x"),
        lambda: library.merge(["a", "b"], name="x"),
        lambda: library.export_peft("a", tmp_path / "out"),
    ):
        with pytest.raises(DiskError, match=r"cannot write .*: No space left on device"):
            attempt()
    assert tree(library.path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["skills"]


def test_merging_says_what_it_did(library: Library) -> None:
    base = judges.Net()
    exact = library.merge(["a", "b"], name="sum", weights=[0.5, -2.0], purpose="both")
    a, b = library.load_all(["a", "b"], base)
    back = library.load("sum", base)
    for address, made in back.factors.items():
        wanted = 0.5 * a.factors[address].delta() - 2.0 * b.factors[address].delta()
        torch.testing.assert_close(made.delta(), wanted, rtol=0, atol=1e-5)
    assert exact.error == 0.0
    card = back.card
    assert card is not None
    assert (card.purpose, card.ranks, card.base) == ("both", (4, 6), fingerprint(base))
    assert list(card.parents) == ["a", "b"]
    cut = library.merge(["a", "b"], name="cut", rank=3)
    card = library.card("cut")
    assert card is not None
    assert card.metrics["merge"] == {
        "skills": ["a", "b"],
        "weights": [1.0, 1.0],
        "rank": 3,
        "error": cut.error,
    }
    assert 0 < cut.error < 1
    library.merge(["a", "c"], name="unknown")
    card = library.card("unknown")
    assert card is not None
    assert card.base is None


def test_skills_of_different_bases_are_merged_only_by_force(library: Library) -> None:
    other = judges.Net()
    with torch.no_grad():
        other.body[0].bias[0] += 1
    library.add(made_up(NET, 7, "d"), base=other)
    with pytest.raises(SkillError, match="learnt on different bases"):
        library.merge(["a", "d"], name="sum")
    library.merge(["a", "d"], name="sum", force=True)
    card = library.card("sum")
    assert card is not None
    assert card.base is None
