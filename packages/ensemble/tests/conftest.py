"""The helper that draws pipelines (the engine's), on the path; one fitted pipeline, and copies of it."""

import shutil
import sys
from pathlib import Path

import pytest

from radfuse.engine.cli import run
from radfuse.engine.places import Places

HELPERS = Path(__file__).parents[2] / "engine" / "tests" / "evaluation"
sys.path.insert(0, str(HELPERS))
sys.path.insert(0, str(Path(__file__).parent))


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
