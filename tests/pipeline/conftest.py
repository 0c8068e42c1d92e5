"""A small pipeline, run once for all tests of this folder, and the folder of helper modules on the path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline after `dvc repro`."""
    from small_pipeline import make

    pipeline = make(tmp_path_factory.mktemp("pipeline") / "small")
    pipeline.run("dvc", "repro")
    return pipeline
