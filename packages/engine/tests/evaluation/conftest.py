"""The helper modules that draw pipelines and that kill stages, on the path; and one such pipeline."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "helpers"))

from radfuse.engine.places import Places


@pytest.fixture(scope="session")
def drawn_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of 150 patients as it is before `radfuse ensemble`; to be copied, not changed."""
    from simulated_pipeline import pipeline

    return pipeline(tmp_path_factory.mktemp("drawn") / "pipeline", 150).root


@pytest.fixture
def places(drawn_pipeline: Path, tmp_path: Path) -> Places:
    """A copy of that pipeline."""
    return Places(Path(shutil.copytree(drawn_pipeline, tmp_path / "pipeline")))
