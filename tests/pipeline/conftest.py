"""A small pipeline, run once for all tests of this folder, and the folder of helper modules on the path."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from small_pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline after `dvc repro`; the processes of a test run share it, so it is for reading."""
    return _finished(tmp_path_factory, threads=1)


@pytest.fixture(scope="session")
def finished_by_two_threads(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The same by two threads, as on any machine that nobody told to use one."""
    return _finished(tmp_path_factory, threads=2)


def _finished(tmp_path_factory: pytest.TempPathFactory, threads: int) -> Pipeline:
    from small_pipeline import Pipeline, make

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / f"small_{threads}"
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.is_file():
            done.write_text(json.dumps(make(folder, threads=threads).repro()), encoding="utf-8")
    return Pipeline(folder, threads)


@pytest.fixture(scope="session")
def seconds(finished: Pipeline) -> dict[str, float]:
    """What each stage of the finished pipeline took."""
    found: dict[str, float] = json.loads(finished.root.with_suffix(".done").read_text(encoding="utf-8"))
    return found
