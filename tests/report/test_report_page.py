"""The page as text: what it says, what it leaves out, that nothing gets out of it, that it is one file."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from page_reader import PageReader, require_sound
from report_records import ODD, record, small

import expertise.report
from expertise.report.language_model import render
from expertise.report.records import LanguageModelRecord, from_json, to_json


@pytest.fixture(scope="module")
def demo(page_of: Callable[[str], str]) -> str:
    return page_of("demo")


@pytest.mark.parametrize("case", ["demo", *ODD])
def test_every_record_gives_one_sound_file(page_of: Callable[[str], str], case: str) -> None:
    require_sound(page_of(case))


def test_the_same_record_gives_the_same_bytes_in_another_process(demo: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from report_records import record\n"
    )
    script += "from expertise.report.language_model import render\n"
    script += "from expertise.report.records import LanguageModelRecord, from_json\n"
    script += "page = render(from_json(LanguageModelRecord, record()))\n"
    script += "open(sys.argv[1], 'w', encoding='utf-8').write(page)"
    target = tmp_path / "page.html"
    subprocess.run(
        [sys.executable, "-c", script, target], check=True, env=os.environ | {"PYTHONHASHSEED": "7"}
    )
    assert target.read_bytes() == demo.encode()


@pytest.mark.parametrize("case", ["demo", "hostile", "just begun", "dense"])
def test_a_record_that_went_through_json_gives_the_same_page(case: str) -> None:
    made = from_json(LanguageModelRecord, record() if case == "demo" else ODD[case]())
    before = copy.deepcopy(made)
    page = render(made)
    assert made == before
    values = json.loads(json.dumps(to_json(made)))
    assert render(from_json(LanguageModelRecord, values)) == page
    assert to_json(from_json(LanguageModelRecord, values)) == values


def test_what_is_optional_is_left_out_of_the_file() -> None:
    assert "summary" not in to_json(LanguageModelRecord())
    assert to_json(LanguageModelRecord())["timing"] == {"seconds": None, "tokens_per_second": None}
    later = {"title": "old", "not known yet": 1, "summary": {"bits_per_byte": {"mean": 2.0}}}
    made = from_json(LanguageModelRecord, later)
    assert (made.title, made.bits_per_byte, made.parts_per_token.layers) == ("old", {"mean": 2.0}, ())


def test_size_and_time_of_the_demo(demo: str) -> None:
    start = time.perf_counter()
    render(from_json(LanguageModelRecord, record()))
    assert time.perf_counter() - start < 4
    assert len(demo.encode()) < 1_500_000


def test_what_the_demo_says(demo: str) -> None:
    text = PageReader(demo).text
    assert "After 1.02 M tokens the model needs 2.2 bits per byte where lzma needs 2.5" in text
    for words in (
        "of 32 experts on average",
        "4 mixture layers",
        "always on",
        "No expert is unused",
        "2 min",
    ):
        assert words.replace(" ", "") in re.sub(r"\s", "", text)
    for heading in ("How it learnt", "How the load is shared", "What each expert learnt", "What it writes"):
        assert heading in text
    assert "max_parts" not in text


def test_hostile_text_stays_text(page_of: Callable[[str], str]) -> None:
    page = page_of("hostile")
    read = PageReader(page)
    assert read.elements["script"] == 2
    assert read.elements["img"] == 0
    assert "<script>alert" not in page
    assert "</script><script>alert(1)</script>" in "".join(read.words)
    for mark in ("↵", "⇥", "\\xc3", "␀", "∅", "\\u202e"):
        assert mark in page
    assert "\x00" not in page
    assert "\u202e" not in page


def test_a_dense_model_has_no_figures_of_experts(page_of: Callable[[str], str]) -> None:
    text = PageReader(page_of("dense")).text
    assert "This model is dense" in text
    assert "How the load is shared" not in text
    assert "In the text" not in text


def test_top_k_is_said_and_not_drawn(page_of: Callable[[str], str]) -> None:
    page = page_of("top k")
    assert "Every token takes exactly 4 experts in each layer" in page
    assert "exactly 4 of 32 experts" in page
    assert 'class="stack"' not in page
    assert "sum of the gates" in page


def test_unused_experts_are_counted() -> None:
    made = small(domains=("code",), num_layers=2, evaluations=2, steps=10)
    made["layers"][1]["load"][3] = 0.0
    assert "1 of 64 experts is unused" in render(from_json(LanguageModelRecord, made))


def test_a_model_worse_than_the_compressors_is_told_plainly() -> None:
    made = small(evaluations=1, steps=3)
    made["summary"]["bits_per_byte"] = dict.fromkeys(made["summary"]["bits_per_byte"], 3.3)
    page = render(from_json(LanguageModelRecord, made))
    assert "needs 3.3 bits per byte where lzma needs 2.5" in page
    assert "in 0 of 6 domains" in page


def test_importing_the_package_is_cheap() -> None:
    script = "import expertise.report.language_model, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", "matplotlib", "jinja2", "numpy"} & set(loaded)
    assert expertise.report.__doc__


def test_skipped_steps_are_noted_with_the_last_reason() -> None:
    from expertise.report.language_model_record import _skipped

    lines = [{"kind": "train", "step": 1}]
    assert _skipped(lines) == []
    lines += [{"kind": "skipped", "step": step, "reason": "the loss"} for step in (4, 9)]
    assert _skipped(lines) == ["2 steps were skipped, from 4 to 9: the last because the loss was not finite"]
