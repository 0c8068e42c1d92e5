"""The manager of a folder of checkpoints: when to save, under which names, and what to keep."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptcore import durable, folder, layouts, resume, rotation
from ckptcore.announce import saved_lines
from ckptcore.background import Writer
from ckptcore.catalogue import Catalogue
from ckptcore.errors import CheckpointError, DiskFull, UsageError
from ckptcore.history import write_history
from ckptcore.jobs import Job, Packer, Saved
from ckptcore.layouts.layout import Layout, Moment
from ckptcore.lease import Lease
from ckptcore.loading import Checkpoint, load
from ckptcore.position import mapping, position
from ckptcore.record import RunRecord
from ckptcore.rules import AtFractions, KeepRule, Progress, SaveRule
from ckptcore.signals import SignalFlag, TrainingInterrupted
from ckptcore.writing import write

_log = logging.getLogger(__name__)
State = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


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
        handle_signals: save on SIGTERM, SIGINT or SIGHUP at the next step, then raise `TrainingInterrupted`.
        wait_seconds: how long to wait for another writer of the folder.

    Raises:
        FolderNotWritable: the folder cannot be made or written.
        FolderBusy: another writer holds it.
        UsageError: the run key is no text, or empty: no file would ever be found by it.
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
        if run_key is not None and not isinstance(run_key or None, str):
            raise UsageError(f"expected run_key to be text that is not empty, or None, got {run_key!r}.")
        rules = (save,) if isinstance(save, SaveRule) else None if save is None else tuple(save)
        self.layout = (layout or layouts.plain()).with_rules(rules, keep)
        # A loop may change its working directory: the folder, and the lock on it, stay where they are.
        self.directory = Path(directory).absolute() if directory else None
        self.run_key = run_key
        self.total_epochs = total_epochs
        self._given_key = run_key
        self._parent: dict[str, Any] | None = None
        self._record = RunRecord(self.layout)
        self._claimed = False
        self._closed = False
        self._last: tuple[State, Progress] | None = None
        self._failed: DiskFull | None = None
        self._untold: Mapping[str, Sequence[float]] | None = None
        self._writer = Writer(asynchronous)
        self._packer = Packer(self.layout, copies=asynchronous)
        self._flag = SignalFlag()
        self._lease: Lease | None = None
        if self.directory is None:
            _log.info("no checkpoints will be saved: no folder was given")
        else:
            self._open(self.directory, wait_seconds, handle_signals)

    def _open(self, directory: Path, wait_seconds: float, handle_signals: bool) -> None:
        durable.make_folder(directory)
        durable.require_writable(directory)
        self._lease = Lease(directory)
        self._lease.acquire(wait_seconds)
        try:
            folder.sweep(directory)
            self._keep_former_best(directory)
            with suppress(DiskFull):  # only explanations need it, and the next opening writes it
                folder.write_policy(directory, self.layout)
            rotation.drop_former_bests(directory, self.layout)
            if self.run_key is not None:
                self._record.read(Catalogue.scan(directory).of_run(self.run_key))
        except BaseException:
            self._lease.release()
            raise
        _log.info("checkpoints will be saved to: %s", directory)
        if handle_signals:
            self._flag.install()

    def _keep_former_best(self, directory: Path) -> None:
        """Best by another metric, or the other way round: the next best would replace it without a word."""
        try:
            before = folder.read_policy(directory)
        except UsageError:
            return  # It is written again now, and nobody knows what it said.
        now = (self.layout.metric, self.layout.mode)
        if before is None or before.metric is None or (before.metric, before.mode) == now:
            return
        kept = rotation.keep_former_best(directory, self.layout, directory / resume.ARCHIVED)
        if kept is not None:
            _log.warning(
                "the best was chosen by %s (%s), and now is by %s (%s). The best so far stays in %s, too.",
                before.metric,
                before.mode,
                *now,
                kept,
            )

    @property
    def history(self) -> dict[str, list[float]]:
        """What was measured in every finished epoch, by metric; at resume that of the checkpoint."""
        return self._record.history

    @property
    def stop_requested(self) -> bool:
        """Whether a signal asked the run to stop; poll it in loops that do not call `step`."""
        asked = self._flag.received is not None
        if asked:
            self._flag.serve()
        return asked

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
            DiskFull: what a signal, or the end of the training, asked to save does not fit.
            Exception: what the writer thread met since the last call.
        """
        if self._closed:
            raise UsageError(
                "this manager was closed and its folder given back. Open a new one to save again."
            )
        self._writer.raise_error()
        progress = position(
            epoch,
            epoch_end,
            global_step,
            metrics or {},
            total_epochs=self.total_epochs,
            final=final,
            seconds=self._record.seconds,
            stage=stage,
            stage_end=stage_end,
            signal=self._flag.received is not None,
        )
        self._record.measure(progress)
        self._last = (state, progress)
        if self.directory is None:
            return None
        roles = self._roles(progress, reason)
        saved = self._save(state, progress, roles, reason, metadata or {}) if roles else None
        if progress.final or progress.signal or reason:
            self.wait()
        if progress.final:
            self._raise_failure()
        # A signal that came within this call may have come too late for it to save: the next one does.
        if progress.signal and self._flag.received is not None:
            self._flag.serve()
            self._shut()
            # This was the last save: a process that ends as if it had been one would hide that it was none.
            self._raise_failure()
            raise TrainingInterrupted(self._flag.received)
        return saved

    def _roles(self, progress: Progress, reason: str | None) -> set[str]:
        names = set(self.layout.templates)
        latest = {"latest"} & names
        if reason:
            return latest | ({"final"} & names if progress.final else set())
        if progress.exception:
            # Only what is meant for it: nobody knows how whole that state is, so the latest must stay.
            return self._record.due(progress) - self._record.due(replace(progress, exception=False))
        # A layout that was told to keep no latest still has a place for what a signal saves.
        asked = (latest or {"periodic"} & names) if progress.signal else set()
        return self._record.due(progress) | asked

    def _save(
        self,
        state: State,
        progress: Progress,
        roles: set[str],
        reason: str | None,
        metadata: Mapping[str, Any],
    ) -> Saved:
        assert self.directory is not None
        began = time.perf_counter()
        self.wait()
        if self._failed is not None:
            # What was taken for saved is not: the rules are asked again.
            roles = roles | self._roles(progress, reason)
        if not self._claimed:
            self._claim_folder(progress)
        moment = self._record.moment(progress)
        names = {role: self.layout.file_name(role, moment) for role in self.layout.templates if role in roles}
        made = dict(mapping("the state", state() if callable(state) else state))
        whose = {"run_key": self.run_key, "parent": self._parent}
        header = {**mapping("metadata", metadata), **self._record.header(moment, reason), **whose}
        jobs = self._packer.pack(made, moment, names, header)
        self._record.note(moment, roles)
        self._writer.submit(lambda: self._write(jobs, names, moment))
        return Saved(names, time.perf_counter() - began)

    def _claim_folder(self, progress: Progress) -> None:
        """Before the first file is written: what is no part of this run's past goes out of the way."""
        assert self.directory is not None
        if self.run_key is None:
            self.run_key = secrets.token_hex(8)
        if self.total_epochs is None and any(
            isinstance(p, AtFractions) for r in self.layout.save for p in r.parts()
        ):
            _log.warning(
                "the layout %s saves at percentages of the run; give total_epochs.", self.layout.name
            )
        resume.move_other_runs(self.directory, self.layout, self.run_key)
        resume.move_abandoned(self.directory, self.layout, self.run_key, progress)
        self._claimed = True

    def _write(self, jobs: Sequence[Job], names: Mapping[str, str], moment: Moment) -> None:
        """Write, name and rotate; runs in the writer thread."""
        assert self.directory is not None and self.run_key is not None
        try:
            for job in jobs:
                targets = [self.directory / name for name in job.names]
                with durable.staged(targets[0], job.encoded.nbytes) as (fd, temporary):
                    write(fd, job.encoded)
                resume.make_way(self.directory, self.run_key, job.names)
                durable.publish(temporary, targets)
        except DiskFull as error:
            self._failed = error
            last = moment.progress.final or moment.progress.signal
            _log.error("%s %s", error, "" if last else "Training goes on; the next save tries again.")
            self._read_record()
            return
        except BaseException:
            self._read_record()
            raise
        self._failed = None
        for level, line in saved_lines(self.directory, self.layout, names, moment):
            _log.log(level, line)
        self._rotate(spare=names.values())
        self._write_history(moment.history)

    def _read_record(self) -> None:
        """After a save that failed: what is on disk is what counts again."""
        assert self.directory is not None and self.run_key is not None
        self._record.read(Catalogue.scan(self.directory).of_run(self.run_key))

    def _rotate(self, spare: Iterable[str]) -> None:
        assert self.directory is not None and self.run_key is not None
        catalogue = Catalogue.scan(self.directory)
        try:
            gone = rotation.rotate(
                self.directory, self.layout, self.run_key, spare=spare, catalogue=catalogue
            )
        except (CheckpointError, OSError) as error:
            # The checkpoint is safe; files too many are no reason to end a training.
            _log.error("nothing was rotated away: %s", error)
            return
        # Somebody may have deleted or put back a file: a new best must beat what is there now.
        self._record.read_best([f for f in catalogue.of_run(self.run_key) if f.name not in gone])

    def _write_history(self, history: Mapping[str, Sequence[float]]) -> None:
        if self.directory is None or self.layout.history_file is None:
            return
        self._untold = history
        try:
            write_history(self.directory / self.layout.history_file, history)
        except DiskFull as error:
            # The checkpoint of this moment is safe and holds the same lists.
            _log.error("%s The history is written again with the next save.", error)
        else:
            self._untold = None

    def resume(
        self, source: str | os.PathLike[str] = "auto", map_location: Any = "cpu", *, mmap: bool = False
    ) -> Checkpoint | None:
        """Find and load the checkpoint to go on from.

        Args:
            source: "auto" for the newest one of the run that verifies, "none" for a fresh start, or a file,
                in the folder or elsewhere.
            map_location: where its tensors go.
            mmap: as for `ckptcore.load`: faster, and safe as long as only managers write here.

        Returns:
            The checkpoint, or None to start afresh.

        Raises:
            UsageError: the source is neither text nor a path, or ``map_location`` is no device.
        """
        if not isinstance(source, (str, os.PathLike)):
            raise UsageError(f"expected 'auto', 'none' or a file to resume from, got {source!r}.")
        if self.directory is None or str(source) == "none":
            return None
        self.wait()
        if str(source) == "auto":
            found = resume.newest(self.directory, self.layout, self._given_key, map_location, mmap)
            if found is not None and found.header.run_key is not None:
                resume.finish(found, self.layout)
        else:
            here = self.directory / source
            found = load(here if here.is_file() else source, map_location, mmap=mmap)
        if found is not None:
            self._go_on_from(found)
        if found is not None and str(source) == "auto" and found.header.run_key == self.run_key:
            resume.finish_history(self.directory, self.layout, self.history)
        return found

    def _go_on_from(self, found: Checkpoint) -> None:
        assert self.directory is not None
        header = found.header
        same_folder = Path(header.path).parent.resolve() == self.directory.resolve()
        if header.run_key is not None and (self._given_key in (None, header.run_key)) and same_folder:
            self.run_key = header.run_key
        else:
            self.run_key = self._given_key or secrets.token_hex(8)
            self._parent = {
                "run_key": header.run_key,
                "model_digest": header.model_digest,
                "file": header.path.name,
            }
        self._record.restore(found)
        self._record.read(Catalogue.scan(self.directory).of_run(self.run_key), until=found)
        self._claimed = False
        _log.info("resuming from %s (%s epochs finished)", header.path.name, header.epochs_finished)

    def wait(self) -> None:
        """Wait until the save in flight is durable.

        Raises:
            Exception: what the writer thread met; a full disk is none, the next save tries again.
        """
        self._writer.wait()
        self._writer.raise_error()

    def close(self) -> None:
        """Wait for the save in flight and give the folder back.

        Raises:
            Exception: what the writer thread met.
            DiskFull: the last save failed, and none can follow now.
            TrainingInterrupted: a signal came after the last step and nobody acted on it: the process ends
                as it was told to.
        """
        self._shut()
        self._raise_failure()
        if self._flag.pending is not None:
            self._flag.serve()
            raise TrainingInterrupted(self._flag.received or 0)

    def _shut(self) -> None:
        self._closed = True
        try:
            self.wait()
            if self._untold is not None:
                # No save follows that would write it.
                self._write_history(self._untold)
        finally:
            if self._lease is not None:
                self._lease.release()
            self._flag.restore()

    def _raise_failure(self) -> None:
        failure, self._failed = self._failed, None
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._flag.serve()  # The loop ends anyway, and by its own error.
        for last_step in (self._save_on_exception, self.close):
            try:
                last_step()
            except Exception:
                # The first exception is the one to be seen; what follows from it must not take its place.
                _log.exception("after %s, the state could not be saved", type(error).__name__)

    def _save_on_exception(self) -> None:
        if self._last is None or self.directory is None or self._closed:
            return
        state, last = self._last
        # A state that was given, not made on demand, is of the last step; half of it may have changed since.
        if callable(state):
            progress = replace(
                last,
                epoch_end=False,
                epoch=last.epochs_finished,
                exception=True,
                final=False,
                signal=False,
                metrics={},
            )
            if roles := self._roles(progress, None):
                self._save(state, progress, roles, None, {})
