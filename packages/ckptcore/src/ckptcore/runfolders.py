"""A folder for each training run: its best Lightning checkpoint, and four JSON files that tell of it.

Everything is readable with nothing but ``json``. A remote tracker is told too, where one is given; that it
cannot be reached is logged and stops nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckptcore import durable
from ckptcore.errors import UsageError
from ckptcore.rules import Mode
from ckptcore.run_names import folder_part, is_first_process, nested_name
from ckptcore.settings import plain_json, settings_of, to_text

if TYPE_CHECKING:
    from ckptcore.lightning import CheckpointCallback

_log = logging.getLogger(__name__)
Tracker = Callable[[str, Mapping[str, Any]], object]


class CheckpointManager:
    """Makes and fills the folder of one run: ``checkpoints/<root_name>/<start>_<model>_<loss>/``.

    Specialise it in one line: ``class HaleManager(CheckpointManager, root_name="cutouts/hale"): ...``

    Args:
        root_name: what kind of model this is; nests with "/", as "flares/binary_classification".
        data_folder: where ``checkpoints/`` lies.
        model_name: becomes part of the folder's name, as does ``loss_function``; signs that have no place
            there become "_".
        loss_function: name of the loss.
        tracker: called as ``tracker(file_name, content)`` after a file was written; or an object with such a
            method ``log``.

    Attributes:
        directory: the folder. Only the first process of a distributed run makes and fills it.
        start_time: when the run started, UTC.
        callback: the Lightning callback, once one was asked for.

    Raises:
        UsageError: a name would lead out of the data folder.
        FolderNotWritable: the folder cannot be made.
    """

    root: ClassVar[str | None] = None

    def __init_subclass__(cls, root_name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if root_name is not None:
            cls.root = nested_name(root_name)

    def __init__(
        self,
        root_name: str | None = None,
        data_folder: str | os.PathLike[str] = ".",
        model_name: str = "unknown",
        loss_function: str = "unknown",
        *,
        tracker: Any = None,
    ) -> None:
        self.root_name = nested_name(root_name if root_name is not None else self.root)
        self.model_name, self.loss_function = model_name, loss_function
        self.start_time = datetime.now(UTC)
        self.callback: CheckpointCallback | None = None
        self.monitor = "val_f1"
        self._tracker = _tracker(tracker)
        self._writes = is_first_process()
        parent = Path(data_folder) / "checkpoints" / self.root_name
        parts = (
            self.start_time.strftime("%Y-%m-%d_%H-%M-%S"),
            folder_part(model_name),
            folder_part(loss_function),
        )
        self.directory = parent / "_".join(parts)
        if self._writes:
            self.directory = durable.make_new_folder(self.directory)

    def get_checkpoint_callback(self, monitor: str = "val_f1", mode: Mode = "max") -> CheckpointCallback:
        """The callback for a Trainer: keeps ``best-epoch02-val_f1-0.713.ckpt`` and no other.

        Args:
            monitor: name of a logged metric.
            mode: "min" for losses, "max" for scores.

        Raises:
            UsageError: Lightning is not installed.
        """
        from ckptcore.lightning import CheckpointCallback

        self.monitor = monitor
        self.callback = CheckpointCallback(monitor, mode, self.directory)
        return self.callback

    def save_config(self, config: Any) -> Path:
        """Write ``config.json``; what is no setting is left out.

        Args:
            config: a module or its variables, a dataclass, or a mapping.
        """
        return self._write("config.json", settings_of(config))

    def save_training_metadata(self, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write ``training_summary.json``: when, what, how long, how good.

        Args:
            metadata: best_epoch, num_epochs_trained, test_results and whatever else is to be told. What the
                callback saw fills in what is not given.
        """
        given = dict(metadata or {})
        seen = self._seen()
        self._warn_of_contradiction(given.get("best_epoch"))
        content = {
            "start_time": self.start_time.isoformat(),
            "end_time": datetime.now(UTC).isoformat(),
            "model_name": self.model_name,
            "loss_function": self.loss_function,
            "root_name": self.root_name,
            **seen,
            "test_results": {},
        }
        return self._write("training_summary.json", content | given)

    def save_classification_report(
        self,
        report: Mapping[str, Any],
        class_names: Sequence[str] | None = None,
        per_class_metrics: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write ``classification_report.json``: the test metrics, for several classes also one by one.

        Args:
            report: test_metrics, and whatever else is to be told; class_names and per_class_metrics may stand
                in it as well.
            class_names: in the order of the model's outputs.
            per_class_metrics: class name to its metrics; or metric to its values in the order of the class
                names.

        Raises:
            UsageError: there are not as many values as classes.
        """
        names = report.get("class_names") if class_names is None else class_names
        told = report.get("per_class_metrics") if per_class_metrics is None else per_class_metrics
        content: dict[str, Any] = {
            "test_metrics": {},
            "model_name": self.model_name,
            "loss_function": self.loss_function,
            **report,
            "class_names": None if names is None else [str(name) for name in names],
        }
        if told is not None:
            content["per_class_metrics"] = _by_class(told, content["class_names"])
        return self._write("classification_report.json", content)

    def save_minimal_logging(
        self,
        best_epoch: int | None = None,
        best_metric_value: float | None = None,
        best_metric_name: str | None = None,
        num_epochs_trained: int | None = None,
        early_stopping_triggered: bool | None = None,
    ) -> Path:
        """Write ``minimal_logging.json``, the run at a glance.

        Args:
            best_epoch: as Lightning counts, from 0; this and the others come from the callback if not given.
            best_metric_value: the best value.
            best_metric_name: of which metric.
            num_epochs_trained: how many epochs have ended.
            early_stopping_triggered: whether training ended before its time.
        """
        self._warn_of_contradiction(best_epoch)
        monitor = best_metric_name or self.monitor
        given = {
            "best_epoch": best_epoch,
            f"best_{monitor}": best_metric_value,
            "num_epochs_trained": num_epochs_trained,
            "early_stopping_triggered": early_stopping_triggered,
        }
        known = {name: value for name, value in given.items() if value is not None}
        content = {"timestamp": datetime.now(UTC).isoformat(), **self._seen(monitor), **known}
        return self._write("minimal_logging.json", content)

    def _seen(self, monitor: str | None = None) -> dict[str, Any]:
        """What the callback knows of the run; null where there is none."""
        seen = self.callback
        name = monitor or self.monitor
        return {
            "best_epoch": seen.best_epoch if seen else None,
            f"best_{name}": seen.best_model_score if seen and seen.monitor == name else None,
            "num_epochs_trained": seen.epochs_trained if seen else None,
            "early_stopping_triggered": seen.early_stopping_triggered if seen else False,
        }

    def _warn_of_contradiction(self, best_epoch: int | None) -> None:
        seen = self.callback.best_epoch if self.callback else None
        if None not in (best_epoch, seen) and best_epoch != seen:
            _log.warning("best_epoch %s was given, and the best checkpoint is of epoch %s.", best_epoch, seen)

    def _write(self, name: str, content: Mapping[str, Any]) -> Path:
        path = self.directory / name
        if self._writes:
            plain = plain_json(content)
            durable.write_text(path, to_text(plain))
            self._tell_tracker(name, plain)
        return path

    def _tell_tracker(self, name: str, content: Mapping[str, Any]) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker(name, content)
        except Exception as error:
            # Somebody else's code, and a server that may be away: neither is worth a training run.
            _log.warning("the tracker was not told of %s: %s. The local file is complete.", name, error)


class BinaryClassificationCheckpointManager(CheckpointManager, root_name="flares/binary_classification"):
    """For models that tell flaring regions from quiet ones."""


class MulticlassFlareCheckpointManager(CheckpointManager, root_name="flares/multiclass"):
    """For models that tell classes of flares apart."""


def _tracker(given: Any) -> Tracker | None:
    log = getattr(given, "log", given)
    if log is not None and not callable(log):
        raise UsageError(
            f"tracker: expected a callable or an object with log(name, content), got {type(given).__name__}."
        )
    return log  # type: ignore[no-any-return]


def _by_class(told: Mapping[str, Any], names: list[str] | None) -> dict[str, Any]:
    """Class name to its metrics, whichever way round they were given."""
    plain: dict[str, Any] = plain_json(told)
    lists = {metric: values for metric, values in plain.items() if isinstance(values, list)}
    if not lists:
        return plain
    if names is None:
        raise UsageError(
            "per_class_metrics: expected class_names with lists of values. Give the names of the classes."
        )
    wrong = next((metric for metric, values in lists.items() if len(values) != len(names)), None)
    if wrong is not None:
        raise UsageError(
            f"per_class_metrics: expected {len(names)} values of {wrong}, one for each class, "
            f"got {len(lists[wrong])}. Give them in the order of class_names."
        )
    return {name: {metric: values[at] for metric, values in lists.items()} for at, name in enumerate(names)}
