"""Rows of results: unique, whole on disk, refused when they come from another experiment."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from expertise.errors import RunError
from expertise.runs.results import Results, Row, environment


def row(name: str = "ours", seed: int = 0, value: float = 1.0, **changes: str) -> Row:
    fields = {"table": "main", "setting": "a", "metric": "bits", "unit": "bits/byte"} | changes
    return Row(row=name, seed=seed, value=value, **fields)


def test_what_was_added_is_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.json"
    results = Results(path, {"steps": 3})
    results.add([row(), row(seed=1, value=2.0)])
    results.add([row("theirs", value=3.0)])
    again = Results(path, {"steps": 3})
    assert again.rows == [row(), row(seed=1, value=2.0), row("theirs", value=3.0)]
    assert again.has("main", "a", "ours", "bits", 1)
    assert not again.has("main", "a", "ours", "bits", 2)
    assert again.select("main", "bits", "b") == []
    assert len(again.select("main", "bits")) == 3
    assert again.environment["settings"] == {"steps": 3}


def test_the_file_has_the_form_that_others_read(tmp_path: Path) -> None:
    Results(tmp_path / "x.json").add([row()])
    found = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert set(found) == {"environment", "rows"}
    assert found["rows"] == [dataclasses.asdict(row())]
    assert set(found["rows"][0]) == {"table", "setting", "row", "metric", "unit", "seed", "value"}


def test_a_row_that_is_measured_again_takes_the_old_ones_place(tmp_path: Path) -> None:
    results = Results(tmp_path / "x.json")
    results.add([row(), row("other")])
    results.add([row(value=5.0)])
    assert Results(tmp_path / "x.json").rows == [row(value=5.0), row("other")]


def test_rows_of_other_settings_are_refused(tmp_path: Path) -> None:
    Results(tmp_path / "x.json", {"steps": 3, "rank": 8}).add([row()])
    with pytest.raises(RunError, match="other settings: steps"):
        Results(tmp_path / "x.json", {"steps": 4, "rank": 8})
    # Whoever only reads need not know them.
    assert Results(tmp_path / "x.json").rows == [row()]


@pytest.mark.parametrize(
    "content", ["", "{}", '{"rows": 3, "environment": {}}', '{"rows": [{}], "environment": {}}']
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(RunError, match=r"x\.json holds no results"):
        Results(tmp_path / "x.json")


def test_a_row_that_stands_twice_is_named(tmp_path: Path) -> None:
    Results(tmp_path / "x.json").add([row()])
    found = json.loads((tmp_path / "x.json").read_text("utf-8"))
    found["rows"] *= 2
    (tmp_path / "x.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match="a row twice"):
        Results(tmp_path / "x.json")


def test_reading_writes_nothing(tmp_path: Path) -> None:
    Results(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == []


def test_the_environment_says_with_what_it_was_measured() -> None:
    found = environment()
    assert {"expertise", "python", "torch", "cores", "date", "commit"} <= set(found)
    assert found["commit"] is None or len(found["commit"]) == 40


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    first, second = Results(tmp_path / "x.json", {"steps": 3}), Results(tmp_path / "x.json", {"steps": 3})
    first.add([row()])
    second.add([row("theirs")])
    first.add([row("third")])
    assert Results(tmp_path / "x.json").rows == [row(), row("theirs"), row("third")]
    assert first.has("main", "a", "theirs", "bits", 0)


def test_a_writer_with_other_settings_finds_out_when_it_adds(tmp_path: Path) -> None:
    first, second = Results(tmp_path / "x.json", {"steps": 3}), Results(tmp_path / "x.json", {"steps": 4})
    first.add([row()])
    with pytest.raises(RunError, match="other settings: steps"):
        second.add([row("theirs")])


def test_two_experiments_in_one_file_have_settings_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    Results(path, {"steps": 3}, "walk").add([row()])
    Results(path, {"steps": 9}, "run").add([row("theirs")])
    again = Results(path, {"steps": 3}, "walk")
    assert len(again.rows) == 2
    assert again.environment["settings"] == {"walk": {"steps": 3}, "run": {"steps": 9}}
    with pytest.raises(RunError, match="other settings: steps"):
        Results(path, {"steps": 4}, "walk")
