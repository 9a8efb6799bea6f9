"""SIGINT and SIGTERM: training finishes its step and saves; other work ends at once and cleans up."""

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
    """Raised after a signal stopped training and everything was saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; saved", "run the same command to go on")
        self.signal_number = signal_number


class Terminated(BaseException):
    """Raised at SIGTERM outside of training; like KeyboardInterrupt, it should not be caught."""


class Interrupted(Exception):  # noqa: N818 - it is no error
    """Raised by `Interrupts.check` after a signal, to leave work that can be repeated later."""


class Interrupts:
    """Records SIGINT and SIGTERM so that a step can end; a second SIGINT leaves at once (KeyboardInterrupt).

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
        """Raise `Interrupted` if a signal came; call it in work that can be repeated later.

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
            # Not `print`, because the signal may have come in the middle of another `print`.
            with contextlib.suppress(OSError):
                os.write(2, f"\nfinishing the step and saving{again}\n".encode())


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM, as KeyboardInterrupt at SIGINT, so that cleanup code runs."""

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
        # None means that the handler was not set by Python and cannot be restored.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
