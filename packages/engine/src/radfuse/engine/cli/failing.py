"""Which errors are an answer for the user, and which are faults of the program that need a traceback."""

from __future__ import annotations

from collections.abc import Sequence

from radfuse.engine.errors import RadfuseError, SettingsError, UnknownModality

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130
_EXPECTED = {("ckptcore.errors", "CheckpointError"), ("radfuse.serving.errors", "ServingError")}
"""Bases of errors that other packages raise on purpose; named, so that they need not be imported."""


def shown(error: Exception) -> bool:
    """Whether an error's message says all that its reader needs."""
    if isinstance(error, (RadfuseError, OSError)):
        return True
    return any((kind.__module__, kind.__name__) in _EXPECTED for kind in type(error).__mro__)


def code_of(error: Exception) -> int:
    """The exit code that an error becomes."""
    return WRONG_USAGE if isinstance(error, (SettingsError, UnknownModality)) else FAILED


def show_traceback(arguments: Sequence[str]) -> bool:
    """Whether the user asked for tracebacks."""
    words = list(arguments)
    if "--" in words:
        words = words[: words.index("--")]
    return "-v" in words or "--verbose" in words
