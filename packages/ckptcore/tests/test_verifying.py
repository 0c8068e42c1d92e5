from pathlib import Path
from typing import Any

import pytest
import torch

import ckptcore
from ckptcore.errors import DamagedCheckpoint


def flip(path: Path, needle: bytes, offset: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(needle) + offset] ^= 0x10
    path.write_bytes(data)


def test_a_whole_file_is_ok_and_says_what_stands_behind_that(tiny_file: Path) -> None:
    report = ckptcore.verify(tiny_file)
    assert (report.ok, report.findings, report.format, report.checked, report.tensors) == (
        True,
        (),
        "ckptcore",
        "sha256",
        2,
    )


def test_every_damaged_tensor_is_named_by_verify_and_by_load(tmp_path: Path) -> None:
    state = {"model": {f"layer{i}": torch.full((300,), float(i + 1)) for i in range(4)}}
    path = ckptcore.save(tmp_path / "a.pt", state)
    for value in (2.0, 4.0):
        flip(path, torch.full((2,), value).numpy().tobytes())
    assert ckptcore.verify(path).findings == ("tensor model/layer1", "tensor model/layer3")
    with pytest.raises(DamagedCheckpoint) as caught:
        ckptcore.load(path)
    assert caught.value.findings == ("tensor model/layer1", "tensor model/layer3")


def test_a_damaged_tensor_under_two_names_is_reported_under_both(tmp_path: Path) -> None:
    weight = torch.full((300,), 3.0)
    path = ckptcore.save(tmp_path / "a.pt", {"model": {"a": weight, "b": weight}})
    flip(path, torch.full((2,), 3.0).numpy().tobytes())
    assert ckptcore.verify(path).findings == ("tensor model/a", "tensor model/b")


@pytest.mark.parametrize(
    ("needle", "part"),
    [
        (b"tinyq", "record data.pkl"),
        (b'"records":[', "tensor table"),
        (b'"writer":', "summary"),
        (b"little", "byteorder"),
        (b"PK\x01\x02", "zip directory"),
        (b"PK\x03\x04", "zip header of record archive/data.pkl"),
    ],
)
def test_other_damage_is_named_by_the_part_it_lies_in(tiny_file: Path, needle: bytes, part: str) -> None:
    flip(tiny_file, needle, 2)
    (finding, *_) = ckptcore.verify(tiny_file).findings
    assert part in finding
    with pytest.raises(DamagedCheckpoint, match=part):
        ckptcore.load(tiny_file)


def test_a_file_cut_short_is_called_cut_short(tiny_file: Path) -> None:
    tiny_file.write_bytes(tiny_file.read_bytes()[:-700])
    assert "cut off" in ckptcore.verify(tiny_file).findings[0]


def test_a_checkpoint_that_torch_saved_again_is_no_foreign_file(tiny_file: Path) -> None:
    torch.save(torch.load(tiny_file), tiny_file)
    assert "marker" in ckptcore.verify(tiny_file).findings[0]
    for read in (ckptcore.load, ckptcore.read_header):
        with pytest.raises(DamagedCheckpoint, match="marker"):
            read(tiny_file)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_the_marker_is_found_behind_a_megabyte_of_other_values(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "a.pt"
    state = {
        "log": ["line " * 20 + str(i) for i in range(20_000)],
        "ckptcore_format": 1,
        "w": torch.zeros(300_000),
    }
    torch.save(state, path, _use_new_zipfile_serialization=new)
    with pytest.raises(DamagedCheckpoint, match="marker"):
        ckptcore.load(path)
    assert not ckptcore.verify(path).ok


@pytest.mark.parametrize(
    ("make", "checked"),
    [
        (lambda path: torch.save({"w": torch.ones(5)}, path), "crc32"),
        (lambda path: ckptcore_safetensors(path), "structure"),
        (
            lambda path: torch.save({"w": torch.ones(5)}, path, _use_new_zipfile_serialization=False),
            "structure",
        ),
    ],
    ids=["torch", "safetensors", "torch-legacy"],
)
def test_foreign_files_are_ok_as_far_as_they_can_be_checked(tmp_path: Path, make: Any, checked: str) -> None:
    path = tmp_path / "foreign"
    make(path)
    report = ckptcore.verify(path)
    assert (report.ok, report.checked) == (True, checked)


def ckptcore_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(5)}, path)


def test_an_old_torch_file_that_was_cut_off_is_found_by_the_bytes_that_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(5)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-4])
    report = ckptcore.verify(path)
    assert not report.ok
    assert "are left in the file" in report.findings[0]


def test_a_foreign_file_with_a_flipped_bit_is_found_by_its_crc_which_torch_ignores(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    torch.save({"w": torch.full((1000,), 2.5)}, path)
    flip(path, torch.full((3,), 2.5).numpy().tobytes())
    torch.load(path)
    assert "CRC-32" in ckptcore.verify(path).findings[0]
    with pytest.raises(DamagedCheckpoint, match="CRC-32"):
        ckptcore.load(path)
