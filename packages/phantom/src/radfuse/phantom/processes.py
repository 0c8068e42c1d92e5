"""Patients checked and written by several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from pathlib import Path

from radfuse.phantom import patient
from radfuse.phantom.errors import PhantomError
from radfuse.phantom.parent import end_with
from radfuse.phantom.settings import Settings


def complete(out: Path, settings: Settings, numbers: Sequence[int]) -> Iterator[bool]:
    """Write the patients who are not finished, in any order.

    Args:
        out: the cohort's folder.
        settings: of the cohort; `workers` processes, 0 for one a core.
        numbers: of the patients, finished ones among them.

    Yields:
        For each patient whether anything was written; nothing is where an earlier call finished the patient.

    Raises:
        PhantomError: a process was killed.
    """
    workers = min(settings.workers or _cores(), len(numbers))
    if workers <= 1:
        for number in numbers:
            yield patient.complete(out, settings, number)
        return
    # Spawned, not forked: the caller may run threads (a progress bar, torch).
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        for future in as_completed(
            [pool.submit(patient.complete, out, settings, number) for number in numbers]
        ):
            yield future.result()
    except BrokenProcessPool as error:
        raise PhantomError(
            "a process that wrote patients was killed, perhaps for want of memory. Call again, with fewer "
            "of them (--set phantom.workers=1): finished patients are kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _follow_parent() -> None:
    """End when the process that started this one is killed, and leave Ctrl-C to that one.

    Without this a worker whose parent is gone would wait for work for ever. At once where the system can do
    it: that process held the folder's lock, and whoever waits for it has the folder now.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if parent.pid is not None:
        end_with(parent.pid, signal.SIGKILL)

    def watch(sentinel: int) -> None:
        wait_for([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
