"""Stops `dvc repro` at random moments until it finishes, and tells what a pipeline came to.

Before each attempt comes `radfuse recover`, as in the targets of make.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from small_pipeline import STARTED, Pipeline, environment

import ckptcore

MODELS = {"xray": "resnet50", "ct": "3dcnn", "mri": "unet"}
_MOST_ATTEMPTS = 200
_LONGEST = 900.0
_CLOCKS = ("created", "timestamp", "exported", "finished_at", "time", "mlflow_run_id", "seconds")
"""Keys of JSON files that tell when something was, and not what."""
_SHIFTING = re.compile(
    r"^(\.dvc/|dvc\.lock$|\.work/.*(\.lock|/run\.json|/training_\d+_\d+\.json)$|mlruns/|mlflow\.db(\.lock)?$|packages/)"
)
"""Files whose names or number follow from when they were made, and the copies of the code."""


@dataclass
class Stops:
    """What a storm did.

    Attributes:
        of: how often each stage was stopped.
        mended: what `radfuse recover` said before the attempts that followed.
    """

    of: Counter[str] = field(default_factory=Counter)
    mended: list[str] = field(default_factory=list)


def storm(
    pipeline: Pipeline, targets: Sequence[str], seconds: Mapping[str, float], chance: random.Random, how: int
) -> Stops:
    """Run `dvc repro`, stop it in every stage once or twice at any moment, and go on until it finishes.

    Args:
        pipeline: to run.
        targets: of `dvc repro`; none for all.
        seconds: that each stage to be stopped takes.
        chance: draws how often and when.
        how: signal to the whole group of processes.
    """
    stops = Stops()
    wanted = {stage: chance.choice((1, 2, 2)) for stage in seconds}
    for attempt in range(_MOST_ATTEMPTS):
        log = pipeline.root.with_name(f"{pipeline.root.name}.{attempt}.log")
        stops.mended += pipeline.run("radfuse", "recover", "--quiet").stdout.splitlines()
        code, stage = _attempt(pipeline, targets, log, seconds, wanted, stops.of, chance, how)
        if stage is not None:
            stops.of[stage] += 1
            continue
        assert code == 0, log.read_text(encoding="utf-8")
        return stops
    raise AssertionError(f"not finished after {_MOST_ATTEMPTS} attempts: {dict(stops.of)}")


def _attempt(
    pipeline: Pipeline,
    targets: Sequence[str],
    log: Path,
    seconds: Mapping[str, float],
    wanted: dict[str, int],
    stopped: Mapping[str, int],
    chance: random.Random,
    how: int,
) -> tuple[int | None, str | None]:
    """One `dvc repro`: its exit code, or the stage in which it was stopped."""
    with open(log, "w", encoding="utf-8") as out:
        running = subprocess.Popen(
            ["dvc", "repro", *targets], cwd=pipeline.root, env=environment(), stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    until, stage, due = time.monotonic() + _LONGEST, "", float("inf")
    while running.poll() is None:
        assert time.monotonic() < until, log.read_text(encoding="utf-8")
        entered = STARTED.findall(log.read_text(encoding="utf-8"))
        if entered and entered[-1] != stage:
            stage = entered[-1]
            # The first time early, as the machine may be faster than when the stage was timed; then at any
            # moment, past its end too, where DVC hashes what it left and goes over to the next.
            longest = 1.2 if stage in stopped else 0.2
            moment = chance.uniform(0.0, longest * seconds.get(stage, 0.0))
            due = time.monotonic() + moment if wanted.get(stage) else float("inf")
        if time.monotonic() >= due:
            wanted[stage] -= 1
            os.killpg(running.pid, how)
            running.wait(timeout=120)
            wait_for_nobody(pipeline.root)
            return None, stage
        time.sleep(0.02)
    wait_for_nobody(pipeline.root)
    return running.returncode, None


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
    for modality, model in MODELS.items():
        for path in sorted((root / "saved_models" / modality).glob(f"{model}_*.pth")):
            header = ckptcore.read_header(path)
            found[f"{modality}/{path.name}"] = (
                header.model_digest,
                header.epochs_finished,
                header.global_step,
            )
    meta = root / "saved_models" / "ensemble" / "meta_learner.pth"
    if meta.is_file():
        found["meta_learner"] = ckptcore.read_header(meta).model_digest
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or _SHIFTING.match(name):
            continue
        found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv()
    if path.suffix in (".csv", ".txt", ".npy", ".onnx", ".dcm", ".gz"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "there"


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
