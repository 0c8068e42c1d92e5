"""JSON in one spelling: what headers and tables are made of, and how much of it is read."""

from __future__ import annotations

import json
import math
from typing import Any

from ckptcore.errors import UnsavableValue
from ckptcore.plain import Atom, TensorSlot, join_path


def canonical_json(value: object) -> bytes:
    """One spelling for one value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def encode_number(value: float) -> float | int | str:
    """A number as strict JSON has it; NaN and infinities become text."""
    return value if math.isfinite(value) else str(float(value))


def jsonable(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """A canonical tree without tensors as JSON values (tuples become lists, non-finite numbers text).

    Raises:
        UnsavableValue: there is a tensor, or bytes, in it.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return encode_number(value)
    if isinstance(value, dict):
        return {str(key): jsonable(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, set):
        return sorted((jsonable(item, path) for item in value), key=repr)
    if isinstance(value, Atom):
        return list(value.value) if isinstance(value.value, tuple) else value.value
    what = "a tensor" if isinstance(value, TensorSlot) else type(value).__name__
    raise UnsavableValue(
        join_path(("metadata", *path)), f"{what} has no place in the metadata; put it into the state."
    )


def too_many_brackets(data: bytes) -> bool:
    """Whether a large JSON text holds more lists and objects for its length than our tables do.

    An empty list takes 3 bytes there and 64 in memory; a row with its digest has two lists in 80 bytes or
    more.
    """
    return len(data) > 1 << 20 and data.count(b"[") + data.count(b"{") > len(data) // 8


def json_depth(value: Any) -> int:
    """How deep lists and objects lie in each other, counted without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if type(item) in (dict, list)]:
        depth += 1
        level = [inside for item in level for inside in (item.values() if type(item) is dict else item)]
    return depth
