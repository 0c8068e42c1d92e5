"""Carries out jobs in processes: a few at a time, so that memory stays bounded; none can end the stage.

A decoder in C may crash on damaged bytes, or the system may end a process that takes too much memory. Then
what was under way is tried once more, each job alone in a process; the one that ends its process again is
skipped.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from radfuse.engine.parent import told_of_end
from radfuse.engine.preparing.decoding import Finished, Job, Skipped, carry_out

ENDED = "reading it ended the process: it takes too much memory, or is damaged so that a decoder crashes"
_AHEAD = 2
"""Scans handed out for each process."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def carry_out_all(jobs: Sequence[Job], workers: int) -> Iterator[Finished | Skipped]:
    """Outcomes as they come, in no particular order.

    Args:
        jobs: samples to be prepared.
        workers: processes; with 1 everything happens in this process.
    """
    waiting = _by_scan(jobs)
    if workers <= 1 or len(jobs) <= 1:
        for scan in waiting:
            yield from carry_out(scan)
        return
    waiting.reverse()
    while waiting:
        broken: list[Job] = []
        yield from _until_broken(waiting, min(workers, len(waiting)), broken)
        for job in broken:
            yield _alone(job)


def _by_scan(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs about the same images together."""
    scans: dict[str, list[Job]] = {}
    for job in jobs:
        scans.setdefault(repr(sorted(job.images.items())), []).append(job)
    return list(scans.values())


def _until_broken(waiting: list[list[Job]], workers: int, broken: list[Job]) -> Iterator[Finished | Skipped]:
    """Take scans from the end of the list until it is empty or a process ends; then fill `broken`."""
    with _pool(workers) as pool:
        running: dict[Future[list[Finished | Skipped]], list[Job]] = {}
        try:
            while (waiting or running) and not broken:
                while waiting and len(running) < _AHEAD * workers:
                    running[pool.submit(carry_out, waiting[-1])] = waiting[-1]
                    waiting.pop()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
                    del running[future]
        except BrokenProcessPool:
            broken.extend(job for scan in running.values() for job in scan)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _alone(job: Job) -> Finished | Skipped:
    with _pool(1) as pool:
        try:
            return pool.submit(carry_out, [job]).result()[0]
        except BrokenProcessPool:
            return Skipped(job.sample_id, ENDED)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: a fork would copy locks that other threads hold.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not told_of_end(parent, signal.SIGKILL):
        os._exit(1)
