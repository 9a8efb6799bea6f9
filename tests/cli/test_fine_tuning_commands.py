"""Fine-tuning by commands: a run from a run, its numbers and its page, and asking it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

RECIPE = """
init = "run"

[data]
source = "chat.jsonl"
kind = "messages"
template = '''
{% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>
{% endfor %}{% if add_generation_prompt %}a:{% endif %}'''

[optimizer]
learning_rate = 1e-3
schedule = "constant"

[train]
steps = 3
batch_size = 2
accumulation = 2
threads = 1
"""


@pytest.fixture(scope="module")
def tuned(home: Path, expertise, run_folder: Path) -> Path:
    said = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "red"}] for i in range(40)
    ]
    said[3][0]["content"] = "a very long question " * 9
    said[4][1]["content"] = "a very long answer " * 9
    text = "".join(json.dumps({"messages": messages}) + "\n" for messages in said)
    (home / "chat.jsonl").write_text(text, "utf-8")
    (home / "chat.toml").write_text(RECIPE, "utf-8")
    done = expertise("train", "chat.toml")
    assert done.returncode == 0, done.stderr
    assert "1 of 34 training records are cut: they are longer than the context of 32 tokens" in done.stderr
    assert "1 of 34 training records are left out: they have nothing to learn within 32" in done.stderr
    return home / "runs" / "chat"


def test_the_run_reads_back_and_goes_on(home: Path, tuned: Path, expertise) -> None:
    recipe = (tuned / "recipe.toml").read_text("utf-8")
    assert 'init = "run"' in recipe
    assert "dim = 32" in recipe
    again = expertise("train", "chat.toml", "--set", "train.steps=5", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["step"] == 5
    refused = expertise("train", "chat.toml", "--set", "data.kind=prompt", "--set", "data.template=")
    assert refused.returncode == 2
    assert "data.kind" in refused.stderr


def test_it_is_evaluated_and_drawn(tuned: Path, expertise) -> None:
    done = expertise("evaluate", "runs/chat", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # What the assistant says, with the marker that ends its turn: "red</s>" is seven bytes.
    assert result["bytes"]["chat"] % len("red</s>") == 0
    page = expertise("inspect", "runs/chat", "--json")
    assert page.returncode == 0, page.stderr
    record = json.loads((tuned / "report.json").read_text("utf-8"))
    assert record["summary"]["bits_per_byte"]["chat"] == pytest.approx(
        result["bits_per_byte"]["chat"], abs=1e-4
    )
    assert len(record["passages"]) == 1


def test_it_is_asked_with_its_template(tuned: Path, expertise) -> None:
    done = expertise("generate", "runs/chat", "7?", "--chat", "-n", "8", "--greedy", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt"] == "7?"
    assert "</s>" not in answer["text"]
    assert all(token["generated"] for token in answer["tokens"]), "the answer alone"
    shown = expertise("generate", "runs/chat", "7?", "--chat", "-n", "8", "--greedy")
    assert shown.stdout == answer["text"] + "\n"


def test_a_run_of_plain_text_cannot_be_chatted_with(run_folder: Path, expertise) -> None:
    done = expertise("generate", "run", "7?", "--chat")
    assert done.returncode == 2
    assert "no chat template" in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_are_one_line_and_write_nothing(home: Path, tuned: Path, expertise) -> None:
    (home / "bad.jsonl").write_text('{"messages": [{"role": "usr", "content": "a"}]}\n', "utf-8")
    for setting, named in (
        ("init=nowhere", "init: no run at nowhere"),
        ("init=", "the recipe lacks model"),
        ("model.dim=64", "model.dim is 64, but init (run) has 32"),
        ("tokenizer.vocab_size=290", "tokenizer.vocab_size is 290"),
        ("data.source=bad.jsonl", "bad.jsonl, line 1, message 1: unknown role 'usr'"),
        ("data.kind=promts", "data.kind: unknown 'promts'"),
        ("data.template={{ x", "data.template, line 1"),
        ("data.pack=document", "data.pack"),
    ):
        done = expertise("train", "chat.toml", "--out", "refused", "--set", setting)
        assert done.returncode == 2, setting
        lines = done.stderr.strip().splitlines()
        lines = lines[[line.startswith("error: ") for line in lines].index(True) :]
        assert named in lines[0], setting
        assert len(lines) <= 4
        assert not (home / "refused").exists()


def test_a_run_without_init_keeps_its_chat_template_and_a_changed_file_is_told(home: Path, expertise) -> None:
    template = home / "kept.jinja"
    template.write_text(
        "{{ strftime_now('%Y') }}{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
    )
    rows = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "a stone"}]
    said = [{"messages": [{**row, "content": f"{row['content']} {i}"} for row in rows]} for i in range(60)]
    (home / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    data = "data={source='said.jsonl', kind='messages', template_file='kept.jinja'}"
    asked = ["train", "small.toml", "--out", "said", "--set", data, "--set", "train.batch_size=2", "--set"]
    assert expertise(*asked, "train.steps=1").returncode == 0
    kept = tomllib.loads((home / "said" / "recipe.toml").read_text())["data"]
    assert kept["template_file"] == ""
    assert "strftime_date" in kept["template"]
    assert kept["template"].endswith(template.read_text())
    assert expertise(*asked, "train.steps=2").returncode == 0
    template.write_text(template.read_text().replace(";", "!"))
    done = expertise(*asked, "train.steps=3")
    assert done.returncode == 2
    assert "data.template" in done.stderr
