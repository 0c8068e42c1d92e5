"""SHA-256 of many buffers or records at once, by as many threads as the process has cores."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

CHUNK = 1 << 20
"""Bytes hashed at a time: a chunk that was just read is hashed while it still sits in the processor's cache.
"""

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew(Generic[Job, Result]):
    """Threads that work through a list, in its order, while their maker does something else.

    Args:
        jobs: what to do.
        work: does one of them.
        helpers: how many threads.
    """

    def __init__(self, jobs: Sequence[Job], work: Callable[[Job], Result], helpers: int) -> None:
        self._jobs = jobs
        self._do = work
        self._next = 0
        self._changed = threading.Condition()
        self._results: dict[int, Result] = {}
        self._error: BaseException | None = None
        count = min(helpers, len(jobs))
        self._threads = [
            threading.Thread(target=self._work, name="ckptcore-hash", daemon=True) for _ in range(count)
        ]
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError:
                # Python 3.12 starts no threads while it shuts down; a save still in flight goes on without.
                del self._threads[number:]
                break

    def result(self, index: int) -> Result:
        """What came out of a job; waits for it.

        Raises:
            BaseException: whatever a job raised.
        """
        if not self._threads:
            self._work()
        with self._changed:
            self._changed.wait_for(lambda: index in self._results or self._error is not None)
            if self._error is not None:
                raise self._error
            return self._results[index]

    def results(self) -> list[Result]:
        """Everything's results, in the order of the jobs; the calling thread helps with what is left.

        Raises:
            BaseException: whatever a job raised.
        """
        self._work()
        return [self.result(index) for index in range(len(self._jobs))]

    def _work(self) -> None:
        while True:
            with self._changed:
                index = self._next
                if self._error is not None or index >= len(self._jobs):
                    return
                self._next += 1
            try:
                result = self._do(self._jobs[index])
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._results[index] = result
                self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._next = len(self._jobs)
        for thread in self._threads:
            thread.join()


def file_sha256(fd: int) -> str:
    """SHA-256 of a whole open file."""
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def buffer_digests(view: memoryview) -> tuple[int, str]:
    """CRC-32 and SHA-256 of a buffer."""
    crc, sha = 0, hashlib.sha256()
    for at in range(0, len(view), CHUNK):
        chunk = view[at : at + CHUNK]
        crc = zlib.crc32(chunk, crc)
        sha.update(chunk)
    return crc, sha.hexdigest()


class Stretch(NamedTuple):
    """A part of an open file that must have a given SHA-256.

    Attributes:
        fd: the file.
        at: the part's first byte.
        size: its bytes.
        digest: what it must hash to.
        into: memory to read it into; scratch memory where None.
        mapped: ``into`` is that part of the file already, mapped into memory.
    """

    fd: int
    at: int
    size: int
    digest: str
    into: memoryview | None = None
    mapped: bool = False


def is_intact(stretch: Stretch) -> bool:
    """Whether a part of a file is what was written; what was read stands in its buffer afterwards."""
    if stretch.at + stretch.size >= 1 << 63:  # No file is that long, and no offset.
        return False
    sha = hashlib.sha256()
    scratch = memoryview(bytearray(min(CHUNK, stretch.size))) if stretch.into is None else stretch.into
    done = 0
    while done < stretch.size:
        start = done if stretch.into is not None else 0
        chunk = scratch[start : start + min(CHUNK, stretch.size - done)]
        count = len(chunk) if stretch.mapped else os.preadv(stretch.fd, [chunk], stretch.at + done)
        if count == 0:
            return False
        sha.update(chunk[:count])
        done += count
    return sha.hexdigest() == stretch.digest


def intact(stretches: Sequence[Stretch]) -> list[bool]:
    """For each part of a file, whether it is what was written; the largest are begun first."""
    order = sorted(range(len(stretches)), key=lambda i: -stretches[i].size)
    with Crew([stretches[i] for i in order], is_intact, helpers=cores() - 1) as crew:
        found = crew.results()
    by_index = dict(zip(order, found, strict=True))
    return [by_index[i] for i in range(len(stretches))]
