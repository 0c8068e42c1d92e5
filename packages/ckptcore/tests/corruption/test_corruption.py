"""Nothing of a checkpoint may change unseen: every byte is read, and every reading is checked.

Zip fields that nothing reads: none. A reader rebuilds every header and the directory from the table and
compares them byte for byte, so these tests make no exception for any byte of the file.
"""

import random
from pathlib import Path

import pytest
from states import tiny_state

import ckptcore
from ckptcore.errors import DamagedCheckpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "tiny.pt"
    return ckptcore.save(path, tiny_state(), {"roles": ["latest"]}).read_bytes()


def unseen(path: Path, data: bytes) -> str | None:
    """What let damaged bytes pass; None if all readers report them."""
    path.write_bytes(data)
    if ckptcore.verify(path).ok:
        return "verify"
    for mmap in (False, True):
        try:
            ckptcore.load(path, mmap=mmap)
        except DamagedCheckpoint as error:
            if not error.findings:
                return "findings"
        else:
            return f"load(mmap={mmap})"
    return None


def assert_every_flip_is_seen(path: Path, whole: bytes, masks: list[list[int]]) -> None:
    missed = []
    for at, chosen in enumerate(masks):
        for mask in chosen:
            data = bytearray(whole)
            data[at] ^= mask
            reader = unseen(path, bytes(data))
            if reader:
                missed.append(f"byte {at} ^ {mask:#x}: {reader}")
    assert missed == []


def test_a_flipped_bit_in_any_byte_is_reported_by_verify_and_by_load(tmp_path: Path, whole: bytes) -> None:
    chooser = random.Random(0)
    masks = [[1 << chooser.randrange(8)] for _ in whole]
    assert_every_flip_is_seen(tmp_path / "flipped.pt", whole, masks)


@pytest.mark.slow
def test_every_bit_of_every_byte_flipped_in_turn_is_reported_by_verify_and_by_load(
    tmp_path: Path, whole: bytes
) -> None:
    assert_every_flip_is_seen(tmp_path / "flipped.pt", whole, [[1 << bit for bit in range(8)] for _ in whole])


@pytest.mark.slow
def test_any_other_value_of_any_byte_is_reported_too(tmp_path: Path, whole: bytes) -> None:
    chooser = random.Random(1)
    assert_every_flip_is_seen(
        tmp_path / "changed.pt", whole, [[chooser.randrange(1, 256), 0xFF] for _ in whole]
    )


@pytest.mark.parametrize("size", [512, 4096])
def test_a_hole_of_zeros_is_reported(tmp_path: Path, size: int) -> None:
    import torch

    path = ckptcore.save(tmp_path / "holed.pt", {**tiny_state(), "more": torch.arange(1, 3000)})
    whole = path.read_bytes()
    for at in range(0, len(whole), size):
        holed = whole[:at] + bytes(len(whole[at : at + size])) + whole[at + size :]
        assert holed != whole
        assert unseen(path, holed) is None, f"zeros from byte {at}"


def test_a_file_cut_at_any_512_bytes_is_reported(tmp_path: Path) -> None:
    import torch

    path = ckptcore.save(tmp_path / "cut.pt", {**tiny_state(), "more": torch.arange(1, 3000)})
    whole = path.read_bytes()
    for size in range(512, len(whole), 512):
        assert unseen(path, whole[:size]) is None, f"cut to {size} bytes"


def test_a_file_cut_anywhere_near_its_end_is_reported(tmp_path: Path, whole: bytes) -> None:
    for size in range(len(whole) - 1500, len(whole)):
        assert unseen(tmp_path / "cut.pt", whole[:size]) is None, f"cut to {size} bytes"


def test_a_file_cut_to_nothing_or_to_a_few_bytes_is_an_error_of_ours(tmp_path: Path, whole: bytes) -> None:
    for size in range(512):
        path = tmp_path / "cut.pt"
        path.write_bytes(whole[:size])
        assert not ckptcore.verify(path).ok
        with pytest.raises(ckptcore.CheckpointError):
            ckptcore.load(path)


@pytest.mark.parametrize("more", [b"\0", b"\0" * 22, b"x" * 5000, b"PK\x05\x06" + bytes(18)])
def test_bytes_after_the_end_or_before_the_start_are_reported(
    tmp_path: Path, whole: bytes, more: bytes
) -> None:
    assert unseen(tmp_path / "longer.pt", whole + more) is None
    assert unseen(tmp_path / "shifted.pt", more + whole) is None


def test_bytes_taken_out_or_put_in_anywhere_are_reported(tmp_path: Path, whole: bytes) -> None:
    chooser = random.Random(2)
    for _ in range(150):
        at, count = chooser.randrange(len(whole)), chooser.choice((1, 4, 64))
        assert unseen(tmp_path / "a.pt", whole[:at] + whole[at + count :]) is None, (
            f"{count} bytes out at {at}"
        )
        assert unseen(tmp_path / "a.pt", whole[:at] + bytes(count) + whole[at:]) is None, (
            f"{count} bytes in at {at}"
        )


def test_two_files_spliced_at_any_point_are_reported(tmp_path: Path, whole: bytes) -> None:
    state = tiny_state()
    state["model_state_dict"]["w"] += 1
    state["note"] = "ynit"
    other = ckptcore.save(tmp_path / "other.pt", state, {"roles": ["latest"]}).read_bytes()
    assert len(other) == len(whole)
    first = next(at for at in range(len(whole)) if whole[at] != other[at])
    last = max(at for at in range(len(whole)) if whole[at] != other[at])
    for at in [*range(first + 1, last, 37), last]:
        assert unseen(tmp_path / "a.pt", whole[:at] + other[at:]) is None, f"spliced at {at}"
        assert unseen(tmp_path / "a.pt", other[:at] + whole[at:]) is None, f"spliced at {at}"


def test_two_files_of_different_size_one_after_the_other_are_reported(tmp_path: Path, whole: bytes) -> None:
    other = ckptcore.save(tmp_path / "other.pt", {"epoch": 1}).read_bytes()
    assert unseen(tmp_path / "a.pt", whole + other) is None
    assert unseen(tmp_path / "a.pt", other + whole) is None
    assert unseen(tmp_path / "a.pt", whole + whole) is None


def test_a_block_of_another_file_in_the_place_of_ours_is_reported(tmp_path: Path) -> None:
    import torch

    path = ckptcore.save(tmp_path / "a.pt", {"w": torch.ones(4096)})
    other = ckptcore.save(tmp_path / "b.pt", {"w": torch.zeros(4096)}).read_bytes()
    whole = path.read_bytes()
    for at in range(0, len(whole), 4096):
        if whole[at : at + 4096] != other[at : at + 4096]:
            assert unseen(path, whole[:at] + other[at : at + 4096] + whole[at + 4096 :]) is None


def test_tensors_exchanged_within_a_file_are_reported(tmp_path: Path) -> None:
    import torch

    path = ckptcore.save(tmp_path / "a.pt", {"a": torch.full((64,), 1.0), "b": torch.full((64,), 2.0)})
    one, two = (torch.full((64,), value).numpy().tobytes() for value in (1.0, 2.0))
    data = path.read_bytes().replace(one, b"#" * 256).replace(two, one).replace(b"#" * 256, two)
    path.write_bytes(data)
    assert ckptcore.verify(path).findings == ("tensor a", "tensor b")
