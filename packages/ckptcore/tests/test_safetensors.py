import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from forgery import safetensors_file
from hypothesis import given
from hypothesis import strategies as st

import ckptcore
from ckptcore import safetensors
from ckptcore.errors import DamagedCheckpoint

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        ({"a": entry()}, 7, "take 8 bytes"),
        ({"a": entry()}, 9, "take 8 bytes"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "overlaps"),
        ({"a": entry(), "b": entry()}, 8, "overlaps"),
        ({"a": entry(), "b": entry(offsets=[12, 20])}, 20, "hole"),
        ({"a": entry(offsets=[4, 12])}, 12, "hole"),
        ({"a": entry(offsets=[8, 0])}, 8, "does not fill"),
        ({"a": entry(shape=[3])}, 8, "does not fill"),
        ({"a": entry(shape=[-2], offsets=[0, -8])}, 8, "numbers"),
        ({"a": entry(shape=[1 << 63, 2])}, 8, "numbers"),
        ({"a": entry(shape=[1 << 32, 1 << 32])}, 8, "numbers"),
        ({"a": entry(shape=[0, 1 << 47, 1 << 47], offsets=[0, 0])}, 0, "numbers"),
        ({"a": entry(shape=[1] * 65, offsets=[0, 4])}, 4, "numbers"),
        ({"a": entry(shape=[2.0])}, 8, "numbers"),
        ({"a": entry(shape=[True, 2])}, 8, "numbers"),
        ({"a": entry(shape="2")}, 8, "numbers"),
        ({"a": entry(offsets=[0, 1 << 64])}, 8, "numbers"),
        ({"a": entry(offsets=[0])}, 8, "form|unpack"),
        ({"a": entry(offsets=5)}, 8, "form"),
        ({"a": entry(dtype="F4")}, 8, "unknown type"),
        ({"a": entry(dtype=["F32"])}, 8, "form"),
        ({"a": {"dtype": "F32"}}, 8, "entry of 'a'"),
        ({"a": [1]}, 8, "entry of 'a'"),
        ({"__metadata__": {"a": 1}}, 0, "metadata"),
        ({"__metadata__": "x"}, 0, "metadata"),
        (b'{"a":1,"a":2}', 0, "twice"),
        (b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', 8, "twice"),
        (b"{", 0, "damaged"),
        (b'{"a":' * 200_000, 0, "form"),
        (b'{"a":' + b"9" * 10_000 + b"}", 0, "damaged"),
        ('{"a":1}'.encode("utf-16-le"), 0, "damaged"),
        (b'{"\xff":1}', 0, "damaged"),
    ],
)
def test_a_header_that_breaks_the_rules_is_damage(
    tmp_path: Path, header: object, data: int, problem: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_file(header, bytes(data)))
    with pytest.raises(DamagedCheckpoint, match=problem):
        ckptcore.load(path)
    report = ckptcore.verify(path)
    assert not report.ok
    assert report.format == "safetensors"


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_length_that_is_not_there_is_damage(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_file({"a": F32}, bytes(8), length))
    with pytest.raises(DamagedCheckpoint):
        ckptcore.load(path)


@given(
    st.dictionaries(
        st.text(max_size=6).filter(lambda n: n != "__metadata__"),
        st.tuples(
            st.sampled_from(sorted(safetensors._NAMES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)
        ),
        max_size=5,
    )
)
def test_an_encoded_header_is_read_back_and_read_by_the_library_too(
    tensors: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
    import safetensors as library

    header = safetensors.encode_header(tensors, {"a": "é"})
    size = sum(safetensors.numel(shape) * safetensors.ITEM_SIZE[dtype] for dtype, shape in tensors.values())
    assert len(header) % 8 == 0
    assert struct.unpack("<Q", header[:8])[0] == len(header) - 8
    found = library.deserialize(header + bytes(size))
    assert {name: tuple(view["shape"]) for name, view in found} == {
        name: shape for name, (_, shape) in tensors.items()
    }


def test_a_type_without_a_name_in_the_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="complex128"):
        safetensors.encode_header({"a": ("complex128", (1,))}, {})


def test_every_tensor_of_a_file_is_in_memory_of_its_own(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(0, 2), "c": torch.tensor(5, dtype=torch.int8)}, path)
    found = ckptcore.load(path)
    path.unlink()
    found["a"].fill_(9)
    assert (found["b"].shape, found["c"].item()) == ((0, 2), 5)
    assert all(t.data_ptr() % 64 == 0 for t in found.values() if t.numel())
