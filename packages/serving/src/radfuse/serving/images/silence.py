"""Keeping libraries quiet while they read: they put values of tags, names too, into warnings and logs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

_LIBRARIES = ("pydicom", "pylibjpeg", "openjpeg", "libjpeg", "nibabel", "PIL")
_ABOVE_ALL = logging.CRITICAL + 1

_lock = Lock()
_quiet = ExitStack()
_readers = 0


@contextmanager
def silenced() -> Iterator[None]:
    """No warning, and no log of a decoding library, until the last thread that reads has left."""
    global _readers
    with _lock:
        if not _readers:
            _silence()
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                _quiet.close()


def _silence() -> None:
    _quiet.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        _quiet.callback(logger.setLevel, logger.level)
        logger.setLevel(_ABOVE_ALL)
