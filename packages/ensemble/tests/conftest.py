"""The engine's helpers that draw pipelines and kill stages, on the path; one fitted pipeline, and copies."""

import shutil
import sys
from pathlib import Path

import pytest

from radfuse.engine.cli import run
from radfuse.engine.places import Places

ENGINE = Path(__file__).parents[2] / "engine" / "tests"
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(ENGINE / "evaluation"), str(ENGINE / "data" / "helpers")]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A pipeline of 500 patients after `radfuse ensemble` and `radfuse evaluate`; to be read alone."""
    from simulated_pipeline import pipeline

    places = pipeline(tmp_path_factory.mktemp("fitted") / "pipeline", 500, seed=5)
    for command in ("ensemble", "evaluate"):
        assert run([command, "--params", str(places.root / "params.yaml")]) == 0
    return places


@pytest.fixture
def copied(fitted: Places, tmp_path: Path) -> Places:
    """A copy of it that may be changed."""
    return Places(Path(shutil.copytree(fitted.root, tmp_path / "pipeline")))
