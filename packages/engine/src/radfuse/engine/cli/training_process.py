"""What a process that trains for hours owes its user: a log on the terminal, and an end with its parent."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
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
    """Under DVC, be told to stop when DVC is killed.

    Nobody else would stop an orphan that holds the work folder. Linux alone can do that; elsewhere, and
    without DVC, nothing changes. A shell that ends must not take a training with it.
    """
    if "DVC_STAGE" not in os.environ or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # It ended before the kernel was asked.
        sys.exit(128 + signal.SIGTERM)


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
