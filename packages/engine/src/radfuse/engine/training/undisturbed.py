"""Processes that load, while signals stop the training that they load for.

Whoever stops a training from outside, as Slurm, systemd and Ctrl-C in a terminal do, sends the signal to all
of its processes. The training wants to finish its step and to save; if the processes that load its batches
ended meanwhile, it would fail instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ckptcore.signals import WATCHED
from radfuse.engine.parent import told_of_end


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Processes that begin in this block never meet signals that stop a training; this one does, after it.

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


def end_with_trainer(trainer: int, _: int) -> None:
    """In a process that loads: end at once when the training does, however it does.

    Elsewhere than on Linux torch's own watch of the parent ends the process after a few seconds.

    Args:
        trainer: number of the training's process.
    """
    if not told_of_end(trainer, signal.SIGKILL):
        os._exit(1)
