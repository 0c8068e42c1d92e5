"""What commands write: tables and facts for people, strict JSON for programs, one line for an error."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from ckptcore.cli.table import Column, Row, layout
from ckptcore.cli.text import clean, paint, width

FINE, FINDING, WRONG_USAGE = 0, 1, 2
_CLEAR_LINE = "\r\x1b[2K"


def write(text: str = "") -> None:
    """A line, or several, on standard output; nothing more once its reader (head, less) has gone."""
    try:
        sys.stdout.write(text + "\n")
    except BrokenPipeError:
        mute()


def finish() -> None:
    """Hand over what is still buffered."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        mute()


def mute() -> None:
    """Let standard output lead nowhere, so that the command ends with its own exit code and in silence."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """A line on standard error, where it is in no program's way."""
    finish()
    with suppress(BrokenPipeError):
        sys.stderr.write(text + "\n")


def colourful() -> bool:
    """Whether standard output is a terminal whose owner did not refuse colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str) -> str:
    """Text for standard output, in a style where that can be seen."""
    return paint(text, style) if colourful() else text


def write_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """A table: within the terminal's width, and whole where the output goes to a file or a program."""
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    write(layout(columns, rows, limit, colourful()))


def write_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values below each other; a value with several lines stays in its column."""
    wide = max((width(name) for name, _ in facts), default=0)
    for name, value in facts:
        first, *more = value.split("\n")
        write(f"{styled(name, 'bold')}{' ' * (wide - width(name))}  {first}".rstrip())
        for line in more:
            write(f"{' ' * wide}  {line}")


def write_json(value: Mapping[str, Any]) -> None:
    """One JSON object; NaN and infinities are null, as strict JSON has no word for them."""
    import json

    write(json.dumps(strict(value), indent=2, allow_nan=False))


def strict(value: Any) -> Any:
    """A value as strict JSON has it."""
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [
            strict(item)
            for item in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)
        ]
    return os.fspath(value) if isinstance(value, Path) else str(value)


def error_line(error: BaseException) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return clean(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return clean(" ".join(str(error).split())) or type(error).__name__


class Progress:
    """What is being worked on, on a passing line of standard error; nothing where that is no terminal."""

    def __init__(self, verb: str, total: int) -> None:
        self._verb, self._total, self._done = verb, total, 0
        self._shown = sys.stderr.isatty()

    def begin(self, name: str, detail: str = "") -> None:
        """Say that the next item is begun."""
        self._done += 1
        if self._shown:
            room = max(20, shutil.get_terminal_size().columns - 1)
            text = f"{self._verb} {self._done} of {self._total}: {clean(name)} {detail}".rstrip()
            sys.stderr.write(_CLEAR_LINE + text[:room])
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()
