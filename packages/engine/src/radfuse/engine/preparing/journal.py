"""What an interrupted run has finished, one line a sample, beside the folder of the arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ckptcore import durable
from radfuse.engine.preparing.decoding import Finished


class Journal:
    """Finished samples by id. A line that a kill cut off is no line, and its sample is made again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {entry.sample_id: entry for entry in _entries(path)}

    def find(self, sample_id: str, recipe: str) -> Finished | None:
        """What was made of a sample, if it was made from the same."""
        entry = self._known.get(sample_id)
        return entry if entry is not None and entry.recipe == recipe else None

    def add(self, entry: Finished) -> None:
        """Note that a sample is finished."""
        if self._known.get(entry.sample_id) == entry:
            return
        self._known[entry.sample_id] = entry
        with open(self._path, "a", encoding="ascii") as stream:
            stream.write(_line(entry))

    def replace(self, entries: Iterable[Finished]) -> None:
        """Keep these lines and no others."""
        durable.write_text(self._path, "".join(map(_line, entries)))


def _line(entry: Finished) -> str:
    return json.dumps(asdict(entry)) + "\n"


def _entries(path: Path) -> Iterable[Finished]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        try:
            data = json.loads(line)
            spacing = data.pop("spacing_mm")
            yield Finished(**data, spacing_mm=None if spacing is None else tuple(spacing))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
