"""Which of two entries is the earlier, which is the better."""

from __future__ import annotations

from collections.abc import Iterable

from ckptcore.rules.progress import Entry
from ckptcore.rules.scores import Mode, finite_score

Place = tuple[int, int, float, str]


def place(entry: Entry) -> Place:
    """Sort key from the earliest to the latest; what a file does not say counts as smallest."""
    epochs = -1 if entry.epochs_finished is None else entry.epochs_finished
    step = -1 if entry.global_step is None else entry.global_step
    return epochs, step, entry.created, entry.name


def earliest_first(entries: Iterable[Entry]) -> list[Entry]:
    """Entries in the order of training."""
    return sorted(entries, key=place)


def best_first(entries: Iterable[Entry], metric: str, mode: Mode) -> list[Entry]:
    """Entries with a finite value of the metric, the best one first; of equal ones the earlier."""
    sign = -1.0 if mode == "max" else 1.0
    measured = ((finite_score(entry.metrics, metric), entry) for entry in entries)
    scored = [(sign * value, place(entry), entry) for value, entry in measured if value is not None]
    return [entry for _, _, entry in sorted(scored, key=lambda item: item[:2])]
