"""Fixtures of the export's tests, and the folder of their helper modules on the path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from radfuse.engine.export.graph import ExportGraph

HELPERS = Path(__file__).parent / "helpers"
sys.path.insert(0, str(HELPERS))


@pytest.fixture
def tiny_classifier() -> ExportGraph:
    from tiny_graphs import classifier

    return classifier()


@pytest.fixture(scope="session")
def tiny_segmenter() -> ExportGraph:
    from tiny_graphs import segmenter

    return segmenter()
