import enum
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from states import difference

from ckptcore.errors import CheckpointError, UnsavableValue
from ckptcore.plain import MAX_DEPTH, MAX_VALUES, Atom, TensorSlot, flatten, join_path


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Settings:
    lr: float
    folder: Path


Point = namedtuple("Point", "x y")


class Text(str):
    pass


def plain(value: Any) -> Any:
    tree, _ = flatten({"value": value})
    return tree["value"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.bytes_(b"raw"), b"raw"),
        (np.complex128(1 + 2j), 1 + 2j),
        (Path("runs") / "a", "runs/a"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(minutes=1), 60.0),
        (defaultdict(list, {"a": [1]}), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (Namespace(lr=0.1, layers=[1, 2]), {"lr": 0.1, "layers": [1, 2]}),
        (SimpleNamespace(a=1), {"a": 1}),
        (Settings(0.1, Path("x")), {"lr": 0.1, "folder": "x"}),
        (Point(1, 2.0), (1, 2.0)),
        (deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        (Text("subclass"), "subclass"),
        (bytearray(b"ab"), b"ab"),
        (frozenset({1, 2}), {1, 2}),
        (torch.Size([1, 2]), Atom("size", (1, 2))),
        (torch.float16, Atom("dtype", "float16")),
        (torch.device("cuda", 1), Atom("device", "cuda:1")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_common_values_become_the_plain_value_that_stands_for_them(value: object, expected: object) -> None:
    assert difference(plain(value), expected) is None


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {"b": object()}]}, "value/a/1/b"),
        ({"fn": print}, "value/fn"),
        ({"model": torch.nn.Linear(1, 1)}, "value/model"),
        ({"x/y": {"~": Fraction(1, 2)}}, "value/x~1y/~0"),
        ({"t": torch.ones(2, 2).to_sparse()}, "value/t"),
        ({"t": torch.empty(2, device="meta")}, "value/t"),
        (torch.nn.LazyLinear(3).state_dict(), "value/weight"),
        ({"b": torch.nn.UninitializedBuffer()}, "value/b"),
        ({"names": np.array(["a", "b"])}, "value/names"),
        ({"objects": np.array([object()])}, "value/objects"),
        ({"long": np.longdouble(1) / 3}, "value/long"),
        ({"dtype": torch.complex32}, "value/dtype"),
        ({"dtype": torch.qint8}, "value/dtype"),
        ({"masked": np.ma.masked_array([1, 2], [True, False])}, "value/masked"),
        ({"big": 1 << 3000}, "value/big"),
        ({(1, torch.ones(1)): 1}, "value"),
        ({torch.float16: 1}, "value"),
        ({1 << 61: 1}, "value"),
        ({"s": {(1, 2)}}, "value/s"),
        ({"s": {frozenset({1})}}, "value/s"),
        ({"s": {Path("a"), "a"}}, "value/s"),
        ({"d": {Path("a"): 1, "a": 2}}, "value/d"),
        ({"d": {Colour.RED: 1, "red": 2}}, "value/d"),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged), "value"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_stored_is_refused_naming_its_key_path(value: object, path: str) -> None:
    with pytest.raises(UnsavableValue) as caught:
        flatten({"value": value})
    assert caught.value.key_path == path
    assert isinstance(caught.value, CheckpointError)


def test_a_wrapper_tensor_without_memory_is_refused() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    with pytest.raises(UnsavableValue, match="value: a TwoTensor has no memory"):
        plain(TwoTensor(torch.ones(2), torch.ones(2)))


def test_the_top_of_a_state_is_a_dict_with_text_keys() -> None:
    with pytest.raises(UnsavableValue, match="expected a dict"):
        flatten([1])  # type: ignore[arg-type]
    with pytest.raises(UnsavableValue, match="keys at the top"):
        flatten({1: 2})  # type: ignore[dict-item]


def test_a_container_that_holds_itself_is_refused_and_not_followed() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(UnsavableValue, match="holds itself"):
        flatten({"endless": endless})


