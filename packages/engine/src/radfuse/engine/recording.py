"""What a training leaves beside its checkpoints: lines, the JSON log, pictures, and MLflow's run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore.errors import DiskFull, FolderNotWritable
from radfuse.engine.history import RunLog
from radfuse.engine.pictures import learning_curves, picture_name
from radfuse.engine.progress import duration
from radfuse.engine.tracking import FINISHED_AT, Tracker
from radfuse.engine.workfolder import WorkFolder

if TYPE_CHECKING:
    from torch import Tensor

    from radfuse.engine.training.loaders import Batch
    from radfuse.engine.training.run import Run

_log = logging.getLogger(__name__)
MOST_PICTURES = 20
PICTURES = "pictures"
LOGS = "logs"


class Recorder:
    """Tells of a training while it runs.

    Args:
        folder: the work folder.
        title: of pictures: the modality in words.
        log: the JSON log.
        tracker: MLflow.
    """

    def __init__(self, folder: Path, title: str, log: RunLog, tracker: Tracker) -> None:
        self._folder = folder
        self._title = title
        self._log = log
        self._tracker = tracker
        self._seconds: list[float] = []
        self._warned = False
        self._noted: str | None = None

    def begin(
        self,
        session: Mapping[str, Any],
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        epoch: int,
        anew: bool = False,
    ) -> None:
        """Tell that the training starts, or goes on.

        Args:
            session: conditions, and what it goes on from.
            parameters: what was asked for, flat.
            tags: digests, device and the like.
            epoch: the first one, from 0.
            anew: what was there of this training was set aside.
        """
        self._attempt(lambda: self._log.begin(session, epoch))
        self._tracker.begin(parameters, tags, anew)
        self._noted = self._tracker.run_id

    @property
    def mlflow_run(self) -> str | None:
        """The id of MLflow's run; None where nothing is tracked."""
        return self._tracker.run_id

    def draw(self, run: Run, batch: Batch, logits: Tensor) -> None:
        """Draw predictions of a batch, in at most twenty epochs of a training."""
        every = -(-run.plan.epochs // MOST_PICTURES)
        if run.at.epoch % every and run.at.epoch + 1 != run.plan.epochs:
            return
        path = self._folder / PICTURES / picture_name(run.at.epoch, 1)
        rows = run.validation.rows.iloc[list(batch.rows)]
        title = f"{self._title}, after epoch {run.at.epoch + 1}"
        self._attempt(lambda: run.task.picture(path, batch.image, batch.target, logits, rows, title))
        self._tracker.log_file(path, PICTURES)
        self._note_run(run)

    def epoch(
        self, run: Run, epoch: int, metrics: Mapping[str, float], stage: Mapping[str, Any], seconds: float
    ) -> None:
        """Tell what an epoch brought.

        Args:
            run: the training.
            epoch: that ended, from 0.
            metrics: what was measured.
            stage: its name and what learnt in it.
            seconds: that it took.
        """
        self._seconds.append(seconds)
        left = 0 if run.at.stopped else run.plan.epochs - epoch - 1
        remaining = f", about {duration(left * sum(self._seconds) / len(self._seconds))} left" if left else ""
        best = max(_numbers(run)[run.at.began :], key=_or_lowest, default=math.nan)
        _log.info(
            "epoch %d/%d, %s: train_loss %.4f, val_loss %.4f, %s %.4f (best %.4f), %s%s",
            epoch + 1, run.plan.epochs, stage["name"], metrics["train_loss"], metrics["val_loss"],
            run.task.metric, metrics[run.task.metric], best, duration(seconds), remaining,
        )  # fmt: skip
        told = {name: value for name, value in metrics.items() if name != FINISHED_AT}
        facts = {"stage": dict(stage), **told, "seconds": round(seconds, 3)}
        self._fill(run, epoch)
        self._attempt(lambda: self._log.epoch(epoch, facts))
        # The checkpoint of this epoch may still be on its way to the disk; those before it are there.
        self._tracker.log_epochs(run.manager.history, epoch)
        self._note_run(run)

    def end(self, run: Run, outcome: str, tags: Mapping[str, str]) -> None:
        """Tell how the training ended; every checkpoint is durable now.

        Args:
            run: the training.
            outcome: ``finished``, ``stopped early``, ``interrupted`` or ``failed``.
            tags: of what came out.
        """
        self._fill(run, run.at.epoch)
        self._attempt(lambda: self._log.end({"outcome": outcome, "epochs_finished": run.at.epoch}))
        _tell_of_better(run)
        if outcome == "interrupted":
            self._tracker.hurry()
            _log.warning(
                "told to stop: all until step %d (epoch %d) is saved; the same command goes on from there, "
                "unless it has --resume.",
                run.at.step, run.at.epoch + 1,
            )  # fmt: skip
        self._tracker.log_epochs(run.manager.history, run.at.epoch)
        if outcome in ("finished", "stopped early"):
            curves = self._folder / PICTURES / "learning_curves.png"
            self._attempt(lambda: learning_curves(curves, run.manager.history, run.task.metric, self._title))
            self._tracker.log_file(curves, PICTURES)
            self._tracker.log_file(self._log.path, LOGS)
        self._tracker.tag({"outcome": outcome, **tags})
        status = {"failed": "FAILED", "interrupted": "KILLED"}.get(outcome, "FINISHED")
        self._tracker.end(status)
        self._note_run(run)

    def _note_run(self, run: Run) -> None:
        """Where MLflow was away and has a run only now, let checkpoints and the work folder know."""
        found = self._tracker.run_id
        if found != self._noted:
            self._noted = found
            run.facts["provenance"]["mlflow_run_id"] = found
            self._attempt(WorkFolder(self._folder, self._folder.name).forget_anew)

    def _fill(self, run: Run, until: int) -> None:
        """Let the log have the epochs that another process saved, and was killed before it could tell of."""
        history = {name: values for name, values in run.manager.history.items() if name != FINISHED_AT}
        self._attempt(lambda: self._log.fill(history, until))

    def _attempt(self, act: Callable[[], object]) -> None:
        """Write something; where that cannot be, say so once and go on. The log is whole each time."""
        try:
            act()
        except (OSError, DiskFull, FolderNotWritable) as error:
            if not self._warned:
                _log.warning("log and pictures cannot be written (%s); training goes on.", error)
            self._warned = True


def _numbers(run: Run) -> list[float]:
    """The deciding metric, an epoch each; before `began`, those of the training that this one took over."""
    return list(run.manager.history.get(run.task.metric, []))


def _or_lowest(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _tell_of_better(run: Run) -> None:
    """Say so where the best epoch of all belongs to the training that this one went on from."""
    values = [_or_lowest(value) for value in _numbers(run)]
    before, since = values[: run.at.began], values[run.at.began :]
    if before and since and max(before) > max(since):
        _log.warning(
            "%s was best in epoch %d (%.4f), before this training went on from there; the best checkpoint is "
            "that of epoch %d (%.4f), the best since.",
            run.task.metric, before.index(max(before)) + 1, max(before),
            run.at.began + since.index(max(since)) + 1, max(since),
        )  # fmt: skip
