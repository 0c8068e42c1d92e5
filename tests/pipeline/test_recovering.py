"""DVC is killed in the middle of what it writes in place; `radfuse recover` lets it start again."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from small_pipeline import Pipeline

DVC_YAML = """\
stages:
  one: {cmd: echo 1 > a, outs: [a: {cache: false}]}
  two: {cmd: cat a a > b, deps: [a], outs: [b: {cache: false}]}
  three: {cmd: cat b b > c, deps: [b], outs: [c: {cache: false}]}
"""
KILLED = """\
import os, signal, sys
from dvc.cli import main
from {module} import {name} as whole
import {module} as place

count = 0

def cut_off(data, stream, *others, **options):
    global count
    count += 1
    if count < {at}:
        return whole(data, stream, *others, **options)
    import io
    text = io.StringIO()
    whole(data, text, *others, **options)
    stream.write(text.getvalue()[: int(len(text.getvalue()) * {part})])
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)

place.{name} = cut_off
main(["repro"])
"""
"""Runs `dvc repro` and kills it within the given writing, a part of which has reached the disk."""


LINKED_YAML = """\
stages:
  one:
    cmd: mkdir -p made work && echo 1 > work/a && ln work/a made/a
    outs: [made/a]
"""
KILLED_COPYING = """\
import os, signal
from dvc.cli import main
from dvc_data.hashfile.db import local as within
from dvc_objects.fs import local as between

def half(source, target, *others, **options):
    with open(target, "wb") as stream:
        stream.write(open(source, "rb").read()[:1])
    os.kill(os.getpid(), signal.SIGKILL)

within.copyfile = between.copyfile = half
main(["repro"])
"""
"""Runs `dvc repro` and kills it within its first copy, half of which has reached the disk."""


@pytest.fixture
def three_stages(tmp_path: Path) -> Pipeline:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    made = Pipeline(tmp_path)
    made.init_dvc("--no-scm")
    return made


def killed_within(pipeline: Pipeline, module: str, name: str, at: int, part: float) -> None:
    script = KILLED.format(module=module, name=name, at=at, part=part)
    pipeline.run(sys.executable, "-c", script, code=-signal.SIGKILL)


def check(pipeline: Pipeline) -> str:
    mended = pipeline.run("radfuse", "recover").stdout
    ran = pipeline.run("dvc", "repro").stdout
    assert (pipeline.root / "c").read_text(encoding="utf-8") == "1\n" * 4
    assert "up to date" in pipeline.run("dvc", "status").stdout
    assert pipeline.run("radfuse", "recover").stdout == "Nothing was cut off.\n"
    return mended + ran


@pytest.mark.parametrize("part", [0.0, 0.6])
def test_dvc_goes_on_after_a_kill_while_it_noted_who_reads_what(three_stages: Pipeline, part: float) -> None:
    killed_within(three_stages, "json", "dump", at=6, part=part)
    assert "Unable to read RWLock-file" in three_stages.run("dvc", "repro", code=255).stderr
    assert ".dvc/tmp/rwlock: removed, as it was cut off" in check(three_stages)


@pytest.mark.parametrize("part", [0.0, 0.75, 0.9])
def test_dvc_goes_on_after_a_kill_while_it_noted_what_was_made(three_stages: Pipeline, part: float) -> None:
    killed_within(three_stages, "dvc.utils.serialize._yaml", "_dump", at=2, part=part)
    said = check(three_stages)
    if part:
        assert (
            "dvc.lock: cut off within two, so it and the stages after it are looked at again; 1 are kept"
            in said
        )
        assert "Stage 'one' didn't change" in said
    else:
        assert "dvc.lock: removed, as it was cut off in its first stage" in said


def test_a_copy_that_dvc_was_killed_in_is_gone_when_it_has_run_again(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(LINKED_YAML, encoding="utf-8")
    made = Pipeline(tmp_path)
    made.init_dvc("--no-scm")
    made.run(sys.executable, "-c", KILLED_COPYING, code=-signal.SIGKILL)
    (left,) = unfinished(tmp_path)
    said = made.run("radfuse", "recover").stdout
    assert f"{left.relative_to(tmp_path)}: removed" in " ".join(said.split())
    made.run("dvc", "repro")
    assert (tmp_path / "made" / "a").read_text(encoding="utf-8") == "1\n"
    assert unfinished(tmp_path) == []


def unfinished(folder: Path) -> list[Path]:
    """Files of a pipeline, DVC's own among them, that nobody came to the end of."""
    return [path for path in folder.rglob("*.tmp") if path.is_file()]
