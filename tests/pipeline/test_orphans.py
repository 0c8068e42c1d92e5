"""DVC alone is killed, as by the system when memory runs out: what it had started ends, too."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import storms
from small_pipeline import Pipeline, environment, make, stages

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="processes are looked at as Linux shows them"
    ),
    # One process runs them all: they share a pipeline, and two commands of DVC at once are refused.
    pytest.mark.xdist_group("orphans"),
]
SPLITS = ("train", "val", "calibration", "test")
WORKERS = 2
SHELLS = {
    "gives way to its command": """#!/bin/sh\neval "exec $2"\n""",
    "waits for its command": """#!/bin/sh\neval "$2"\nexit $?\n""",
}
"""Programs that do what `SHELL -c COMMAND` does: bash as the first, fish and some /bin/sh as the second."""


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A small pipeline of few patients that has its cohort."""
    few = {
        "phantom.patients": 16,
        "split.minimum_patients": dict.fromkeys(SPLITS, 0),
        "prepare.workers": WORKERS,
    }
    made = make(tmp_path_factory.mktemp("orphans") / "small", few)
    made.run("dvc", "repro", "cohort")
    return made


@pytest.fixture(scope="module")
def whole(finished: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A copy of the finished pipeline."""
    return Pipeline(Path(shutil.copytree(finished.root, tmp_path_factory.mktemp("orphans") / "whole")))


@contextmanager
def started(pipeline: Pipeline, stage: str) -> Iterator[subprocess.Popen[bytes]]:
    """`dvc repro` of one stage, in a session of its own; nothing of it is left behind."""
    command = ["dvc", "repro", "--force", "--single-item", stage]
    running = subprocess.Popen(
        command, cwd=pipeline.root, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def wait_for(
    running: subprocess.Popen[bytes], wanted: Callable[[psutil.Process], bool], count: int = 1
) -> list[psutil.Process]:
    """Wait for so many processes that it started, of whatever depth."""
    until = time.monotonic() + 120
    while True:
        assert running.poll() is None and time.monotonic() < until
        found = []
        for process in psutil.Process(running.pid).children(recursive=True):
            with suppress(psutil.Error, OSError):
                found += [process] * wanted(process)
        if len(found) == count:
            return found
        time.sleep(0.01)


def is_worker(process: psutil.Process) -> bool:
    """Whether it is one that prepares images."""
    return any("multiprocessing.spawn" in word for word in process.cmdline())


def is_at_work(process: psutil.Process) -> bool:
    """Whether it has loaded what stages compute with."""
    return "/numpy/" in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("shell", SHELLS)
def test_prepare_ends_with_dvc_and_can_be_run_again(
    scanned: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    (tmp_path / "shell").write_text(SHELLS[shell])
    (tmp_path / "shell").chmod(0o755)
    monkeypatch.setenv("SHELL", str(tmp_path / "shell"))
    manifest = scanned.root / "data" / "prepared" / "xray" / "manifest.json"
    with started(scanned, "prepare_xray") as running:
        workers = wait_for(running, is_worker, WORKERS)
        for worker in workers:
            # At work they would soon be done, and the command would end by itself.
            worker.suspend()
        command = workers[0].parent()
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        assert command is not None and psutil.wait_procs([command], timeout=30)[0] == [command]
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.resume()
        storms.wait_for_nobody(scanned.root)
    assert not manifest.exists()
    scanned.run("dvc", "repro", "prepare_xray")
    assert manifest.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["predict_xray", "evaluate", "export", "ensemble", "train_xray"])
def test_every_stage_ends_with_dvc_and_leaves_no_output(whole: Pipeline, stage: str) -> None:
    with started(whole, stage) as running:
        [process] = wait_for(running, is_at_work)
        # Told only when it goes on, it has no time to finish.
        process.suspend()
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        process.resume()
        storms.wait_for_nobody(whole.root)
    assert [out for out in outputs(whole, stage) if out.exists()] == []
    # By itself DVC would only bring back what it has in its cache.
    whole.run("dvc", "repro", "--force", "--single-item", stage)
    assert [out for out in outputs(whole, stage) if not out.exists()] == []


def outputs(pipeline: Pipeline, stage: str) -> list[Path]:
    """What DVC removes before it runs the stage."""
    listed = [out for kind in ("outs", "metrics") for out in stages()[stage].get(kind, ())]
    return [pipeline.root / (next(iter(out)) if isinstance(out, dict) else out) for out in listed]
