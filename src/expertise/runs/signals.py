"""SIGINT and SIGTERM: training ends its step and saves first; everything else ends at once, tidily."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from expertise.errors import ExpertiseError

_NOTED = (signal.SIGINT, signal.SIGTERM)


class Stopped(ExpertiseError):  # noqa: N818 - it is no error
    """Training stopped by a signal, after saving."""

    def __init__(self, signal_number: int, step: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; saved", "run the same command to go on")
        self.signal_number = signal_number


class Terminated(BaseException):
    """SIGTERM arrived where nothing has to be finished; like KeyboardInterrupt, nobody should catch it."""


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal was noted; raised by `Interrupts.check`, to leave what may be left undone."""


class Interrupts:
    """Notes SIGINT and SIGTERM so that a step can end; a second SIGINT leaves at once (KeyboardInterrupt).

    Python delivers signals to its main thread alone. In another thread nothing is noted, and whoever
    started that thread decides what a signal does.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self.signal_number = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _NOTED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _put_back(self._before)

    def check(self) -> None:
        """Leave a piece of work that can be done again later.

        Raises:
            Interrupted: a signal was noted.
        """
        if self.signal_number is not None:
            raise Interrupted

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_number is not None:
            raise KeyboardInterrupt
        if self.signal_number is None:
            self.signal_number = number
            again = "; Ctrl-C once more leaves at once" if number == signal.SIGINT else ""
            # Not `print`: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(2, f"\nfinishing the step and saving{again}\n".encode())


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, as SIGINT raises KeyboardInterrupt, so that nothing half-made stays."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, leave)}
    try:
        yield
    finally:
        _put_back(before)


def _put_back(handlers: dict[Any, Any]) -> None:
    for number, handler in handlers.items():
        # None: the handler was not Python's, and cannot be put back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
