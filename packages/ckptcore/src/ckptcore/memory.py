"""Memory for tensors: one anonymous mapping, in huge pages where that pays, cut into tensors."""

from __future__ import annotations

import gc
import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self

ALIGNMENT = 64
"""Bytes; one cache line, and enough for every dtype."""

HUGE_PAGE = 2 << 20
"""Bytes of a huge page on x86-64 and on most arm64 kernels; another size only costs speed."""

MADV_WIPEONFORK = 18
"""``linux/mman.h``: a forked child sees zeros. Python's mmap module does not name it."""


class Arena(mmap.mmap):
    """One anonymous private mapping; lives as long as any tensor cut from it."""

    @classmethod
    def of(cls, nbytes: int, *, huge: bool = True, wipe_on_fork: bool = False) -> Self:
        """Map at least ``nbytes``.

        Args:
            nbytes: how many are needed.
            huge: ask for huge pages. Worth it for memory that is used again and again; on a virtual machine
                the first
                touch of each can be slow, since the host has to find one too.
            wipe_on_fork: a forked child sees zeros, and a fork does not make the next write slow.
        """
        if sys.platform != "linux":
            return cls(-1, max(nbytes, 1))
        large = huge and nbytes >= HUGE_PAGE
        # Linux aligns a mapping for huge pages only if its length is a whole number of them.
        length = padded(nbytes, HUGE_PAGE) if large else max(nbytes, 1)
        arena = cls(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Advice only saves time, and an old kernel may not know it.
        for advice in ([mmap.MADV_HUGEPAGE] if large else []) + ([MADV_WIPEONFORK] if wipe_on_fork else []):
            with suppress(OSError):
                arena.madvise(advice)
        return arena


@contextmanager
def without_collection() -> Iterator[None]:
    """Hold Python's cyclic garbage collector back while many objects are made that all stay.

    Their number alone would start a full collection, which walks over every object of torch: 75 ms, a third
    of the time that a ResNet-50's state takes to load.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def padded(nbytes: int, unit: int = ALIGNMENT) -> int:
    """Bytes rounded up to whole units."""
    return -(-nbytes // unit) * unit


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where blocks of these sizes begin in one arena, each aligned; the last number is the arena's size."""
    found = [0]
    for size in sizes:
        found.append(padded(found[-1] + size))
    return found
