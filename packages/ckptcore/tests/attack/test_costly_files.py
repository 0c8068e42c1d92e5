"""Files that are in order, or nearly, and cost far more than they show."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from forgery import Parts, number, safetensors_file, state, torch_zip

import ckptcore
from ckptcore import verifying
from ckptcore.errors import CheckpointError, DamagedCheckpoint
from ckptcore.hashing import Stretch, is_intact
from ckptcore.header import canonical_json


def test_a_memo_bomb_is_described_in_bounded_time(tmp_path: Path) -> None:
    """Sixty lists, each holding the one before twice: 2**60 values in some hundred bytes. torch loads it."""
    nested = b"]q\x00"
    for i in range(60):
        nested += b"](" + b"h" + bytes((i,)) + b"h" + bytes((i,)) + b"eq" + bytes((i + 1,))
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(b"\x80\x02}X\x01\x00\x00\x00a(" + nested + b"ts."))
    start = time.process_time()
    try:
        found = ckptcore.load(path)
    except CheckpointError:
        found = None
    assert time.process_time() - start < 20
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
        start = time.process_time()
        if name == "safetensors":
            with pytest.raises(DamagedCheckpoint):
                ckptcore.load(path)
        assert not ckptcore.verify(path).ok
        assert time.process_time() - start < 5


def test_a_long_history_of_plain_numbers_is_read_in_seconds(tmp_path: Path) -> None:
    history = [float(i) / 7 for i in range(400_000)]
    path = ckptcore.save(tmp_path / "a.pt", {"history": history})
    start = time.process_time()
    assert ckptcore.load(path)["history"] == history
    assert time.process_time() - start < 10


def test_a_number_of_many_digits_is_no_trap(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(state(epoch=number((1 << 2000) + 1), loss=number(1 << 1000))))
    found = ckptcore.load(path)
    assert found.header.metrics == {}
    assert found.header.epoch is None


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_an_expanded_tensor_that_asks_for_gigabytes_is_refused(tmp_path: Path, new: bool) -> None:
    state = {"epoch": 1, "model_state_dict": {"w": torch.zeros(1).expand(2_000_000, 1000)}}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match="clone"):
        ckptcore.load(tmp_path / "a.pt")


def test_a_file_that_does_not_fit_into_memory_is_said_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(3)}, path)
    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(CheckpointError, match="does not fit into memory"):
        ckptcore.load(path)


def test_forged_sizes_are_damage_and_no_overflow(tmp_path: Path) -> None:
    parts = Parts.of(ckptcore.save(tmp_path / "a.pt", {"w": torch.ones(4)}))
    table = json.loads(parts.table())
    for size in ((1 << 62) - 1, 1 << 40):
        forged = [[row[0], size, *row[2:]] for row in table["records"]]
        (tmp_path / "b.pt").write_bytes(parts.build(table=canonical_json({**table, "records": forged})))
        assert not ckptcore.verify(tmp_path / "b.pt").ok
        with pytest.raises(DamagedCheckpoint):
            ckptcore.load(tmp_path / "b.pt")
    assert not is_intact(Stretch(0, 1 << 62, (1 << 62) - 1, ""))
    assert not is_intact(Stretch(0, 1 << 63, 1, ""))


def test_a_forged_list_of_records_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts.of(ckptcore.save(tmp_path / "a.pt", {"w": torch.ones(4)}))
    table = json.loads(parts.table())
    forged = [[f"data/{number}", 0, "0", ""] for number in range(50_000)]
    (tmp_path / "b.pt").write_bytes(parts.build(table=canonical_json({**table, "records": forged})))
    monkeypatch.setattr(verifying, "intact", lambda _: pytest.fail("it was hashed"))
    assert "not the ones that are written" in ckptcore.verify(tmp_path / "b.pt").findings[0]
