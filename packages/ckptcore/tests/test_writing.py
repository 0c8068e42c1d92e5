import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from states import DTYPES, difference, random_tensor, raw, small_state, tiny_state

import ckptcore
from ckptcore.errors import DiskFull, FolderNotWritable, UnsavableValue, UsageError
from ckptcore.header import MARKER
from ckptcore.plain import MAX_VALUES, flatten

KEYS = (
    st.text(max_size=8)
    | st.integers(-(2**60) + 1, 2**60 - 1)
    | st.booleans()
    | st.none()
    | st.tuples(st.text(max_size=3), st.integers(0, 9))
)
TENSORS = st.builds(
    random_tensor,
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**2000), 2**2000)
    | st.floats()
    | st.text(st.characters(), max_size=12)
    | st.binary(max_size=12)
    | st.complex_numbers()
    | st.sets(st.text(max_size=3) | st.integers(-9, 9), max_size=4)
    | st.lists(st.integers(0, 9), max_size=3).map(torch.Size)
    | st.sampled_from([*DTYPES, torch.device("cpu"), torch.device("cuda", 1)])
    | TENSORS
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)
STATES = st.dictionaries(
    st.text(st.characters(), max_size=8).filter(lambda key: key != MARKER), VALUES, max_size=5
)


@given(STATES)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_any_state_comes_back_the_same_by_ckptcore_and_by_plain_torch(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    path = tmp_path / "any.pt"
    try:
        ckptcore.save(path, state, {"run_key": "r"})
    except UnsavableValue as error:
        assert "same key path" in str(error)
        return
    expected = {**state, MARKER: 1}
    assert difference(dict(ckptcore.load(path)), expected) is None
    assert difference(dict(ckptcore.load(path, mmap=True)), expected) is None
    assert difference(torch.load(path), expected) is None
    assert difference(torch.load(path, mmap=True), expected) is None
    assert zipfile.ZipFile(path).testzip() is None
    assert ckptcore.verify(path).ok


@pytest.mark.parametrize("mmap", [False, True])
def test_a_training_state_opens_by_plain_torch_load(
    tmp_path: Path, small_state: dict[str, Any], mmap: bool
) -> None:
    path = ckptcore.save(tmp_path / "state.pt", small_state)
    found = torch.load(path, mmap=mmap)
    assert difference(found, {**small_state, MARKER: 1}) is None
    weights = found["model_state_dict"]
    assert weights["tied.weight"].data_ptr() == weights["0.weight"].data_ptr()


def test_a_training_state_comes_back_with_types_aliases_and_attributes(
    tmp_path: Path, small_state: dict[str, Any]
) -> None:
    found = ckptcore.load(ckptcore.save(tmp_path / "state.pt", small_state))
    assert difference(dict(found), {**small_state, MARKER: 1}) is None
    weights = found["model_state_dict"]
    assert weights["tied.weight"] is weights["0.weight"]
    assert weights._metadata[""] == {"version": 1}
    assert all(tensor.data_ptr() % 64 == 0 for tensor in weights.values())


def test_a_model_and_its_optimizer_go_on_from_what_was_loaded(
    tmp_path: Path, small_state: dict[str, Any]
) -> None:
    del small_state["model_state_dict"]["tied.weight"]
    found = ckptcore.load(ckptcore.save(tmp_path / "state.pt", small_state))
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4, bias=False)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    model.load_state_dict(found["model_state_dict"])
    optimizer.load_state_dict(found["optimizer_state_dict"])
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (5, 7)], ids=str)
def test_every_type_and_shape_keeps_its_bits(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = random_tensor(shape, dtype, seed=1)
    path = ckptcore.save(tmp_path / "t.pt", {"t": tensor})
    for found in (
        ckptcore.load(path)["t"],
        ckptcore.load(path, mmap=True)["t"],
        torch.load(path)["t"],
        torch.load(path, mmap=True)["t"],
    ):
        assert (found.dtype, found.shape, raw(found)) == (dtype, shape, raw(tensor))


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", ["complex32", "uint1", "int4", "bits8", "float4_e2m1fn_x2"])
def test_a_type_that_is_not_stored_is_refused_naming_its_tensor(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    with pytest.raises(UnsavableValue, match=f"model/w.*{name}|{name}.*model/w"):
        ckptcore.save(tmp_path / "t.pt", {"model": {"w": torch.empty(2, dtype=dtype)}})
    assert os.listdir(tmp_path) == []


class Tagged(torch.Tensor):
    """A subclass with something of its own, as MONAI's MetaTensor is."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(12.0).reshape(3, 4).t(),
        lambda: torch.arange(12.0)[1::3],
        lambda: torch.ones(1, 3).expand(5, 3),
        lambda: torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        lambda: torch.tensor([1 + 2j, 3j]).conj(),
        lambda: torch.tensor([1 + 2j, 3j]).conj().imag,
        lambda: torch.tensor(3.5),
        lambda: torch.arange(3.0).as_subclass(Tagged),
        lambda: torch.nn.Parameter(torch.ones(2)),
        lambda: torch.ones(3, requires_grad=True) * 2,
    ],
    ids=[
        "transposed",
        "strided",
        "expanded",
        "channels_last",
        "conjugate",
        "negative",
        "0-dim",
        "subclass",
        "parameter",
        "graph",
    ],
)
def test_tensors_of_any_make_are_stored_as_plain_contiguous_numbers(tmp_path: Path, make: Any) -> None:
    tensor = make()
    found = ckptcore.load(ckptcore.save(tmp_path / "t.pt", {"t": tensor}))["t"]
    assert type(found) is torch.Tensor
    assert found.is_contiguous()
    assert not found.requires_grad
    assert found.shape == tensor.shape
    assert raw(found) == raw(tensor)


def test_the_same_state_gives_the_same_bytes_but_for_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptcore import writing

    paths = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for path in paths:
        encoded = writing.encode(small_state(), {"b": 1, "a": 2})
        fixed = type(encoded)(encoded.tree, encoded.tensors, encoded.metadata, "2026-01-01T00:00:00+00:00")
        monkeypatch.setattr(writing, "encode", lambda *_, fixed=fixed: fixed)
        writing.save(path, {})
        monkeypatch.undo()
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_two_saves_of_one_state_have_one_model_digest_whatever_is_beside_it(tmp_path: Path) -> None:
    one = ckptcore.read_header(ckptcore.save(tmp_path / "1.pt", tiny_state()))
    other = ckptcore.read_header(
        ckptcore.save(tmp_path / "2.pt", {**tiny_state(), "epoch": 9, "more": torch.ones(3)})
    )
    changed = tiny_state()
    changed["model_state_dict"]["w"][0] += 1
    third = ckptcore.read_header(ckptcore.save(tmp_path / "3.pt", changed))
    assert one.model_digest == other.model_digest != third.model_digest


def test_the_marker_is_written_over_whatever_the_state_has_there(tmp_path: Path) -> None:
    assert ckptcore.load(ckptcore.save(tmp_path / "m.pt", {MARKER: "mine"})) == {MARKER: 1}


def test_what_was_loaded_can_be_saved_again(tmp_path: Path, small_state: dict[str, Any]) -> None:
    first = ckptcore.load(ckptcore.save(tmp_path / "1.pt", small_state))
    second = ckptcore.load(ckptcore.save(tmp_path / "2.pt", first))
    assert difference(dict(second), dict(first)) is None
    assert first.header.model_digest == second.header.model_digest


def test_an_unsavable_value_leaves_no_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = ckptcore.save(tmp_path / "a.pt", {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises(UnsavableValue, match="model/fn"):
        ckptcore.save(path, {"model": {"fn": print}})
    with pytest.raises(UnsavableValue, match="metadata/x"):
        ckptcore.save(path, {"epoch": 2}, {"x": b"bytes"})
    with pytest.raises(UnsavableValue, match="metadata"):
        ckptcore.save(path, {"epoch": 2}, {"x": torch.ones(1)})
    with pytest.raises(UnsavableValue, match="summary"):
        ckptcore.save(path, {"epoch": 2}, {"x": "long" * 400_000})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_tensors_whose_key_paths_read_the_same_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsavableValue, match="state/0"):
        ckptcore.save(tmp_path / "a.pt", {"state": {0: torch.ones(1), "0": torch.zeros(1)}})
    assert os.listdir(tmp_path) == []


def test_plain_values_by_the_million_are_refused_rather_than_written_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnsavableValue, match="values"):
        ckptcore.save(tmp_path / "a.pt", {"history": [0.5] * (MAX_VALUES + 1)})
    with pytest.raises(UnsavableValue, match="store long lists as tensors"):
        ckptcore.save(tmp_path / "a.pt", {"history": [f"{i:030}" for i in range(600_000)]})
    assert os.listdir(tmp_path) == []


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = ckptcore.save(tmp_path / "a" / "b" / "c.pt", {"epoch": 1})
    assert ckptcore.load(path)["epoch"] == 1


def test_saving_to_a_link_replaces_the_link_and_not_what_it_names(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("keep me")
    link = tmp_path / "link.pt"
    link.symlink_to(precious)
    ckptcore.save(link, tiny_state())
    assert precious.read_text() == "keep me"
    assert not link.is_symlink()
    assert ckptcore.verify(link).ok


def test_the_mode_of_a_replaced_file_is_kept_and_a_new_one_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = ckptcore.save(tmp_path / "a.pt", {"epoch": 1})
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        ckptcore.save(path, {"epoch": 2})
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_infinities_and_nans_of_the_state_reach_the_header(tmp_path: Path) -> None:
    state = {
        "loss": float("inf"),
        "val_loss": float("nan"),
        "odd": complex("nan"),
        "val_metrics": {"f1": float("-inf")},
    }
    header = ckptcore.read_header(ckptcore.save(tmp_path / "a.pt", state))
    assert header.metrics["loss"] == float("inf")
    assert header.metrics["f1"] == float("-inf")
    assert np.isnan(header.metrics["val_loss"])


def test_text_that_is_no_valid_unicode_comes_back_unchanged(tmp_path: Path) -> None:
    state = {"pair": "\ud800\udc00", "lone": "\udfff", "\ud83d\ude00": "key", "real": "\U0001f600"}
    path = ckptcore.save(tmp_path / "a.pt", state)
    assert ckptcore.load(path) == {**state, MARKER: 1}
    assert torch.load(path) == {**state, MARKER: 1}


def test_a_write_through_a_buffer_of_torch_equals_ours(tmp_path: Path) -> None:
    """What torch.save would store of the same state is what torch.load finds in our file."""
    state = small_state()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    ours = torch.load(ckptcore.save(tmp_path / "a.pt", state))
    del ours[MARKER]
    assert difference(torch.load(buffer), ours) is None


def test_a_full_disk_is_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptcore import durable

    monkeypatch.setattr(durable, "free_bytes", lambda folder: 1000)
    with pytest.raises(DiskFull) as caught:
        ckptcore.save(tmp_path / "a.pt", tiny_state())
    assert caught.value.free == 1000 < caught.value.needed
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderNotWritable, match="folder"):
        ckptcore.save(tmp_path / "file" / "a.pt", {"epoch": 1})


def test_flatten_copies_no_tensor() -> None:
    state = small_state()
    _, tensors = flatten(state)
    assert tensors[0].data_ptr() == state["model_state_dict"]["0.weight"].data_ptr()


def test_a_read_only_file_such_as_a_version_is_not_replaced(tmp_path: Path) -> None:
    path = ckptcore.save(tmp_path / "resnet50_v1.0.0_best.pth", {"epoch": 1})
    path.chmod(0o444)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="read-only"):
        ckptcore.save(path, {"epoch": 2})
    assert path.read_bytes() == before
