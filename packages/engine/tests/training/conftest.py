"""One thread, a toy modality on the path, and pipelines whose images are prepared already."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "helpers"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def toy_on_the_path(monkeypatch):
    """The toy modality's folder on the path, and a registry that looks anew."""
    from radfuse.engine import modality

    monkeypatch.syspath_prepend(HERE / "toy")
    modality.modalities.cache_clear()
    yield
    modality.modalities.cache_clear()


@pytest.fixture
def toy(tmp_path):
    """A pipeline of the toy modality: 24 pictures to train on, 6 steps an epoch, 2 epochs."""
    from trainable import toy_pipeline

    return toy_pipeline(tmp_path)
