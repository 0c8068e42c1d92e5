"""`radfuse ensemble` as a process that is stopped from outside, and on disks that take nothing more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulated_pipeline import pipeline

import ckptcore
from radfuse.engine.cli import run
from radfuse.engine.places import Places

ENSEMBLE = """
import sys, time
from radfuse.engine.cli import run
from radfuse.ensemble import training

step = training._Run.step

def told(self, epoch):
    print(epoch, flush=True)
    time.sleep(float(sys.argv[2]))
    return step(self, epoch)

training._Run.step = told
sys.exit(run(["ensemble", "--params", sys.argv[1]]))
"""
"""Tells the epochs of the meta-learner."""


def started(places: Places, seconds: float = 0.0) -> subprocess.Popen[str]:
    """The command in a group of its own; each epoch waits so long before it begins."""
    return subprocess.Popen(
        [sys.executable, "-c", ENSEMBLE, str(places.root / "params.yaml"), str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def result(places: Places) -> tuple[str | None, Any]:
    """Weights of the meta-learner, and what else was fitted."""
    folder = places.saved_models("ensemble")
    return (
        ckptcore.read_header(folder / "meta_learner.pth").model_digest,
        json.loads((folder / "weighted_average.json").read_text()),
    )


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_row_5_3_a_signal_saves_the_epoch_under_way_and_the_next_start_ends_the_same(
    fitted: Places, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    places = pipeline(tmp_path / "pipeline", 500, seed=5)
    with started(places, 0.05) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line == "3\n":
                os.killpg(running.pid, how)
                break
        assert running.stderr is not None
        # Not by communicate(), which loses lines that came with the one above.
        rest, said = running.stdout.read(), running.stderr.read()
    assert running.returncode == code, said
    assert "Traceback" not in said
    last = int((["3", *rest.split()])[-1])
    with started(places) as again:
        epochs, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert int(epochs.split()[0]) == last + 1
    assert result(places) == result(fitted)


@pytest.mark.parametrize("small_disk", [32], indirect=True)
@pytest.mark.parametrize("left", [0, 8192])
def test_on_a_full_disk_it_says_what_to_do_and_the_same_command_then_ends_the_same(
    fitted: Places,
    small_disk: Path,
    fill: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    left: int,
) -> None:
    places = pipeline(small_disk / "pipeline", 500, seed=5)
    command = ["ensemble", "--params", str(places.root / "params.yaml")]
    filler = fill(left)
    assert run(command) == 1
    said = capsys.readouterr().err
    assert "space" in said and "Free some" in said and "Traceback" not in said
    filler.unlink()
    assert run(command) == 0
    assert result(places) == result(fitted)


@pytest.mark.parametrize("small_disk", [32], indirect=True)
def test_on_a_read_only_disk_it_says_so_and_ends_the_same_when_it_may_write_again(
    fitted: Places, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = pipeline(small_disk / "pipeline", 500, seed=5)
    command = ["ensemble", "--params", str(places.root / "params.yaml")]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run(command) == 1
    said = capsys.readouterr().err
    assert "Read-only file system" in said and "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert run(command) == 0
    assert result(places) == result(fitted)
