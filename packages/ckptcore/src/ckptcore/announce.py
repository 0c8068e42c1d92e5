"""What a run says of its checkpoints: which lines, and how to see them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from ckptcore.layouts.layout import Layout, Moment
from ckptcore.plain import is_finite_number

_LOGGER = "ckptcore"


class _Terminal(logging.StreamHandler[TextIO]):
    """Writes to what standard output is now, not to what it was when the handler was made."""

    def __init__(self, stream: TextIO | None) -> None:
        logging.Handler.__init__(self, logging.INFO)
        self._given = stream

    @property
    def stream(self) -> TextIO:
        return self._given or sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        self._given = value


def announce(stream: TextIO | None = None) -> None:
    """Show on the terminal what ckptcore says of a run: where it saves, which file, best value, done.

    Args:
        stream: where the lines go; standard output if not given. A second call replaces the first.
    """
    logger = logging.getLogger(_LOGGER)
    for handler in [h for h in logger.handlers if isinstance(h, _Terminal)]:
        logger.removeHandler(handler)
    logger.addHandler(_Terminal(stream))
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)


def saved_lines(
    directory: Path, layout: Layout, names: Mapping[str, str], moment: Moment
) -> Iterator[tuple[int, str]]:
    """Log level and text for each file of a save; the latest, every epoch, interests only debuggers."""
    for role, name in names.items():
        if role == "best":
            yield logging.INFO, f"saved best model: {name} ({layout.metric}: {moment.metric:.4f})"
        elif role != "final":
            yield logging.DEBUG if role == "latest" else logging.INFO, f"saved checkpoint: {name}"
    if moment.progress.final:
        yield logging.INFO, " ".join(["training complete.", *_ending(directory, layout, names, moment)])


def _ending(directory: Path, layout: Layout, names: Mapping[str, str], moment: Moment) -> Iterator[str]:
    if "final" in names:
        yield f"Final model saved to: {directory / names['final']}"
    best = moment.best.get(layout.metric or "")
    if is_finite_number(best):
        yield f"(best {layout.metric}: {best:.4f})"
