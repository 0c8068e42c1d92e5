"""Stages that cannot write what they made: exit code 1, a message in place of a traceback, nothing lost."""

from __future__ import annotations

import hashlib
import resource
import subprocess
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
on_every_stage = pytest.mark.parametrize("command", STAGES, ids=" ".join)
on_a_disk_of_16_mb = pytest.mark.parametrize("small_disk", [16], indirect=True)


@pytest.fixture
def on_disk(template: TrainedPipeline, small_disk: Path) -> TrainedPipeline:
    """A pipeline in which every stage has what it reads, on a disk of its own."""
    return readied(template.copied(small_disk / "pipeline"))


def readied(pipeline: TrainedPipeline) -> TrainedPipeline:
    root, places = pipeline.places.root, pipeline.places
    source = {**xray_table(root / "raw", patients=6), "public": True, "modality": "film"}
    settings = yaml.safe_load(pipeline.file.read_text())
    relaxed = {"minimum_positives": 0, "minimum_patients": dict.fromkeys(("train", "val", "test"), 0)}
    settings |= {"sources": [source], "split": relaxed, "prepare": {"workers": 1}}
    pipeline.file.write_text(yaml.safe_dump(settings))
    rows = pd.read_parquet(places.manifest("film"))
    rows[["patient_id", "split"]].assign(age_years=50.0, sex="F", site="").to_parquet(places.patients)
    return pipeline


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Ran:
    """Run a command of a pipeline: exit code and errors."""

    def called(pipeline: TrainedPipeline, *words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run([*words, "--params", str(pipeline.file)])
        return code, capsys.readouterr().err

    return called


def make_what_it_reads(call: Ran, pipeline: TrainedPipeline, command: tuple[str, ...]) -> None:
    """What `prepare` reads is made by `cohort`; the arrays that the other stages read are of no file."""
    if command[0] == "prepare":
        assert call(pipeline, "cohort") == (0, "")


def check(failed: tuple[int, str]) -> str:
    """What is said in the end; warnings may come before it."""
    code, said = failed
    assert code == 1, said
    assert "Traceback" not in said
    *_, last = said.splitlines(keepends=True)
    assert last.startswith("radfuse: ")
    return last


def contents(folder: Path, but: str) -> dict[Path, str]:
    """Digests of all files but those of one folder below it."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / but)]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_kept(before: dict[Path, str], after: dict[Path, str]) -> None:
    """Nothing that was there is lost; there may be more."""
    assert {path: after.get(path) for path in before} == before


@on_every_stage
def test_a_folder_that_cannot_be_written_to_is_named(
    trained: TrainedPipeline, call: Ran, command: tuple[str, ...]
) -> None:
    """A file in its place, as permissions stop nobody who is root."""
    make_what_it_reads(call, readied(trained), command)
    folder = trained.places.root / STAGES[command]
    if folder.exists():
        folder.rename(folder.with_name("moved"))
    folder.write_text("in the way")
    assert STAGES[command] in check(call(trained, *command))


@on_a_disk_of_16_mb
@pytest.mark.parametrize("left", [0, 8192])
@on_every_stage
def test_on_a_full_disk_a_stage_says_what_to_do_and_the_same_command_then_ends_well(
    on_disk: TrainedPipeline, call: Ran, fill: Callable[..., Path], command: tuple[str, ...], left: int
) -> None:
    make_what_it_reads(call, on_disk, command)
    # DVC deletes what the stage made before.
    before = contents(on_disk.places.root, but=STAGES[command])
    filler = fill(left)
    said = check(call(on_disk, *command))
    assert "space" in said and "Free some" in said
    check_kept(before, contents(on_disk.places.root, but=STAGES[command]))
    filler.unlink()
    assert call(on_disk, *command)[0] == 0


@on_a_disk_of_16_mb
@on_every_stage
def test_on_a_read_only_disk_a_stage_says_so_and_ends_well_when_it_may_write_again(
    on_disk: TrainedPipeline, call: Ran, small_disk: Path, command: tuple[str, ...]
) -> None:
    make_what_it_reads(call, on_disk, command)
    before = contents(on_disk.places.root, but="none")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system" in check(call(on_disk, *command))
    assert contents(on_disk.places.root, but="none") == before
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert call(on_disk, *command)[0] == 0


@contextmanager
def no_large_files() -> Iterator[None]:
    """No file may grow past a few bytes; the system refuses the rest, whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@on_every_stage
def test_what_the_system_refuses_without_a_file_name_is_a_message_that_says_how_to_learn_it(
    trained: TrainedPipeline, call: Ran, command: tuple[str, ...]
) -> None:
    """This one needs no rights, as disks of its own do."""
    make_what_it_reads(call, readied(trained), command)
    before = contents(trained.places.root, but=STAGES[command])
    with no_large_files():
        said = check(call(trained, *command))
    assert said == "radfuse: File too large; with -v the traceback shows which file.\n"
    check_kept(before, contents(trained.places.root, but=STAGES[command]))
    assert call(trained, *command)[0] == 0
