"""SIGINT and SIGTERM, noted while a run is in a step and acted on after it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run, after its checkpoint was saved. `status` is the exit status that is customary."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.status = number, 128 + number


class Signals:
    """While it is open, the first SIGINT or SIGTERM is only noted in `caught`. A second one ends the process as usual.

    Python delivers signals to the main thread only. In other threads this does nothing.

    Args:
        at_once: Whether the first signal also raises `Interrupted`.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.caught = 0
        self._at_once = at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self._restore()
        if self._at_once:
            raise Interrupted(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *error: object) -> None:
        self._restore()
