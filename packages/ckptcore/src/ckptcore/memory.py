"""Memory for tensors: large blocks in huge pages, cut into tensors."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

ALIGNMENT = 64
_HUGE_PAGE = 1 << 21


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where blocks of these sizes begin in one arena, each aligned; the last number is the arena's size."""
    found = [0]
    for size in sizes:
        found.append(-(-(found[-1] + size) // ALIGNMENT) * ALIGNMENT)
    return found


def arena(size: int) -> mmap.mmap:
    """Anonymous memory, in huge pages where the system has them: page faults would cost as much as the reading."""
    large = size >= _HUGE_PAGE
    # Linux aligns a private mapping for huge pages only if its length is a whole number of them.
    length = -(-size // _HUGE_PAGE) * _HUGE_PAGE if large else max(size, 1)
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, length)
    block = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if large and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            block.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return block  # A kernel without huge pages: slower, and right all the same.
    return block
