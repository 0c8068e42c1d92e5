"""Processes that load, while signals stop the training that they load for.

Whoever stops a training from outside, as Slurm, systemd and Ctrl-C in a terminal do, sends the signal to all
of its processes. The training wants to finish its step and to save; if the processes that load its batches
ended meanwhile, it would fail instead.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ckptcore.signals import WATCHED

_PR_SET_PDEATHSIG = 1


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Processes that begin in this block never meet SIGTERM or SIGINT; this one does, at its end.

    They must be ended by their parent; see `end_with_trainer`.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_trainer(_: int) -> None:
    """In a process that loads: end at once when the training does, however it does.

    Linux tells of it. Elsewhere torch's own watch of the parent ends the process after a few seconds.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
