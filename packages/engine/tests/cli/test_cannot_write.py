"""Stages that cannot write what they made: exit code 1, and a message in place of a traceback."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import yaml
from pipelines import xray_table

from radfuse.engine.cli import run

if TYPE_CHECKING:
    from trained_pipeline import TrainedPipeline

STAGES = {
    ("cohort",): "data/cohort",
    ("prepare", "film"): "data/prepared",
    ("predict-split", "film"): "data/predictions",
    ("evaluate",): "reports",
    ("export", "film"): "saved_models/exports",
}
"""Commands, and the folders that they write to."""
Ran = Callable[..., tuple[int, str]]


@pytest.fixture
def ready(trained: TrainedPipeline, capsys: pytest.CaptureFixture[str]) -> Ran:
    """A pipeline in which every stage has what it reads; runs one of its commands: exit code and errors."""
    root, places = trained.places.root, trained.places
    source = {**xray_table(root / "raw", patients=6), "public": True, "modality": "film"}
    settings = yaml.safe_load(trained.file.read_text())
    relaxed = {"minimum_positives": 0, "minimum_patients": dict.fromkeys(("train", "val", "test"), 0)}
    settings |= {"sources": [source], "split": relaxed, "prepare": {"workers": 1}}
    trained.file.write_text(yaml.safe_dump(settings))
    rows = pd.read_parquet(places.manifest("film"))
    rows[["patient_id", "split"]].assign(age_years=50.0, sex="F", site="").to_parquet(places.patients)

    def called(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run([*words, "--params", str(trained.file)])
        return code, capsys.readouterr().err

    return called


def prepared_from_files(ready: Ran, pipeline: TrainedPipeline) -> None:
    """What `prepare` reads is made by `cohort`; the arrays that the other stages read are of no file."""
    assert ready("cohort") == (0, "")
    assert json.loads(pipeline.places.splits.read_text())["counts"]["film"]


def check(failed: tuple[int, str]) -> str:
    code, said = failed
    assert code == 1, said
    assert said.startswith("radfuse: ") and "Traceback" not in said
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", STAGES, ids=" ".join)
def test_a_folder_that_cannot_be_written_to_is_named(
    trained: TrainedPipeline, ready: Ran, command: tuple[str, ...]
) -> None:
    """A file in its place, as permissions stop nobody who is root."""
    if command[0] == "prepare":
        prepared_from_files(ready, trained)
    folder = trained.places.root / STAGES[command]
    if folder.exists():
        folder.rename(folder.with_name("moved"))
    folder.write_text("in the way")
    assert STAGES[command] in check(ready(*command))


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow past a few bytes; the system refuses the rest, whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", STAGES, ids=" ".join)
def test_a_disk_that_takes_no_more_is_a_message(
    trained: TrainedPipeline, ready: Ran, command: tuple[str, ...]
) -> None:
    if command[0] == "prepare":
        prepared_from_files(ready, trained)
    with full_disk():
        said = check(ready(*command))
    assert said == "radfuse: File too large; with -v the traceback shows which file.\n"


def test_without_such_trouble_every_stage_ends_well(trained: TrainedPipeline, ready: Ran) -> None:
    for command in list(STAGES)[2:] + list(STAGES)[:2]:
        code, said = ready(*command)
        assert code == 0, said
    assert Path(trained.places.manifest_stamp("film")).is_file()
