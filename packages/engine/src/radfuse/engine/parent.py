"""Being told by Linux that the process that started this one has ended."""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def told_of_end(parent: int, by: int) -> bool:
    """Be sent a signal when the parent ends. Elsewhere than on Linux nothing changes.

    Args:
        parent: its number, asked for by who started this process, or at its beginning.
        by: the signal.

    Returns:
        Whether the parent lives; one that ended before the kernel was asked sends nothing.
    """
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    return os.getppid() == parent
