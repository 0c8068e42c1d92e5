"""Signals during training: the first sets a flag, the loop saves at its next step; a second ends at once.

SIGHUP alone is never that second one: a shell passes it on to what it has started, and the kernel sends it
again when the shell ends, so one window that is closed is two signals.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_HANGUP = getattr(signal, "SIGHUP", None)
"""Comes when a terminal is closed or its connection breaks; Windows has none."""
WATCHED = (signal.SIGTERM, signal.SIGINT, *([] if _HANGUP is None else [_HANGUP]))

_flags: list[SignalFlag] = []
_former: dict[int, Any] = {}


class TrainingInterrupted(SystemExit):
    """Raised by `CheckpointManager.step` after a save that a signal asked for; exit code 128 + signal."""

    def __init__(self, number: int) -> None:
        self.signal_number = number
        super().__init__(128 + number)


class SignalFlag:
    """Remembers the first of the watched signals. Several may be installed, and restored in any order."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._served = False

    @property
    def pending(self) -> int | None:
        """A signal that was received and that nobody acted on."""
        return None if self._served else self.received

    def serve(self) -> None:
        """Say that somebody acts on what was received; it reached every flag, and needs acting on once."""
        for flag in {self, *_flags}:
            flag._served = flag._served or flag.received is not None

    def install(self) -> None:
        """Take over the watched signals; only the main thread may, elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread() or self in _flags:
            return
        if not _flags:
            for number in WATCHED:
                # Ignored already, as by nohup, it is to change nothing.
                if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN:
                    _former[number] = signal.signal(number, _handle)
        _flags.append(self)

    def restore(self) -> None:
        """Give the signals back to whoever had them, once no other flag waits for them."""
        if threading.current_thread() is not threading.main_thread() or self not in _flags:
            return
        _flags.remove(self)
        if not _flags:
            _give_back()


def received() -> int | None:
    """The signal that told training to stop; None where there was none, or no manager watches."""
    return next((flag.received for flag in _flags if flag.received is not None), None)


def _give_back() -> None:
    for number, handler in _former.items():
        # Whoever took the signal since then keeps it.
        if signal.getsignal(number) is _handle:
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    _former.clear()


def _forget_in_child() -> None:
    """A forked child has no loop that looks at a flag: signals must end it as if there were no manager."""
    _flags.clear()
    _give_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _handle(number: int, frame: FrameType | None) -> None:
    if any(flag.received is not None for flag in _flags):
        if number == _HANGUP:
            return
        # Asked twice: go at once. What was committed is whole, and the next start sweeps the rest away.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    for flag in _flags:
        flag.received = number
