"""Past the limits of the old zip format: more than 4 GiB, more than 65,535 records."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import ckptcore

pytestmark = pytest.mark.slow


def test_a_tensor_of_more_than_4_gib_and_what_comes_after_it_are_read_by_everyone(tmp_path: Path) -> None:
    size = (1 << 32) + 4096
    if shutil.disk_usage(tmp_path).free < 2 * size:
        pytest.skip(f"needs {2 * size:,} bytes of disk in {tmp_path}")
    large = torch.zeros(size, dtype=torch.uint8)
    large[-3:] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    after = torch.arange(10.0)
    path = ckptcore.save(tmp_path / "large.pt", {"epoch": 0, "model_state_dict": {"a": large, "b": after}})
    assert ckptcore.verify(path).ok
    for loaded in (torch.load(path, mmap=True), ckptcore.load(path, mmap=True)):
        assert loaded["model_state_dict"]["a"][-4:].tolist() == [0, 1, 2, 3]
        assert torch.equal(loaded["model_state_dict"]["b"], after)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/0").file_size == size
        assert archive.testzip() is None


def test_more_than_65535_tensors_are_read_by_everyone(tmp_path: Path) -> None:
    count = 70_000
    state = {"epoch": 0, "model_state_dict": {str(i): torch.tensor(float(i)) for i in range(count)}}
    path = ckptcore.save(tmp_path / "many.pt", state)
    assert ckptcore.verify(path).ok
    assert ckptcore.read_header(path).tensor_count == count
    for loaded in (torch.load(path), ckptcore.load(path)):
        assert float(loaded["model_state_dict"][str(count - 1)]) == count - 1
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) > 0xFFFF
