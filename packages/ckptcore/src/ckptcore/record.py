"""What a manager knows of its run: what was measured, what is saved, and what a new checkpoint must beat."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ckptcore import rotation
from ckptcore.catalogue import Listed
from ckptcore.layouts.layout import Layout, Moment
from ckptcore.loading import Checkpoint
from ckptcore.rules import Past, Progress, finite_score, improves, metrics_watched

_log = logging.getLogger(__name__)
_MAX_EPOCHS = 50_000
_MAX_MEASURED = 400_000


def _longest(metrics: int) -> int:
    """How many epochs a history of so many metrics keeps: a checkpoint holds a million values at most."""
    return max(1, min(_MAX_EPOCHS, _MAX_MEASURED // max(1, metrics)))


class RunRecord:
    """The memory of one run. What it says of files is read from disk again after every save.

    Attributes:
        history: what was measured in every finished epoch, by metric; in the last 50,000 of a longer run.
        stages: names of the stages seen, in their order.
        sequence: how many saves the run made, over all its sessions: tells the newest file without a clock.
    """

    def __init__(self, layout: Layout) -> None:
        self.history: dict[str, list[float]] = {}
        self.stages: list[str] = []
        self.sequence = 0
        self._layout = layout
        self._watched = metrics_watched(layout.save)
        self._feeds = rotation.roles_fed(layout)
        self._opened = time.monotonic()
        self._past: dict[str, Past] = {}
        self._best: dict[str, float] = {}
        self._best_epoch: int | None = None
        self._first = 0
        self._warned: set[str] = set()

    @property
    def seconds(self) -> float:
        """Monotonic seconds since the record was opened."""
        return time.monotonic() - self._opened

    def due(self, progress: Progress) -> set[str]:
        """The roles that the layout's save rules want filled now."""
        nothing = Past()
        return {
            rule.role
            for rule in self._layout.save
            if rule.due(progress, replace(self._past.get(rule.role, nothing), best=self._best))
        }

    def measure(self, progress: Progress) -> None:
        """Take down the stage, and what a finished epoch measured in place of what it did before."""
        if progress.stage is not None and progress.stage not in self.stages:
            self.stages.append(progress.stage)
        if not progress.epoch_end:
            return
        self._warn_of_missing(progress)
        for name in progress.metrics:
            self.history.setdefault(name, [])
        at = self._make_room(progress.epoch)
        for name, value in progress.metrics.items():
            values = self.history[name]
            del values[at:]
            values.extend([float("nan")] * (at - len(values)))
            values.append(value)

    def _warn_of_missing(self, progress: Progress) -> None:
        """A metric whose name is misspelt would never make a best, and nobody would know."""
        missing = [name for name in self._watched if name not in (progress.metrics.keys() | self.history)]
        if missing and "missing" not in self._warned:
            self._warned.add("missing")
            given = ", ".join(map(repr, progress.metrics)) or "none"
            _log.warning(
                "the layout %s chooses the best by %s, which this epoch did not measure; it gave %s. "
                "Until it is given there is no best.",
                self._layout.name, ", ".join(map(repr, missing)), given,
            )  # fmt: skip

    def _make_room(self, epoch: int) -> int:
        """The place of an epoch in the lists, which forget the oldest ones when they get too long to save."""
        if epoch < self._first:
            self.history = {name: [] for name in self.history}
            self._first = 0
        too_many = epoch + 1 - self._first - _longest(len(self.history))
        if too_many > 0:
            if "long" not in self._warned:
                self._warned.add("long")
                _log.warning(
                    "the history keeps the last %d epochs; what came before is no longer saved.",
                    _longest(len(self.history)),
                )
            for values in self.history.values():
                del values[:too_many]
            self._first += too_many
        return epoch - self._first

    def moment(self, progress: Progress) -> Moment:
        """Everything that a layout may put into a name or a state now."""
        best, best_epoch = dict(self._best), self._best_epoch
        for metric, mode in self._watched.items():
            value = finite_score(progress.metrics, metric)
            if value is not None and improves(value, best.get(metric), mode):
                best[metric] = value
                best_epoch = progress.epochs_finished if metric == self._layout.metric else best_epoch
        return Moment(
            progress=progress,
            history={name: list(values) for name, values in self.history.items()},
            best=best,
            best_epoch=best_epoch,
            monitor=self._layout.metric,
            stage_number=self.stages.index(progress.stage) + 1 if progress.stage in self.stages else 0,
            timestamp=datetime.now(UTC).isoformat(),
        )

    def header(self, moment: Moment, reason: str | None) -> dict[str, Any]:
        """What the header of the next save says of the run; counts the save.

        Args:
            moment: where the loop is.
            reason: why it saves now, where no rule asked for it.
        """
        progress = moment.progress
        self.sequence += 1
        found: dict[str, Any] = {
            "layout": self._layout.name,
            "epoch_counts": self._layout.epoch_counts,
            "epochs_finished": progress.epochs_finished,
            "global_step": progress.global_step,
            "sequence": self.sequence,
            "metrics": dict(progress.metrics),
            "best": {"values": dict(moment.best), "epochs_finished": moment.best_epoch},
            "total_epochs": progress.total_epochs,
            "stages": list(self.stages),
        }
        why = reason or ("signal" if progress.signal else "exception" if progress.exception else None)
        return found | ({"reason": why} if why else {})

    def note(self, moment: Moment, roles: set[str]) -> None:
        """Count a save as made, ahead of its being durable: the loop asks its rules again before that."""
        progress = moment.progress
        for role in roles:
            self._past[role] = Past(progress.epochs_finished, progress.global_step, progress.seconds)
        fed = {metric for metric, feeds in self._feeds.items() if feeds & roles}
        self._best = self._best | {metric: moment.best[metric] for metric in fed if metric in moment.best}
        if self._layout.metric in fed:
            self._best_epoch = moment.best_epoch

    def read(self, files: Sequence[Listed], until: Checkpoint | None = None) -> None:
        """Take from the run's files on disk what was saved when, and the best of it.

        Args:
            files: the native files of the run, from old to new.
            until: the checkpoint that training goes on from; what was saved after it counts only as the best.
        """
        self.sequence = max((self.sequence, *(file.sequence for file in files)))
        self.read_best(files)
        limit = None if until is None else (until.header.epochs_finished or 0, until.header.global_step or 0)
        past: dict[str, Past] = {}
        for file in files:
            if file.header is None or (limit is not None and file.order[:2] > limit):
                continue
            age = time.time() - file.modified / 1e9
            for role in self._layout.roles_of(file.name):
                past[role] = Past(file.header.epochs_finished, file.header.global_step, self.seconds - age)
        self._past = past

    def read_best(self, files: Sequence[Listed]) -> None:
        """Take from the files on disk what a new checkpoint must beat."""
        self._best = rotation.best_values(files, self._layout)
        best = rotation.best_name(files, self._layout)
        self._best_epoch = next(
            (f.header.epochs_finished for f in files if f.header and f.name == best), None
        )

    def restore(self, found: Checkpoint) -> None:
        """Take over the history and the stages of the checkpoint that training goes on from."""
        told = self._layout.recall(found)
        # A loop's own history may hold anything under this key; only series of numbers are continued.
        self.history = {name: values for name, values in told.items() if all(map(_is_number, values))}
        known = max(map(len, self.history.values()), default=0)
        finished = found.header.epochs_finished or 0
        self._first = max(0, finished - known) if known >= _longest(len(self.history)) else 0
        stages = found.header.metadata.get("stages")
        self.stages = [str(stage) for stage in stages] if isinstance(stages, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
