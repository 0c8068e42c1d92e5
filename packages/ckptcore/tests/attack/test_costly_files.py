"""Files that are in order, or nearly, and cost far more than they show."""

import os
import time
from pathlib import Path

import pytest
from forgery import number, safetensors_file, state, torch_zip

import ckptcore
from ckptcore.errors import CheckpointError, DamagedCheckpoint


def test_a_memo_bomb_is_described_in_bounded_time(tmp_path: Path) -> None:
    """Sixty lists, each holding the one before twice: 2**60 values in some hundred bytes. torch loads it."""
    nested = b"]q\x00"
    for i in range(60):
        nested += b"](" + b"h" + bytes((i,)) + b"h" + bytes((i,)) + b"eq" + bytes((i + 1,))
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(b"\x80\x02}X\x01\x00\x00\x00a(" + nested + b"ts."))
    start = time.monotonic()
    try:
        found = ckptcore.load(path)
    except CheckpointError:
        found = None
    assert time.monotonic() - start < 20
    assert found is None or found.header.content["keys"] == []


@pytest.mark.parametrize("size", [1 << 40, 1 << 42])
def test_a_file_with_a_hole_of_terabytes_is_refused_at_once(tmp_path: Path, size: int) -> None:
    for name, head in {
        "safetensors": safetensors_file(
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8), size - 8
        ),
        "zip": b"PK\x03\x04",
        "zeros": b"",
    }.items():
        path = tmp_path / name
        path.write_bytes(head)
        os.truncate(path, size)
        start = time.monotonic()
        if name == "safetensors":
            with pytest.raises(DamagedCheckpoint):
                ckptcore.load(path)
        assert not ckptcore.verify(path).ok
        assert time.monotonic() - start < 5


def test_a_long_history_of_plain_numbers_is_read_in_seconds(tmp_path: Path) -> None:
    history = [float(i) / 7 for i in range(400_000)]
    path = ckptcore.save(tmp_path / "a.pt", {"history": history})
    start = time.monotonic()
    assert ckptcore.load(path)["history"] == history
    assert time.monotonic() - start < 10


def test_a_number_of_many_digits_is_no_trap(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(state(epoch=number((1 << 2000) + 1), loss=number(1 << 1000))))
    found = ckptcore.load(path)
    assert found.header.metrics == {}
    assert found.header.epoch is None