def test_nesting_is_allowed_up_to_the_limit_and_refused_beyond() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    flatten({"deep": value})
    with pytest.raises(UnsavableValue, match="nested deeper"):
        flatten({"deep": [value]})


def test_a_few_lists_that_stand_for_countless_values_are_refused_in_time() -> None:
    value: list[object] = [0]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(UnsavableValue, match=f"more than {MAX_VALUES:,} values"):
        flatten({"bomb": value})


def test_tied_weights_are_one_tensor_and_other_views_are_not() -> None:
    base = torch.arange(6.0)
    tree, tensors = flatten(
        {"a": base, "tied": base, "alias": base[:], "view": base[1:], "parameter": torch.nn.Parameter(base)}
    )
    assert [tree[key].index for key in ("a", "tied", "alias", "view", "parameter")] == [0, 0, 0, 1, 0]
    assert len(tensors) == 2
    assert not any(tensor.requires_grad for tensor in tensors)


def test_tensors_that_read_the_same_memory_in_another_way_are_kept_apart() -> None:
    base = torch.tensor([1 + 2j, 3 - 4j])
    views = {
        "plain": base,
        "conjugate": base.conj(),
        "imag": base.imag,
        "negative": base.conj().imag,
        "real": torch.view_as_real(base),
        "reshaped": base.reshape(2, 1),
        "other_type": base.view(torch.float32),
    }
    tree, tensors = flatten(views)
    assert len({slot.index for slot in tree.values()}) == len(views) == len(tensors)


def test_empty_tensors_are_never_taken_for_one_another() -> None:
    tree, tensors = flatten(
        {"a": torch.empty(0, 3), "b": torch.empty(0, 5), "c": torch.empty(0, dtype=torch.int8)}
    )
    assert [tuple(t.shape) for t in tensors] == [(0, 3), (0, 5), (0,)]
    assert len(tree) == 3


@pytest.mark.parametrize(
    "array",
    [
        np.array(5.0),
        np.arange(6).reshape(2, 3).T,
        np.arange(6)[::-2],
        np.array([1.5, 2.5], dtype=">f4"),
        np.array([True, False]),
        np.zeros((0, 3), dtype=np.uint16),
        np.broadcast_to(np.int8(3), (2, 2)),
    ],
    ids=["0-dim", "transposed", "reversed", "big-endian", "bool", "empty", "read-only"],
)
def test_numpy_arrays_become_tensors_of_their_shape_type_and_numbers(array: np.ndarray) -> None:
    tree, (tensor,) = flatten({"array": array})
    assert tree["array"] == TensorSlot(0)
    assert tuple(tensor.shape) == array.shape
    assert tensor.dtype == torch.from_numpy(np.zeros(1, array.dtype.newbyteorder("="))).dtype
    assert tensor.tolist() == array.tolist()


def test_numpy_arrays_are_copied_so_that_later_changes_do_not_reach_the_file() -> None:
    array = np.zeros(3)
    _, (tensor,) = flatten({"array": array})
    array[0] = 1
    assert tensor.tolist() == [0, 0, 0]


def test_a_state_dict_keeps_the_versions_of_its_layers() -> None:
    weights = torch.nn.BatchNorm1d(2).state_dict()
    copy = plain(weights)
    assert isinstance(copy, OrderedDict)
    assert copy._metadata == {"": {"version": 2}}  # type: ignore[attr-defined]


def test_a_tensor_among_the_attributes_of_a_state_dict_is_refused() -> None:
    weights = torch.nn.Linear(1, 1).state_dict()
    weights._metadata["x"] = {"y": torch.ones(1)}  # type: ignore[attr-defined]
    with pytest.raises(UnsavableValue) as caught:
        flatten({"model": weights})
    assert caught.value.key_path == "model/_metadata/x/y"


def test_the_copy_shares_no_container_with_the_state() -> None:
    inner = [1]
    tree, _ = flatten({"inner": inner})
    inner.append(2)
    assert tree == {"inner": [1]}


def test_key_paths_escape_slashes_as_json_pointers_do() -> None:
    assert join_path(("a/b", 0, "~")) == "a~1b/0/~0"
