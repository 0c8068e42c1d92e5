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
    from small_pipeline import Pipeline, make

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, done = shared / "small", shared / "small.done"
    with FileLock(shared / "small.lock"):
        if not done.is_file():
            done.write_text(json.dumps(make(folder).repro()), encoding="utf-8")
    return Pipeline(folder)


@pytest.fixture(scope="session")
def seconds(finished: Pipeline) -> dict[str, float]:
    """What each stage of the finished pipeline took."""
    found: dict[str, float] = json.loads(finished.root.with_name("small.done").read_text(encoding="utf-8"))
    return found
