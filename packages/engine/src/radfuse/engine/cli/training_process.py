"""What a process that works for hours owes its user: a log on the terminal, and an end with its parent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from radfuse.engine.parent import told_of_end

if TYPE_CHECKING:
    import psutil

_DVC_STAGE = "DVC_STAGE"
"""Environment variable in which DVC tells a command, and all that it starts, which stage they are."""
# Of several signals that came together Python handles the one of the lowest number first: this is the last.
_DVC_ENDED = signal.SIGRTMIN if sys.platform == "linux" else signal.SIGTERM
_EVERY = 0.5
"""Seconds between looks at DVC where the kernel cannot tell of its end."""
_MEANWHILE = 0.5
"""Seconds in which whoever has stopped DVC comes to what it has started."""
_LOGGERS = ("radfuse", "ckptcore")


@contextmanager
def show_log() -> Iterator[None]:
    """Show what the engine and ckptcore log, on standard error, a line each."""
    handler = _handler()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    # It says where the folder is by a path that begins at the root of the machine.
    opening = logging.getLogger("ckptcore.manager")
    opening.addFilter(_without_paths)
    try:
        yield
    finally:
        opening.removeFilter(_without_paths)
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def end_with_parent() -> None:
    """Under DVC, be told to stop (as by SIGTERM) when DVC is killed.

    Nobody else would stop an orphan that holds a folder, or writes outputs that the next `dvc repro` has
    begun to make. Without DVC nothing changes: a shell that ends must not take a training with it.

    Who tells DVC and all that it started to stop has told this process already, and DVC is the first to end:
    a training takes a second SIGTERM for haste, and would end before its state is saved. So the end of DVC
    has a signal of its own.

    Linux tells a child of its parent's end, at once. Where the parent is not DVC but a shell that waits for
    its command (fish does, and /bin/sh may), and on other systems, a thread looks every half a second. A
    process whose DVC is killed before this is called, in its first tenths of a second, is not told.
    """
    if _DVC_STAGE not in os.environ:
        return
    parent, linux = os.getppid(), sys.platform == "linux"
    if linux:
        signal.signal(_DVC_ENDED, _stop)
        if not told_of_end(parent, _DVC_ENDED):
            sys.exit(128 + signal.SIGTERM)
    outermost = _outermost_of_stage()
    if not linux or outermost.pid != os.getpid():
        threading.Thread(target=_watch, args=(outermost, _parent_of(outermost)), daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    """Be stopped as by SIGTERM, unless a training that was told to stop is about to."""
    from ckptcore.signals import received

    # Who stops DVC and all it started one after another may come to this process only now.
    time.sleep(_MEANWHILE)
    if received() is None:
        os.kill(os.getpid(), signal.SIGTERM)


def _outermost_of_stage() -> psutil.Process:
    """The process that DVC itself started: this one, or the first of those between DVC and this one."""
    import psutil

    found = psutil.Process()
    while True:
        try:
            above = found.parent()
            if above is None or above.environ().get(_DVC_STAGE) != os.environ[_DVC_STAGE]:
                return found
        # Of another user, gone, or no system that tells: then it is taken for DVC.
        except (psutil.Error, OSError):
            return found
        found = above


def _watch(outermost: psutil.Process, dvc: int) -> None:
    """End this process when DVC is not the parent of its command any more."""
    from ckptcore.signals import received

    own = os.getppid()
    while _parent_of(outermost) == dvc:
        time.sleep(_EVERY)
    # Where its own parent ended, too, the kernel has told it.
    if sys.platform != "linux":
        time.sleep(_MEANWHILE)
    if os.getppid() == own if sys.platform == "linux" else received() is None:
        os.kill(os.getpid(), _DVC_ENDED)


def _parent_of(process: psutil.Process) -> int:
    """The number of its parent; 0 where the process has ended."""
    import psutil

    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        from radfuse.engine.cli.output import console

        return RichHandler(
            console=console(errors=True), show_path=False, log_time_format="%H:%M:%S", markup=False
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


def _without_paths(record: logging.LogRecord) -> bool:
    return not record.msg.startswith("checkpoints will be saved to")
