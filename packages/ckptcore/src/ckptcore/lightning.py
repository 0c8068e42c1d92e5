"""A Lightning callback that keeps the one best checkpoint: durable, digested, and still Lightning's own.

Works with ``lightning`` and with ``pytorch_lightning``; neither is imported before a callback is made.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ckptcore import durable, folder, resume, rotation
from ckptcore.catalogue import Catalogue
from ckptcore.errors import UnsavableValue, UsageError
from ckptcore.layouts import Layout, run_folder
from ckptcore.layouts.filling import metric_literal
from ckptcore.lease import Lease
from ckptcore.plain import flatten
from ckptcore.rules import Mode, finite_score, improves
from ckptcore.semver import is_version
from ckptcore.writing import save

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_FLAVOURS = ("lightning.pytorch", "pytorch_lightning")
TEMPLATE = "best-epoch{epoch:02d}-{monitor}-{value:.3f}.ckpt"


class CheckpointCallback:
    """Keeps the best checkpoint by a monitored metric, and no other, in one folder.

    Args:
        monitor: name of a logged metric.
        mode: "min" for losses, "max" for scores.
        dirpath: the folder, made when training starts.
        filename: file name with the fields epoch (Lightning's index, from 0), monitor and value; ``.ckpt`` is
            added where it is missing.
        save_weights_only: leave out optimizers, schedulers and callbacks.

    Attributes:
        best_model_path: the best file; "" before the first.
        best_model_score: its value; None before the first.
        best_epoch: its epoch, as Lightning counts, from 0.
        epochs_trained: how many epochs have ended.
        early_stopping_triggered: whether an ``EarlyStopping`` callback ended the run.

    Raises:
        UsageError: Lightning is not installed; or the file name has another field, or is a version's.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # A Trainer adds a checkpoint callback of its own unless one is an instance of its Checkpoint class.
        # There are two such classes, and which is meant is known only once the user has imported a Lightning.
        kind: Any = cls
        made: Self = object.__new__(_with_bases(kind, _checkpoint_bases()))
        return made

    def __init__(
        self,
        monitor: str,
        mode: Mode,
        dirpath: str | os.PathLike[str],
        filename: str = TEMPLATE,
        *,
        save_weights_only: bool = False,
    ) -> None:
        self.monitor, self.mode = monitor, mode
        self.dirpath = Path(dirpath)
        self.layout = _layout(monitor, mode, filename)
        self.save_weights_only = save_weights_only
        self.run_key = secrets.token_hex(8)
        self.best_model_path = ""
        self.best_model_score: torch.Tensor | None = None
        self.best_epoch: int | None = None
        self.epochs_trained = 0
        self.early_stopping_triggered = False
        self._lease: Lease | None = None
        self._claimed = False
        self._told_of_absence = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = next(c for c in type(self).__mro__ if not getattr(c, "_made_for_trainer", False))
        return _remade, (kind,), {**vars(self), "_lease": None}

    @property
    def state_key(self) -> str:
        """What Lightning files the callback's state under."""
        return f"{self._watched}, 'dirpath': {str(self.dirpath)!r}}}"

    @property
    def _watched(self) -> str:
        return f"ckptcore.CheckpointCallback{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}"

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """Take over the state of the one callback of the same metric, where the folder was moved."""
        states = checkpoint.get("callbacks", {})
        same = [key for key in states if str(key).startswith((f"{self._watched}, ", f"{self._watched}}}"))]
        if self.state_key not in states and len(same) == 1:
            self.load_state_dict(states[same[0]])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know of the best."""
        return {
            "run_key": self.run_key,
            "best_model_path": self.best_model_path,
            "best_model_score": None if self.best_model_score is None else float(self.best_model_score),
            "best_epoch": self.best_epoch,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the best counts as long as its file is there."""
        import torch

        if not state_dict["best_model_path"]:
            return
        told = Path(state_dict["best_model_path"])
        here = self.dirpath / told.name  # the folder may have been moved, with what is in it
        if here.is_file() or told.parent.absolute() == self.dirpath.absolute():
            self.run_key = state_dict["run_key"]
        if here.is_file() or told.is_file():
            self.best_model_path = str(here if here.is_file() else told)
            self.best_model_score = torch.tensor(state_dict["best_model_score"])
            self.best_epoch = state_dict["best_epoch"]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the folder, where this process is the one that writes."""
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run and self._lease is None:
            durable.make_folder(self.dirpath)
            durable.require_writable(self.dirpath)
            self._lease = Lease(self.dirpath)
            self._lease.acquire()
            self._claimed = False
            durable.sweep(self.dirpath)
            folder.write_policy(self.dirpath, self.layout)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the folder back, and note how training ended."""
        if stage == "fit":
            self.early_stopping_triggered = _stopped_early(trainer)
            self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the folder back; there may be no teardown."""
        self._release()

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the best that an interrupted run left, and what a kill left beside it."""
        if self._lease is not None:
            self._adopt_from_disk()
        told = trainer.strategy.broadcast(self.state_dict() | {"score": self.best_model_score})
        self.run_key, self.best_model_path = told["run_key"], told["best_model_path"]
        self.best_epoch, self.best_model_score = told["best_epoch"], told["score"]

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Save where validation runs within an epoch, or not in each."""
        if not _saves_at_epoch_end(trainer):
            at_the_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            self._consider(trainer, trainer.current_epoch + bool(at_the_end))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save where validation ends each epoch."""
        self.epochs_trained = trainer.current_epoch + 1
        if _saves_at_epoch_end(trainer):
            self._consider(trainer, trainer.current_epoch + 1)

    def _consider(self, trainer: Any, epochs_finished: int) -> None:
        """Save if the metric is better than the best; sanity checks, dry runs, NaN and ties do not count."""
        if trainer.sanity_checking or trainer.fast_dev_run or trainer.state.fn.value != "fit":
            return
        measured = {
            name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1
        }
        if self.monitor not in measured and not self._told_of_absence:
            self._told_of_absence = True
            _log.warning(
                "nothing is saved yet: no metric %r was logged; there are: %s",
                *(self.monitor, ", ".join(sorted(measured)) or "none"),
            )
        value = finite_score(measured, self.monitor)
        best = None if self.best_model_score is None else float(self.best_model_score)
        better = value is not None and improves(value, best, self.mode)
        # One process decides for all: metrics that were not reduced differ between them.
        if trainer.strategy.broadcast(better):
            self._save(trainer, epochs_finished, trainer.strategy.broadcast(measured))

    def _save(self, trainer: Any, epochs_finished: int, metrics: dict[str, float]) -> None:
        import torch

        name = self.layout.templates["best"].format(epoch=trainer.current_epoch, metric=metrics[self.monitor])
        path = self.dirpath / name
        former = (self.best_model_path, self.best_model_score, self.best_epoch)
        # Before the file is written, since it holds the state of this callback.
        self.best_model_path, self.best_epoch = str(path), trainer.current_epoch
        self.best_model_score = torch.tensor(metrics[self.monitor])
        try:
            self._write(trainer, path, epochs_finished, metrics)
        except BaseException:
            self.best_model_path, self.best_model_score, self.best_epoch = former
            raise

    def _write(self, trainer: Any, path: Path, epochs_finished: int, metrics: dict[str, float]) -> None:
        metadata = {
            "run_key": self.run_key,
            "layout": self.layout.name,
            "roles": ["best"],
            "epoch_counts": "index",
            "epochs_finished": epochs_finished,
            "metrics": metrics,
        }
        if self._lease is not None:
            self._make_way(path.name)
        former = trainer.strategy.checkpoint_io
        trainer.strategy.checkpoint_io = _DurableIO(metadata)
        try:
            trainer.save_checkpoint(path, weights_only=self.save_weights_only)
        finally:
            trainer.strategy.checkpoint_io = former
        if not trainer.is_global_zero:
            return
        if not path.is_file():
            raise UsageError(
                f"{type(trainer.strategy).__name__} writes no single file; expected a strategy that gathers "
                "the state, such as DDP or FSDP with state_dict_type='full'."
            )
        _log.info("saved best model: %s (%s: %.4f)", path.name, self.monitor, metrics[self.monitor])
        rotation.rotate(self.dirpath, self.layout, self.run_key, spare=[path.name])

    def _make_way(self, name: str) -> None:
        """Before the first save of a fit, another run's files go out of the way; before each, a stranger."""
        if not self._claimed:
            resume.move_other_runs(self.dirpath, self.layout, self.run_key)
            self._claimed = True
        resume.make_way(self.dirpath, self.run_key, [name])

    def _adopt_from_disk(self) -> None:
        """The best one on disk is the best of this run, even if the file resumed from is older than it."""
        import torch

        rotation.drop_former_bests(self.dirpath, self.layout)
        files = Catalogue.scan(self.dirpath).of_run(self.run_key)
        name = rotation.best_name(files, self.layout)
        for header in [f.header for f in files if f.name == name]:
            value = None if header is None else finite_score(header.metrics, self.monitor)
            if header is None or value is None:
                continue
            self.best_model_path, self.best_epoch = str(self.dirpath / header.path.name), header.epoch
            self.best_model_score = torch.tensor(value)


class _DurableIO:
    """Stands in for Lightning's checkpoint writer while one file is saved."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self._metadata = metadata

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        save(path, plain_checkpoint(checkpoint), self._metadata)


def plain_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A Lightning checkpoint without what ``weights_only`` cannot load.

    A hyperparameter or a callback's state that is no plain value is left out, and named in a warning: whoever
    loads the model passes it again. Anything else that cannot be stored is an error when it is saved.
    """
    plain = dict(checkpoint)
    plain.pop("hparams_type", None)
    for key in ("hyper_parameters", "datamodule_hyper_parameters", "callbacks"):
        if isinstance(plain.get(key), Mapping):
            plain[key] = {
                name: value for name, value in plain[key].items() if _storable(f"{key}/{name}", value)
            }
    return plain


def _storable(name: str, value: Any) -> bool:
    try:
        flatten({"": value})
    except UnsavableValue as error:
        _log.warning("left out of the checkpoint: %s (%s)", name, error)
        return False
    return True


def _layout(monitor: str, mode: Mode, filename: str) -> Layout:
    try:
        # Half filled in: what is left are the fields of a layout's template.
        template = filename.replace("{value", "{metric").replace("{monitor}", metric_literal(monitor))
        template.format(epoch=0, metric=0.0)
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            f"expected a file name with epoch, monitor and value, as {TEMPLATE}, got {filename!r}."
        ) from error
    template += "" if template.endswith(".ckpt") else ".ckpt"
    if is_version(template.format(epoch=0, metric=0.0)):
        raise UsageError(f"expected no promoted version's name, got {filename!r}: versions stay as they are.")
    return replace(run_folder(monitor, mode, latest=False), templates={"best": template})


