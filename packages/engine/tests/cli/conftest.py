"""A small pipeline of a classification and a segmentation, made with helpers of the export's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trained_pipeline import TrainedPipeline

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / folder / "helpers") for folder in ("export", "data")]


@pytest.fixture(scope="module", autouse=True)
def tiny_modalities() -> Iterator[None]:
    """The toy package on the path, for the tests of this folder alone."""
    from radfuse.engine import modality

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS / "export" / "toy"))
        modality.modalities.cache_clear()
        yield
    modality.modalities.cache_clear()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> TrainedPipeline:
    """Trained in name, and predicted; to be copied, not changed."""
    from trained_pipeline import TrainedPipeline

    made = TrainedPipeline(tmp_path_factory.mktemp("trained") / "pipeline")
    made.add_film()
    made.add_scan()
    return made


@pytest.fixture
def trained(template: TrainedPipeline, tmp_path: Path) -> TrainedPipeline:
    """A copy of that pipeline."""
    return template.copied(tmp_path / "pipeline")
