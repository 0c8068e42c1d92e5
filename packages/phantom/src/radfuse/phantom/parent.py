"""An end with the process that started this one: nobody else would stop an orphan that holds the folder."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_DVC_STAGE = "DVC_STAGE"
"""What DVC sets in the environment of a stage's command."""
_PR_SET_PDEATHSIG = 1


def end_with_dvc() -> None:
    """Under DVC, end when DVC is killed. A shell that ends must not take a long call with it."""
    if _DVC_STAGE in os.environ:
        end_with(os.getppid(), signal.SIGTERM)


def end_with(parent: int, by: signal.Signals) -> None:
    """Be sent a signal when the process that started this one ends. Linux alone can do that.

    Args:
        parent: the number of that process.
        by: the signal.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        # It ended before the kernel was asked.
        os.kill(os.getpid(), by)
