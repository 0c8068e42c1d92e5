"""`dvc repro` stopped at any moment, again and again: nobody can tell it from one that never was."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import storms
from small_pipeline import Pipeline, make, with_cohort_of

RECORD = Callable[[str, object], None]
BY_THREADS = {1: "finished", 2: "finished_by_two_threads"}
"""Fixtures with a pipeline that was never stopped."""


def check_and_remove(killed: Pipeline, finished: Pipeline) -> None:
    """Everything that both came to is the same, and nothing of the stops is left.

    What passed is removed, as thirty pipelines of 5 GB fill a disk; what did not is there to be looked at.
    """
    expected, found = storms.outcome(finished.root), storms.outcome(killed.root)
    assert sorted(found.keys() ^ expected.keys()) == []
    # In what DVC and MLflow keep, too.
    assert [*killed.root.rglob("*.tmp")] == []
    assert sorted(name for name, value in expected.items() if found[name] != value) == []
    assert storms.tracked(killed.root) == storms.tracked(finished.root)
    shutil.rmtree(killed.root)


def show(record: RECORD, stops: storms.Stops) -> None:
    """Count the stops in the summary of the test run, and what of DVC's own they cut off."""
    counts = [f"{stage:15} {count} times" for stage, count in sorted(stops.of.items())]
    counts += [f"{name} went on within an epoch {count} times" for name, count in stops.resumed.items()]
    record("shown", "\n".join([*counts, *(line for line in stops.mended if "cut off" in line)]))


@pytest.mark.xdist_group("finished pipeline")
def test_preparation_and_training_that_were_killed_end_as_if_they_had_not_been(
    tmp_path: Path, finished: Pipeline, seconds: dict[str, float], record_property: RECORD
) -> None:
    killed = with_cohort_of(finished, tmp_path / "small")
    under_fire = {name: seconds[name] for name in ("prepare_xray", "train_xray")}
    stops = storms.storm(killed, ["train_xray"], under_fire, random.Random(2), signal.SIGKILL)
    assert stops.of.keys() == under_fire.keys()
    assert stops.resumed["xray"] > 0
    expected, found = storms.outcome(finished.root), storms.outcome(killed.root)
    for name in found:
        assert found[name] == expected[name], name
    assert "saved_models/xray/resnet50_best.pth" in found
    ((key, points),) = storms.tracked(killed.root).items()
    assert points and points == storms.tracked(finished.root)[key]
    show(record_property, stops)


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(20))
def test_a_pipeline_that_was_killed_in_every_stage_ends_as_if_it_had_not_been(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    seconds: dict[str, float],
    round_: int,
    record_property: RECORD,
) -> None:
    finished = request.getfixturevalue(BY_THREADS[1 + round_ % 2])
    killed = make(tmp_path / "small", threads=finished.threads)
    stops = storms.storm(killed, [], seconds, random.Random(round_), signal.SIGKILL)
    assert stops.of.keys() == seconds.keys()
    assert all(stops.resumed[modality] > 0 for modality in storms.MODELS)
    check_and_remove(killed, finished)
    show(record_property, stops)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_a_pipeline_that_was_told_to_stop_in_every_stage_ends_as_if_it_had_not_been(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    seconds: dict[str, float],
    how: str,
    workers: int,
    record_property: RECORD,
) -> None:
    # As a terminal and Slurm do, the processes that load are told, too.
    finished = request.getfixturevalue(BY_THREADS[2 if workers else 1])
    killed = make(tmp_path / "small", {"train.workers": workers}, finished.threads)
    stops = storms.storm(killed, [], seconds, random.Random(how), storms.SIGNALS[how])
    assert stops.of.keys() == seconds.keys()
    assert all(stops.resumed[modality] > 0 for modality in storms.MODELS)
    check_and_remove(killed, finished)
    show(record_property, stops)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_loading_processes_changes_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, workers: int, threads: int
) -> None:
    finished = request.getfixturevalue(BY_THREADS[threads])
    other = make(tmp_path / "small", {"train.workers": workers}, threads)
    other.repro()
    check_and_remove(other, finished)