def _saves_at_epoch_end(trainer: Any) -> bool:
    """Whether each training epoch ends with exactly one validation, or there is none at all."""
    if getattr(trainer, "_val_check_time_interval", None) is not None or trainer.check_val_every_n_epoch != 1:
        return False
    batches = trainer.num_val_batches
    if (sum(batches) if isinstance(batches, list) else batches) == 0:
        return True
    # A float is a share of the epoch, an int a number of batches.
    return isinstance(trainer.val_check_interval, float) and trainer.val_check_interval == 1.0


def _stopped_early(trainer: Any) -> bool:
    """Whether an EarlyStopping callback stopped the run; it may have done so in epoch 0."""
    return any(
        stopping.stopped_epoch > 0 or getattr(getattr(stopping, "stopping_reason", None), "value", 0) != 0
        for stopping in trainer.early_stopping_callbacks
    )


def _checkpoint_bases() -> tuple[type, ...]:
    """The Checkpoint classes of the Lightnings that are loaded; else of the first one that is installed."""
    loaded = [name for name in _FLAVOURS if sys.modules.get(name) is not None]
    for name in loaded or _FLAVOURS:
        try:
            import_module(f"{name}.callbacks")
        except ImportError:
            continue
        loaded = loaded or [name]
    if not loaded:
        raise UsageError(
            "the callback needs Lightning, which is not installed. Run: pip install 'ckptcore[lightning]'"
        )
    return tuple(sys.modules[f"{name}.callbacks"].Checkpoint for name in loaded)


@lru_cache(maxsize=16)
def _with_bases(kind: type, bases: tuple[type, ...]) -> type:
    more = tuple(base for base in bases if not issubclass(kind, base))
    if not more:
        return kind
    return type(kind.__name__, (kind, *more), {"__module__": kind.__module__, "_made_for_trainer": True})


def _remade(kind: type[CheckpointCallback]) -> CheckpointCallback:
    """What pickle and copy build a callback from; its attributes follow."""
    return kind.__new__(kind)
