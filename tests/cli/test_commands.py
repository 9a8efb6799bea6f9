"""What each command does when all is well."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest


def test_train_makes_a_run_with_all_its_files(run_folder: Path) -> None:
    names = {path.name for path in run_folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "recipe.toml",
        "tokenizer.json",
        "data.json",
        "held-out",
        "metrics.jsonl",
        "timing.jsonl",
        "checkpoints",
    }
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [3, 6]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 7))
    assert {"loss", "balance_expert", "balance_entropy", "load_0", "load_1", "learning_rate"} <= set(train[0])
    assert not {"time", "seconds"} & set(train[0])


def test_the_whole_command_as_its_own_process(run_folder: Path, process) -> None:
    done = process("generate", "run", "red green", "-n", "4", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    wrong = process("generate", "nowhere", "red")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: no model at nowhere")


def test_train_on_a_finished_run_changes_nothing(run_folder: Path, expertise) -> None:
    before = (run_folder / "metrics.jsonl").read_bytes()
    done = expertise("train", "small.toml", "--out", "run", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["step"] == 6
    assert (run_folder / "metrics.jsonl").read_bytes() == before


def test_train_goes_on_to_more_steps(run_folder: Path, home: Path, expertise) -> None:
    shutil.copytree(run_folder, home / "longer")
    done = expertise("train", "small.toml", "--out", "longer", "--set", "train.steps=8", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 8


def test_check_trains_nothing(home: Path, expertise) -> None:
    done = expertise("train", "small.toml", "--out", "unborn", "--check")
    assert done.returncode == 0, done.stderr
    assert not (home / "unborn").exists()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_prints_the_documented_object(run_folder: Path, expertise, split: str) -> None:
    done = expertise("evaluate", "run", "--split", split, "--json")
    result = json.loads(done.stdout)
    assert set(result["bits_per_byte"]) == {"prose", "code", "mean"}
    assert result["parts_per_token"]["mean"] >= 1
    assert len(result["parts_per_token"]["layers"]) == 2
    assert result["tasks"] == {}
    human = expertise("evaluate", "run", "--split", split)
    assert "prose" in human.stdout


def test_generate_is_repeatable_and_shows_parts(run_folder: Path, expertise) -> None:
    first = expertise("generate", "run", "red green", "-n", "8", "--seed", "1")
    again = expertise("generate", "run", "red green", "-n", "8", "--seed", "1")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert first.stdout.startswith("red green")
    shown = expertise("generate", "run", "red green", "-n", "8", "--seed", "1", "--show", "parts")
    assert "[" in shown.stdout
    record = json.loads(expertise("generate", "run", "red green", "-n", "8", "--seed", "1", "--json").stdout)
    assert "red green" + record["text"] == first.stdout.removesuffix("\n")
    assert all(1 <= count <= 3 for token in record["tokens"] for count in token["parts"])


def test_greedy_never_repeats_four_tokens(run_folder: Path, expertise) -> None:
    record = json.loads(expertise("generate", "run", "red", "-n", "60", "--greedy", "--json").stdout)
    texts = [token["text"] for token in record["tokens"]]
    runs = [tuple(texts[i : i + 4]) for i in range(len(texts) - 3)]
    assert len(runs) == len(set(runs))


def test_inspect_draws_the_page_and_its_numbers(run_folder: Path, expertise) -> None:
    done = expertise("inspect", "run")
    assert done.returncode == 0, done.stderr
    page = run_folder / "report.html"
    assert done.stdout.strip().endswith("report.html")
    assert page.read_text("utf-8").lstrip().lower().startswith("<!doctype html>")
    record = json.loads((run_folder / "report.json").read_text("utf-8"))
    assert len(record["layers"]) == 2
    assert record["summary"]["tokens_counted"] > 0
    assert {"zlib", "lzma"} == set(record["compressors"])
    last = record["curves"]["evaluations"][-1]
    assert record["summary"]["bits_per_byte"] == last["bits_per_byte"]


def test_demo_trains_draws_and_is_not_trained_again(home: Path, expertise) -> None:
    small = [
        "data.source=text",
        "tokenizer.vocab_size=300",
        "model.dim=32",
        "model.num_layers=1",
        "model.context=32",
    ]
    small += ["train.steps=4", "train.batch_size=4", "evaluation.bytes_per_domain=2000", "train.threads=1"]
    options = [option for setting in small for option in ("--set", setting)]
    first = expertise("demo", "--out", "demo", "--json", *options)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert Path(home / result["report"]).is_file()
    assert len(result["samples"]) == 3
    again = expertise("demo", "--out", "demo", *options)
    assert again.returncode == 0
    assert "start afresh" in again.stderr
    assert "report.html" in again.stdout.splitlines()[-1]


def test_recipes_lists_and_prints(expertise) -> None:
    listed = expertise("recipes")
    assert {"demo", "demo-top-k"} <= {line.split()[0] for line in listed.stdout.splitlines()}
    assert "[model.router]" in expertise("recipes", "demo").stdout
    assert json.loads(expertise("recipes", "demo", "--json").stdout)["model"]["dim"] > 0


PUBLISHED = [
    "deepseekmoe-2b",
    "deepseekmoe-16b",
    "deepseekmoe-145b",
    "deepseekmoe-142b-half",
    "llama2-7b-shape",
    "dynamic-moe-3.5b",
]


def test_published_models_are_found_by_name(expertise) -> None:
    abouts = {each["name"]: each["about"] for each in json.loads(expertise("recipes", "--json").stdout)}
    for name in PUBLISHED:
        assert len(abouts[name]) > 20
        assert '[data]\nsource = ""' in expertise("recipes", name).stdout


def test_plan_gives_one_object_for_one_name_and_a_list_for_several(expertise) -> None:
    one = json.loads(expertise("plan", "deepseekmoe-16b", "--json").stdout)
    assert one["name"] == "deepseekmoe-16b"
    assert {"parameters_total", "parameters_activated", "flops_per_sequence", "flops_per_token"} <= set(one)
    assert "memory_bytes" not in one
    assert "assumed_parts" not in one
    several = json.loads(expertise("plan", "small.toml", "deepseekmoe-16b", "demo", "--json").stdout)
    assert [each["name"] for each in several] == ["small", "deepseekmoe-16b", "demo"]
    assert several[1] == one
    assert several[0]["assumed_parts"] == 2
    changed = json.loads(expertise("plan", "small.toml", "--json", "--set", "model.num_layers=4").stdout)
    assert changed["parameters_by_kind"]["routed"] == 2 * several[0]["parameters_by_kind"]["routed"]


def test_plan_stands_side_by_side(home: Path, expertise) -> None:
    before = sorted(home.rglob("*"))
    done = expertise("plan", *PUBLISHED)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == PUBLISHED
    assert len({len(line) for line in lines}) == 1
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[1:]]
    rows = {label: values for label, *values in cells}
    assert [rows["parameters"][i] for i in (0, 2, 5)] == ["1.967 B", "144.6 B", "3.489 B"]
    assert [rows["routed"][i] for i in (2, 4)] == ["12.66 B of 135.1 B", "-"]
    assert rows["routed per token"] == ["7", "6", "12", "6", "-", "2 (assumed_parts)"]
    assert rows["FLOPs per sequence"][1] == "75.91 T"
    assert rows["checkpoint"][0] == "23.61 GB"
    assert sorted(home.rglob("*")) == before


def test_every_command_has_an_example_in_its_help(expertise) -> None:
    from expertise.cli.main import COMMANDS
    from expertise.registry import Registry

    def check(commands: Registry, *group: str) -> None:
        for name, entry in commands.items():
            done = expertise(*group, name, "--help")
            assert done.returncode == 0
            if isinstance(entry, Registry):
                check(entry, *group, name)
                continue
            words = " ".join(["Example: expertise", *group, name])
            assert words in " ".join(done.stdout.split()), words
            assert "--json" in done.stdout, words

    check(COMMANDS)


def test_the_page_of_commands_is_current() -> None:
    import importlib.util

    path = Path(__file__).parents[2] / "docs/make_cli.py"
    spec = importlib.util.spec_from_file_location("make_cli", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert path.with_name("cli.md").read_text("utf-8") == module.page(), "run `make docs`"


def test_evaluate_under_switches(run_folder: Path, expertise) -> None:
    switches = ("--mask-top", "0.25", "--renew-softmax", "--drop-always", "--p", "0.3")
    done = expertise("evaluate", "run", *switches, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["switches"] == {
        "mask_top": 0.25,
        "renew_softmax": True,
        "drop_always": True,
        "extra_parts": 1,
        "p": 0.3,
    }
    assert result["parts_per_token"]["mean"] >= 2
    human = expertise("evaluate", "run", "--p", "0.3")
    assert human.stdout.startswith("with p = 0.3\n")
    plain = expertise("evaluate", "run", "--json")
    assert json.loads(plain.stdout)["switches"] == {}
    assert "with" not in expertise("evaluate", "run").stdout
