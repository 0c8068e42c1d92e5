"""Signals during training: the handler sets a flag, the loop saves at its next step, a second signal ends at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT)


class TrainingInterrupted(SystemExit):
    """Raised by `CheckpointManager.step` after it saved because of a signal; ends the process with 128 + signal."""

    def __init__(self, number: int) -> None:
        self.signal_number = number
        super().__init__(128 + number)


class SignalFlag:
    """Remembers the first of the watched signals."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the watched signals; only the main thread may, elsewhere nothing changes."""
        if threading.current_thread() is threading.main_thread():
            for number in WATCHED:
                self._former[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._former.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # Asked twice: go at once. What was committed is whole, the unfinished file is swept away at the next start.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
