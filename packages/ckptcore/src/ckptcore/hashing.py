"""SHA-256 of many buffers or records at once, by as many threads as the process has cores."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

CHUNK = 1 << 20
"""Bytes hashed at a time: a chunk that was just read is hashed while it still sits in the processor's cache."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew(Generic[Job, Result]):
    """Threads that work through a list while their maker does something else."""

    def __init__(self, jobs: Iterable[Job], work: Callable[[Job], Result], helpers: int | None = None) -> None:
        self._jobs = iter(enumerate(jobs))
        self._do = work
        self._lock = threading.Lock()
        self._results: dict[int, Result] = {}
        self._error: BaseException | None = None
        count = cores() - 1 if helpers is None else helpers
        self._threads = [threading.Thread(target=self._work, name="ckptcore-hash", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def results(self) -> list[Result]:
        """Everything's results, in the order of the jobs; the calling thread helps with what is left.

        Raises:
            BaseException: whatever a job raised.
        """
        self._work()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return [self._results[index] for index in sorted(self._results)]

    def _work(self) -> None:
        try:
            while self._error is None and (numbered := self._next()) is not None:
                index, job = numbered
                self._results[index] = self._do(job)
        except BaseException as error:
            self._error = error

    def _next(self) -> tuple[int, Job] | None:
        with self._lock:
            return next(self._jobs, None)


def buffer_digests(view: memoryview) -> tuple[int, str]:
    """CRC-32 and SHA-256 of a buffer."""
    crc, sha = 0, hashlib.sha256()
    for at in range(0, len(view), CHUNK):
        chunk = view[at : at + CHUNK]
        crc = zlib.crc32(chunk, crc)
        sha.update(chunk)
    return crc, sha.hexdigest()


class Stretch(NamedTuple):
    """A part of an open file that must have a given SHA-256; read into ``into`` where that is given."""

    fd: int
    at: int
    size: int
    digest: str
    into: memoryview | None = None


def is_intact(stretch: Stretch) -> bool:
    """Whether a part of a file is what was written; what was read stands in its buffer afterwards."""
    sha = hashlib.sha256()
    scratch = memoryview(bytearray(min(CHUNK, stretch.size))) if stretch.into is None else None
    done = 0
    while done < stretch.size:
        if stretch.into is not None:
            chunk = stretch.into[done : min(done + CHUNK, stretch.size)]
        else:
            assert scratch is not None
            chunk = scratch[: min(CHUNK, stretch.size - done)]
        count = os.preadv(stretch.fd, [chunk], stretch.at + done)
        if count == 0:
            return False
        sha.update(chunk[:count])
        done += count
    return sha.hexdigest() == stretch.digest


def intact(stretches: Sequence[Stretch]) -> list[bool]:
    """For each part of a file, whether it is what was written; the largest are begun first."""
    order = sorted(range(len(stretches)), key=lambda i: -stretches[i].size)
    found = Crew([stretches[i] for i in order], is_intact).results()
    by_index = dict(zip(order, found, strict=True))
    return [by_index[i] for i in range(len(stretches))]
