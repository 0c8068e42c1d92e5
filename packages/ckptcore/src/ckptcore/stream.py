"""A file written once from front to end, past the page cache where the file system allows it.

A checkpoint is written and hardly ever read: through the page cache it would be copied once more by the
processor and would push the training data out. With O_DIRECT the device fetches the bytes itself, and the
processor hashes meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from types import TracebackType
from typing import Self

from ckptcore.memory import Arena

BUFFER = 2 << 20
"""Bytes handed to the device at a time: as much as keeps it busy, and little enough to stay in the
processor's cache.
"""

BLOCK = 4096
"""Direct writes begin and end at multiples of this."""

DIRECT_FROM = 8 << 20
"""Smaller files go through the page cache: there is nothing to gain, and they are often read again at once.
"""

_REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY}


class Stream:
    """Collects what is written in one aligned buffer and writes it in large pieces.

    Args:
        fd: an empty file, open for writing; it stays open.
        expected: about how many bytes will come, which decides whether the page cache is passed by.
    """

    def __init__(self, fd: int, expected: int) -> None:
        self._fd = fd
        self._buffer = Arena.of(BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._flushed = 0
        self._direct = expected >= DIRECT_FROM and self._set_direct(True)

    @property
    def position(self) -> int:
        """How many bytes were written so far."""
        return self._flushed + self._filled

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data)
        while view:
            count = min(len(view), BUFFER - self._filled)
            self._view[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == BUFFER:
                self._flush(BUFFER)

    def finish(self) -> None:
        """Write what is left, and cut the padding that a direct write of the last block needs."""
        size = self.position
        if self._direct:
            padded = -(-self._filled // BLOCK) * BLOCK
            self._view[self._filled : padded] = bytes(padded - self._filled)
            self._flush(padded)
            os.ftruncate(self._fd, size)
            self._set_direct(False)
        else:
            self._flush(self._filled)

    def _flush(self, count: int) -> None:
        done = 0
        while done < count:
            try:
                written = os.pwrite(self._fd, self._view[done:count], self._flushed + done)
            except OSError as error:
                if not self._direct or error.errno not in _REFUSALS:
                    raise
                written = 0
            done += written
            if self._direct and written % BLOCK:
                # A file system that takes the flag and not the writes, or stopped within a block: go on
                # through its cache.
                self._direct = False
                self._set_direct(False)
            elif written == 0:
                if not self._direct:
                    raise OSError(errno.EIO, "the file system took no bytes and gave no reason")
                self._direct = False
                self._set_direct(False)
        self._flushed += count
        self._filled = 0

    def _set_direct(self, wanted: bool) -> bool:
        if not hasattr(os, "O_DIRECT"):
            return False
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            return False
        return True

    def close(self) -> None:
        """Free the buffer; the file stays open."""
        self._view.release()
        # The traceback of a failed write may still hold a slice of the buffer; it goes with the traceback
        # then.
        with suppress(BufferError):
            self._buffer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
