"""Stops `dvc repro` at random moments until it finishes, and tells what a pipeline came to.

Before each attempt comes `radfuse recover`, as in the targets of make.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from small_pipeline import STARTED, Pipeline, environment

import ckptcore
from ckptcore import reader

MODELS = {"xray": "resnet50", "ct": "3dcnn", "mri": "unet"}
_MOST_ATTEMPTS = 200
_LONGEST = 900.0
_CLOCKS = ("created", "timestamp", "exported", "finished_at", "time", "mlflow_run_id", "seconds")
"""Keys of JSON files that tell when something was, and not what."""
_SHIFTING = re.compile(
    r"^(\.dvc/|dvc\.lock$|params\.yaml$|\.work/.*(\.lock|/run\.json|/training_\d+_\d+\.json)$|mlruns/|mlflow\.db(\.lock)?$|packages/)"
)
"""Files whose names or number follow from when they were made, and what was asked for: settings and code."""


@dataclass
class Stops:
    """What a storm did.

    Attributes:
        of: how often each stage was stopped.
        mended: what `radfuse recover` said before the attempts that followed.
        resumed: how many sessions of each modality's training went on within an epoch.
    """

    of: Counter[str] = field(default_factory=Counter)
    mended: list[str] = field(default_factory=list)
    resumed: Counter[str] = field(default_factory=Counter)


def storm(
    pipeline: Pipeline, targets: Sequence[str], seconds: Mapping[str, float], chance: random.Random, how: int
) -> Stops:
    """Run `dvc repro`, stop it in every stage once or twice at any moment, and go on until it finishes.

    Trainings are stopped once more, within an epoch. That they went on where they were stopped is checked by
    what their logs say, as one that always begins afresh comes to the same.

    Args:
        pipeline: to run.
        targets: of `dvc repro`; none for all.
        seconds: that each stage to be stopped takes.
        chance: draws how often and when.
        how: signal to the whole group of processes.
    """
    running = _Storm(pipeline, targets, seconds, chance, how)
    for number in range(_MOST_ATTEMPTS):
        log = pipeline.root.with_name(f"{pipeline.root.name}.{number}.log")
        running.stops.mended += pipeline.run("radfuse", "recover", "--quiet").stdout.splitlines()
        code = running.attempt(log)
        if code is not None:
            assert code == 0, log.read_text(encoding="utf-8")
            running.check_resumed()
            return running.stops
    raise AssertionError(f"not finished after {_MOST_ATTEMPTS} attempts: {dict(running.stops.of)}")


@dataclass(frozen=True)
class Standing:
    """Where a training stands, by its work folder.

    Attributes:
        sessions: as its log tells of them.
        digest: of the model in the latest checkpoint; None without one.
        step: of that checkpoint.
        reason: why it was saved, where no rule asked for it.
        within: whether it was saved within an epoch.
    """

    sessions: list[dict[str, Any]]
    digest: str | None = None
    step: int | None = None
    reason: str | None = None
    within: bool = False

    @property
    def at_work(self) -> bool:
        """Whether the last session has not ended."""
        return bool(self.sessions) and "outcome" not in self.sessions[-1]

    @classmethod
    def of(cls, root: Path, modality: str) -> Standing:
        """Read the only work folder of a modality."""
        work = root / ".work" / modality
        logs, latest = [*work.glob("*/training_2*.json")], [*work.glob(f"*/{MODELS[modality]}_latest.pth")]
        assert len(logs) <= 1 and len(latest) <= 1, "a training has begun anew in another folder"
        sessions = [one for log in logs for one in json.loads(log.read_text(encoding="utf-8"))["sessions"]]
        if not latest:
            return cls(sessions)
        header = ckptcore.read_header(latest[0])
        # What an epoch ends with is saved with what was measured.
        within = not header.metadata.get("metrics")
        return cls(sessions, header.model_digest, header.global_step, header.reason, within)


class _Storm:
    """A storm under way; the arguments are those of `storm`."""

    def __init__(
        self,
        pipeline: Pipeline,
        targets: Sequence[str],
        seconds: Mapping[str, float],
        chance: random.Random,
        how: int,
    ) -> None:
        self.stops = Stops()
        self._pipeline = pipeline
        self._targets = targets
        self._seconds = seconds
        self._chance = chance
        self._how = how
        self._wanted = {name: chance.choice((1, 2, 2)) + name.startswith("train_") for name in seconds}
        self._left: list[tuple[str, Standing]] = []

    def attempt(self, log: Path) -> int | None:
        """One `dvc repro`: its exit code; None where it was stopped."""
        with open(log, "w", encoding="utf-8") as out:
            running = subprocess.Popen(
                ["dvc", "repro", *self._targets], cwd=self._pipeline.root, stdout=out,
                stderr=subprocess.STDOUT, env=environment(self._pipeline.threads), start_new_session=True,
            )  # fmt: skip
        until, stage, due = time.monotonic() + _LONGEST, "", _never
        while running.poll() is None:
            assert time.monotonic() < until, log.read_text(encoding="utf-8")
            entered = STARTED.findall(log.read_text(encoding="utf-8"))
            if entered and entered[-1] != stage:
                stage = entered[-1]
                due = self._moment(stage) if self._wanted.get(stage) else _never
            if due():
                self._stop(running, stage, log)
                return None
            time.sleep(0.02)
        wait_for_nobody(self._pipeline.root)
        return running.returncode

    def _moment(self, stage: str) -> Callable[[], bool]:
        """When a stage that has just begun is to be stopped."""
        modality = stage.removeprefix("train_")
        if stage.startswith("train_") and self.stops.of[stage] == 1:
            return self._within_an_epoch(modality)
        # The first time early, as the machine may be faster than when the stage was timed; then at any
        # moment, past its end too, where DVC hashes what it left and goes over to the next.
        longest = 1.2 if stage in self.stops.of else 0.2
        at = time.monotonic() + self._chance.uniform(0.0, longest * self._seconds[stage])
        return lambda: time.monotonic() >= at

    def _within_an_epoch(self, modality: str) -> Callable[[], bool]:
        """A moment after this attempt has saved within an epoch."""
        before, later = Standing.of(self._pipeline.root, modality), self._chance.uniform(0.0, 0.2)
        at = math.inf

        def due() -> bool:
            nonlocal at
            if at == math.inf:
                now = Standing.of(self._pipeline.root, modality)
                if now.within and now.digest != before.digest:
                    at = time.monotonic() + later
            return time.monotonic() >= at

        return due

    def _stop(self, running: subprocess.Popen[bytes], stage: str, log: Path) -> None:
        self._wanted[stage] -= 1
        self.stops.of[stage] += 1
        trains = stage.removeprefix("train_")
        before = Standing.of(self._pipeline.root, trains) if stage.startswith("train_") else None
        os.killpg(running.pid, self._how)
        running.wait(timeout=120)
        wait_for_nobody(self._pipeline.root)
        if before is not None and before.at_work and self._how != signal.SIGKILL:
            _check_told_to_stop(Standing.of(self._pipeline.root, trains), log.read_text(encoding="utf-8"))
        self._left += [(modality, Standing.of(self._pipeline.root, modality)) for modality in MODELS]

    def check_resumed(self) -> None:
        """Every session that followed a stop went on from the checkpoint that was there."""
        for modality in MODELS:
            sessions = Standing.of(self._pipeline.root, modality).sessions
            left = {len(one.sessions): one for name, one in self._left if name == modality and one.digest}
            for number, standing in left.items():
                # There is none where only the end was still to be published.
                for session in sessions[number : number + 1]:
                    assert session["goes_on_from"] is not None, f"{modality} began afresh"
                    assert session["goes_on_from"]["model_digest"] == standing.digest, modality
                    self.stops.resumed[modality] += standing.within


def _never() -> bool:
    return False


def _check_told_to_stop(after: Standing, log: str) -> None:
    """A training that was at work when it was told to stop has saved the step under way, or has finished."""
    outcome = after.sessions[-1].get("outcome")
    assert outcome in ("interrupted", "finished", "stopped early"), log
    if outcome == "interrupted":
        assert after.reason == "signal", log
        assert f"all until step {after.step} " in log


def wait_for_nobody(folder: Path) -> None:
    """Wait until no process works in a folder; after a minute those that do are left over."""
    until = time.monotonic() + 60
    while left := [*at_work(folder)]:
        assert time.monotonic() < until, f"left over: {left}"
        time.sleep(0.05)


def at_work(folder: Path) -> Iterator[str]:
    """Processes whose current folder it is."""
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder:
                yield " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def outcome(root: Path) -> dict[str, Any]:
    """Everything that a pipeline came to, without the times at which it did."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not _SHIFTING.match(name):
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    """Of all but these the bytes: figures, reports and exports of two runs are the same to the last one."""
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".parquet":
        # Beside its rows it names the model and the key of its training.
        return pd.read_parquet(path).to_csv()
    if path.suffix == ".pth":
        return _checkpoint(path)
    if path.suffix == ".jsonl":
        # Which raw files were read, and when these were written.
        return "there"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checkpoint(path: Path) -> tuple[Any, ...]:
    """Where it was saved, and every tensor in it: of the optimizer and the averages, too."""
    header = ckptcore.read_header(path)
    with open(path, "rb") as stream:
        _, tensors, _ = reader.read_table(stream.fileno(), header)
    # A training draws from no generator whose state is carried; these stand as libraries left them.
    told = [tensor for tensor in tensors if not tensor.name.startswith("rng_state/")]
    content = "".join(f"{tensor.name} {tensor.digest}\n" for tensor in told)
    where = (header.model_digest, header.epochs_finished, header.global_step)
    return *where, hashlib.sha256(content.encode()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in _CLOCKS}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def tracked(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """MLflow's points by run key: (metric, step, value), sorted; every run must have a key of its own."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        runs = database.execute("select run_uuid, value from tags where key = 'radfuse.run_key'").fetchall()
        keys = [key for _, key in runs]
        assert len(keys) == len(set(keys)), "two runs of one key"
        every = database.execute("select count(*) from runs").fetchone()[0]
        assert every == len(runs), "a run without a key"
        return {
            key: sorted(
                database.execute("select key, step, value from metrics where run_uuid = ?", (run,)).fetchall()
            )
            for run, key in runs
        }


SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
