"""`metrics.jsonl`: figures that recipe and seed determine. `timing.jsonl`: times and rates, only appended
to."""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from expertise.errors import RunError
from expertise.runs.files import disk_errors, write_atomic


@runtime_checkable
class Sink(Protocol):
    """Interface of a further output for metrics, such as TensorBoard."""

    def write(self, record: dict[str, Any]) -> None:
        """Write one line of metrics."""

    def close(self) -> None:
        """Flush and close the output."""


class MetricsLog:
    """Appends lines to a run's metrics and times.

    Args:
        run: the run's folder.
        after_step: lines of later steps are cut, because the run goes on from there.
        sinks: further takers of each line of metrics.
    """

    def __init__(self, run: Path, after_step: int, sinks: tuple[Sink, ...] = ()) -> None:
        self._metrics = run / "metrics.jsonl"
        self._timing = run / "timing.jsonl"
        self._sinks = sinks
        kept = [line for line in read_lines(self._metrics) if line["step"] <= after_step]
        _drop_cut_line(self._timing)
        write_atomic(self._metrics, "".join(_line(record) for record in kept))

    def metric(self, **record: Any) -> None:
        """Add a line to metrics.jsonl; it must hold `kind` and `step`, and no time."""
        _append(self._metrics, record)
        for sink in self._sinks:
            sink.write(record)

    def timing(self, **record: Any) -> None:
        """Add a line to timing.jsonl, with the time of day."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        _append(self._timing, {**record, "time": now})

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            sink.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file, without a last line that a kill cut short.

    Raises:
        RunError: another line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise RunError(f"{path}: line {number} is damaged", "remove that line, or start afresh") from None
    return records


def sum_of(value: Any) -> float:
    """Sum of all numbers in a record; it is not finite if one of them is not."""
    if isinstance(value, Mapping):
        return sum(map(sum_of, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(sum_of, value))
    return float(value) if isinstance(value, int | float) else 0.0


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, because JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that a kill or a full disk cut short, so that the next one starts on its own
    line."""
    if path.exists():
        with disk_errors(path), open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _append(path: Path, record: dict[str, Any]) -> None:
    with disk_errors(path), open(path, "ab") as file:
        # One write call, so that a kill leaves the whole line or, at worst, a cut last line.
        file.write(_line(record).encode())
        file.flush()
        os.fsync(file.fileno())


def require_tensorboard() -> None:
    """Refuse to go on if the extra `tensorboard` is not installed.

    Raises:
        MissingExtra: the package is not installed.
    """
    from expertise.errors import MissingExtra

    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("tensorboard", "train.tensorboard")


class TensorBoardSink:
    """Writes scalar metrics for TensorBoard; needs the extra `tensorboard`.

    Args:
        run: the run's folder; events go to its sub-folder `tensorboard`.

    Raises:
        MissingExtra: the package is not installed.
    """

    def __init__(self, run: Path) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        """Write every number of the record, nested names joined by a slash."""
        step = record["step"]
        for name, value in _scalars(record, str(record["kind"])):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the TensorBoard writer."""
        self._writer.close()


def _scalars(value: Any, path: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _scalars(inner, f"{path}/{key}")]
    return [(path, float(value))] if isinstance(value, int | float) else []
