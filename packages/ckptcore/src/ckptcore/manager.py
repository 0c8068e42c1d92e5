"""The manager of a folder of checkpoints: when to save, under which names, and what to keep."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptcore import durable, folder, layouts, resume, rotation
from ckptcore.catalogue import Catalogue
from ckptcore.errors import DiskFull, UsageError
from ckptcore.layouts.layout import Layout, Moment
from ckptcore.lease import Lease
from ckptcore.load import Checkpoint, load
from ckptcore.plain import is_finite_number
from ckptcore.rules import KeepRule, Past, Progress, SaveRule, improves, metrics_watched
from ckptcore.save import Encoded, encode, write
from ckptcore.signals import SignalFlag, TrainingInterrupted
from ckptcore.writer import Writer

_log = logging.getLogger(__name__)
_HEAVY = ("optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "rng_state", "loader_state")
State = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Saved:
    """What one call of `CheckpointManager.step` set out to save.

    Attributes:
        names: file names by role.
        stall_seconds: how long the loop waited for it.
    """

    names: Mapping[str, str]
    stall_seconds: float


@dataclass(frozen=True)
class _Job:
    """One file to write: what goes in, and the names it gets."""

    encoded: Encoded
    names: tuple[str, ...]


class CheckpointManager:
    """Saves, rotates and resumes the checkpoints of one run in one folder.

    Args:
        directory: the folder, made when missing; empty or None for no checkpoints at all.
        layout: file names and rules, from `ckptcore.layouts`.
        save: save rules instead of the layout's.
        keep: a keep rule instead of the layout's.
        asynchronous: write beside the loop, which then only waits for the copy of its state.
        run_key: what tells this run from others; by default taken from what is resumed, else made up.
        total_epochs: length of the run, for rules that speak of its percentages; may grow.
        handle_signals: save on SIGTERM and SIGINT at the next step, then end with `TrainingInterrupted`.
        wait_seconds: how long to wait for another writer of the folder.

    Raises:
        FolderNotWritable: the folder cannot be made or written.
        FolderBusy: another writer holds it.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        layout: Layout | None = None,
        save: Sequence[SaveRule] | SaveRule | None = None,
        keep: KeepRule | None = None,
        asynchronous: bool = True,
        *,
        run_key: str | None = None,
        total_epochs: int | None = None,
        handle_signals: bool = True,
        wait_seconds: float = 0.0,
    ) -> None:
        rules = (save,) if isinstance(save, SaveRule) else None if save is None else tuple(save)
        self.layout = (layout or layouts.plain()).with_rules(rules, keep)
        self.directory = Path(directory) if directory else None
        self.run_key = run_key
        self.total_epochs = total_epochs
        self.history: dict[str, list[float]] = {}
        self._given_key = run_key
        self._parent: dict[str, Any] | None = None
        self._opened = time.monotonic()
        self._past: dict[str, Past] = {}
        self._best: dict[str, float] = {}
        self._best_epoch: int | None = None
        self._stages: list[str] = []
        self._cleared = False
        self._last: tuple[State, Progress] | None = None
        self._failed: DiskFull | None = None
        self._writer = Writer(asynchronous)
        self._buffers: Any = None
        self._flag = SignalFlag()
        self._lease: Lease | None = None
        self._metrics_watched = metrics_watched(self.layout.save)
        if self.directory is not None:
            self._open(self.directory, wait_seconds, handle_signals)

    def _open(self, directory: Path, wait_seconds: float, handle_signals: bool) -> None:
        durable.make_folder(directory)
        durable.require_writable(directory)
        self._lease = Lease(directory)
        self._lease.acquire(wait_seconds)
        durable.sweep(directory)
        folder.write_policy(directory, self.layout)
        _log.info("checkpoints will be saved to %s", directory)
        if handle_signals:
            self._flag.install()

    @property
    def stop_requested(self) -> bool:
        """Whether a signal asked the run to stop; poll it in loops that do not call `step`."""
        return self._flag.received is not None

    def step(
        self,
        state: State,
        *,
        epoch: int,
        metrics: Mapping[str, float] | None = None,
        global_step: int | None = None,
        epoch_end: bool = True,
        stage: str | None = None,
        stage_end: bool = False,
        final: bool = False,
        reason: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Saved | None:
        """Tell the manager where the loop is; it saves if a rule says so.

        Args:
            state: the training state, or a callable that makes it and is called only when something is saved.
            epoch: index from 0 of the epoch that has just ended (or is running, with ``epoch_end=False``).
            metrics: what was measured now.
            global_step: optimizer steps taken since the start.
            epoch_end: False within an epoch.
            stage: name of the running stage of a staged training.
            stage_end: that stage has just ended.
            final: training is over; a failure to save now is an error, whatever it is.
            reason: saves now as the latest, and says why in the header ("nonfinite", say); never as the best.
            metadata: more for the header.

        Returns:
            What was set out to be saved, None for nothing.

        Raises:
            TrainingInterrupted: after saving, when a signal came.
            Exception: what the writer thread met since the last call.
        """
        self._writer.raise_error()
        progress = self._progress(epoch, metrics, global_step, epoch_end, stage, stage_end, final)
        self._remember(progress)
        self._last = (state, progress)
        if self.directory is None:
            self._leave_on_signal()
            return None
        roles = {"latest"} & set(self.layout.templates) if reason else self._due(progress)
        saved = self._save(state, progress, roles, reason, metadata or {}) if roles else None
        if final or progress.signal or reason:
            self.wait()
            if final and self._failed is not None:
                raise self._failed
        self._leave_on_signal()
        return saved

    def _leave_on_signal(self) -> None:
        number = self._flag.received
        if number is not None:
            self.close()
            raise TrainingInterrupted(number)

    def _progress(
        self,
        epoch: int,
        metrics: Mapping[str, float] | None,
        global_step: int | None,
        epoch_end: bool,
        stage: str | None,
        stage_end: bool,
        final: bool,
    ) -> Progress:
        numbers = {name: _number(name, value) for name, value in (metrics or {}).items()}
        if epoch < 0:
            raise UsageError(f"expected the index of an epoch, from 0, got {epoch}.")
        last = self.total_epochs is not None and epoch_end and epoch + 1 >= self.total_epochs
        return Progress(
            epoch=epoch,
            epoch_end=epoch_end,
            global_step=epoch + 1 if global_step is None and epoch_end else global_step or epoch,
            total_epochs=self.total_epochs,
            metrics=numbers,
            seconds=time.monotonic() - self._opened,
            stage=stage,
            stage_end=stage_end,
            final=final or last,
            signal=self.stop_requested,
        )

    def _remember(self, progress: Progress) -> None:
        """Append to the history what a finished epoch measured; an epoch that is run again replaces what was there."""
        if not progress.epoch_end:
            return
        for name, value in progress.metrics.items():
            values = self.history.setdefault(name, [])
            del values[progress.epoch :]
            values.extend([float("nan")] * (progress.epoch - len(values)))
            values.append(value)

    def _due(self, progress: Progress) -> set[str]:
        past = {role: replace(self._past.get(role, Past()), best=self._best) for role in self.layout.templates}
        return {rule.role for rule in self.layout.save if rule.due(progress, past[rule.role])}

    def _save(
        self, state: State, progress: Progress, roles: set[str], reason: str | None, metadata: Mapping[str, Any]
    ) -> Saved:
        assert self.directory is not None
        began = time.perf_counter()
        self.wait()
        self._writer.raise_error()
        if not self._cleared:
            self._claim_folder()
        if progress.stage is not None and progress.stage not in self._stages:
            self._stages.append(progress.stage)
        moment = self._moment(progress, roles)
        names = {role: self.layout.file_name(role, moment) for role in self.layout.templates if role in roles}
        made = dict(state() if callable(state) else state)
        jobs = self._jobs(made, moment, names, self._metadata(moment, reason, metadata))
        self._note(progress, roles, moment)
        self._writer.submit(lambda: self._write(jobs, names, final=progress.final))
        return Saved(names, time.perf_counter() - began)

    def _claim_folder(self) -> None:
        assert self.directory is not None
        if self.run_key is None:
            self.run_key = secrets.token_hex(8)
        resume.move_other_runs(self.directory, self.layout, self.run_key)
        self._cleared = True

    def _moment(self, progress: Progress, roles: set[str]) -> Moment:
        best, best_epoch = dict(self._best), self._best_epoch
        for metric, mode in self._metrics_watched.items():
            value = progress.metrics.get(metric)
            if value is not None and is_finite_number(value) and improves(value, best.get(metric), mode):
                best[metric] = value
                best_epoch = progress.epochs_finished if metric == self.layout.metric else best_epoch
        return Moment(
            progress=progress,
            history={name: list(values) for name, values in self.history.items()},
            best=best,
            best_epoch=best_epoch,
            monitor=self.layout.metric,
            stage_number=self._stages.index(progress.stage) + 1 if progress.stage in self._stages else 0,
            timestamp=datetime.now(UTC).isoformat(),
        )

    def _metadata(self, moment: Moment, reason: str | None, more: Mapping[str, Any]) -> dict[str, Any]:
        progress = moment.progress
        found: dict[str, Any] = {
            **more,
            "run_key": self.run_key,
            "layout": self.layout.name,
            "epoch_counts": self.layout.epoch_counts,
            "epochs_finished": progress.epochs_finished,
            "global_step": progress.global_step,
            "metrics": dict(progress.metrics),
            "best": {"values": dict(moment.best), "epochs_finished": moment.best_epoch},
            "total_epochs": progress.total_epochs,
            "stages": list(self._stages),
            "parent": self._parent,
        }
        why = reason or ("signal" if progress.signal else "exception" if progress.exception else None)
        return found | ({"reason": why} if why else {})

    def _jobs(
        self, state: dict[str, Any], moment: Moment, names: Mapping[str, str], metadata: dict[str, Any]
    ) -> list[_Job]:
        """The files to write, their tensors copied away from the loop where the writer is asynchronous."""
        finished = moment.progress.epochs_finished
        # A loop that saves itself under another convention would contradict the header; the manager knows.
        state["epoch"] = finished if self.layout.epoch_counts == "finished" else finished - 1
        state.setdefault("global_step", moment.progress.global_step)
        state.setdefault("timestamp", moment.timestamp)
        state.setdefault("history", dict(moment.history))
        whole = self.layout.complete(state, moment)
        slim_roles = [role for role in names if role in self.layout.weights_only]
        full_roles = [role for role in names if role not in self.layout.weights_only]
        full = encode(whole, metadata | {"roles": full_roles})
        if self._writer.asynchronous:
            full = replace(full, tensors=self._copied(full))
        jobs = [_Job(full, tuple(dict.fromkeys(names[role] for role in full_roles)))] if full_roles else []
        if slim_roles:
            slim = replace(full, tree=_without(full.tree, _HEAVY), metadata=full.metadata | {"roles": slim_roles})
            jobs.append(_Job(slim.compacted(), tuple(dict.fromkeys(names[role] for role in slim_roles))))
        return jobs

    def _copied(self, encoded: Encoded) -> list[Any]:
        from ckptcore.snapshot import SnapshotBuffers

        if self._buffers is None:
            self._buffers = SnapshotBuffers()
        return list(self._buffers.copy(encoded.tensors))

    def _note(self, progress: Progress, roles: set[str], moment: Moment) -> None:
        for role in roles:
            self._past[role] = Past(progress.epochs_finished, progress.global_step, progress.seconds)
        if "best" in roles:
            self._best, self._best_epoch = dict(moment.best), moment.best_epoch

    def _write(self, jobs: Sequence[_Job], names: Mapping[str, str], final: bool) -> None:
        """Write, name and rotate; runs in the writer thread."""
        assert self.directory is not None and self.run_key is not None
        try:
            for job in jobs:
                target = self.directory / job.names[0]
                with durable.staged(target, job.encoded.nbytes) as (fd, temporary):
                    write(fd, job.encoded)
                durable.publish(temporary, [self.directory / name for name in job.names])
        except DiskFull as error:
            self._failed = error
            _log.error("%s Training goes on; the next save tries again.", error)
            self._forget(names)
            return
        self._failed = None
        for role, name in names.items():
            _log.info("saved %s: %s", role, name)
        rotation.rotate(self.directory, self.layout, self.run_key, spare=names.values())

    def _forget(self, names: Mapping[str, str]) -> None:
        """After a save that failed: what is on disk is what counts again."""
        for role in names:
            self._past.pop(role, None)
        self._read_past()

    def _read_past(self, until: Checkpoint | None = None) -> None:
        """Rebuild from disk what was saved when, up to the point that is resumed from."""
        assert self.directory is not None and self.run_key is not None
        files = Catalogue.scan(self.directory).of_run(self.run_key)
        if until is not None:
            limit = (until.header.epochs_finished or 0, until.header.global_step or 0)
            files = [f for f in files if f.order[:2] <= limit]
        self._best = rotation.best_values(files, self.layout)
        for file in files:
            header = file.header
            assert header is not None
            age = time.time() - file.modified / 1e9
            for role in self.layout.roles_of(file.name):
                self._past[role] = Past(
                    header.epochs_finished, header.global_step, time.monotonic() - self._opened - age
                )
            best = header.metadata.get("best")
            if isinstance(best, dict) and "best" in self.layout.roles_of(file.name):
                self._best_epoch = header.epochs_finished

    def resume(self, source: str | os.PathLike[str] = "auto", map_location: Any = "cpu") -> Checkpoint | None:
        """Find and load the checkpoint to go on from.

        Args:
            source: "auto" for the newest one of the run that verifies, "none" for a fresh start, or a file.
            map_location: where its tensors go.

        Returns:
            The checkpoint, or None to start afresh.
        """
        if self.directory is None or str(source) == "none":
            return None
        if str(source) == "auto":
            found = resume.newest(self.directory, self.layout, self._given_key, map_location)
        else:
            found = load(source, map_location)
        if found is not None:
            self._go_on_from(found)
        return found

    def _go_on_from(self, found: Checkpoint) -> None:
        assert self.directory is not None
        header = found.header
        same_folder = Path(header.path).parent.resolve() == self.directory.resolve()
        if header.run_key is not None and (self._given_key in (None, header.run_key)) and same_folder:
            self.run_key = header.run_key
        else:
            self.run_key = self._given_key or secrets.token_hex(8)
            self._parent = {"run_key": header.run_key, "model_digest": header.model_digest, "file": header.path.name}
        history = found.get("history")
        if isinstance(history, Mapping):
            self.history = {str(k): list(v) for k, v in history.items() if isinstance(v, list)}
        stages = header.metadata.get("stages")
        self._stages = [str(stage) for stage in stages] if isinstance(stages, list) else []
        self._read_past(until=found)
        _log.info("resuming from %s (%s epochs finished)", header.path.name, header.epochs_finished)

    def wait(self) -> None:
        """Wait until the save in flight is durable."""
        self._writer.wait()

    def close(self) -> None:
        """Wait for the save in flight and give the folder back.

        Raises:
            Exception: what the writer thread met.
        """
        try:
            self.wait()
        finally:
            self._flag.restore()
            if self._lease is not None:
                self._lease.release()
        self._writer.raise_error()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, TrainingInterrupted) and self._last is not None:
            self._save_on_exception()
        self.close()

    def _save_on_exception(self) -> None:
        assert self._last is not None
        state, last = self._last
        progress = replace(last, epoch_end=False, epoch=last.epochs_finished, exception=True, final=False, metrics={})
        roles = self._due(progress) if self.directory is not None else set()
        if roles and callable(state):
            try:
                self._save(state, progress, roles, None, {})
            except Exception:
                # The first exception is the one to be seen; this one must not take its place.
                _log.exception("the state at the exception could not be saved")


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"metric {name!r}: expected a number, got {type(value).__name__}.") from error


def _without(tree: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}
