"""Progress of long work with rate and time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO


def say(message: str, *, stream: TextIO | None = None) -> None:
    """Print a line for a human to standard error; standard output is for results."""
    print(message, file=stream or sys.stderr, flush=True)


def number(value: Any, digits: int = 2) -> str:
    """Format a number with a fixed count of decimals; a dash for None."""
    return "–" if value is None else f"{float(value):.{digits}f}"


def duration(seconds: float) -> str:
    """Format seconds: 42s, 3m05s, 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


class Progress:
    """Shows the progress of a counted piece of work.

    Args:
        total: how many steps there are.
        done: how many were done before (resumed work); they do not count for the rate.
        unit_per_step: how many units (say, tokens) a step handles.
        unit: the unit's name, for the rate.
        every: seconds between plain lines when standard error is no terminal.
    """

    def __init__(
        self, total: int, *, done: int = 0, unit_per_step: int = 1, unit: str = "steps", every: float = 10.0
    ) -> None:
        self._total, self._first, self._unit_per_step, self._unit = total, done, unit_per_step, unit
        self._every = every
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[status]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._first, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def rate(self, done: int) -> float:
        """Units per second since the start."""
        seconds = max(1e-9, time.monotonic() - self._start)
        return (done - self._first) * self._unit_per_step / seconds

    def seconds_left(self, done: int) -> float:
        """Estimated seconds until the end."""
        rate = self.rate(done)
        return (self._total - done) * self._unit_per_step / rate if rate > 0 else float("inf")

    def update(self, done: int, status: str) -> None:
        """Show that `done` steps are done; `status` is a few words such as the loss."""
        rate = self.rate(done)
        if not rate:
            return
        text = f"{status}  {rate:,.0f} {self._unit}/s  {duration(self.seconds_left(done))} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, status=text)
            return
        now = time.monotonic()
        if now - self._last_line >= self._every or done == self._total:
            self._last_line = now
            say(f"step {done}/{self._total}  {text}")

    def note(self, message: str) -> None:
        """Print a permanent line above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, highlight=False, markup=False, emoji=False)
        else:
            say(message)
