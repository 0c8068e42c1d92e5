"""The values a checkpoint may hold, and their canonical copy.

``torch.load(weights_only=True)`` refuses NumPy scalars, paths, enums, dates and most classes: whoever saves
them finds out when loading, a week later. Here they are converted when saving, or refused then, naming the
key path.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import re
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ckptcore.dtypes import ITEM_SIZE
from ckptcore.errors import UnsavableValue

if TYPE_CHECKING:
    import torch

MAX_DEPTH = 64
"""Nesting beyond this is refused on both sides: no real training state comes near, an attack does."""

MAX_VALUES = 1_000_000
"""Values in one state at most. Nested references to one list can stand for 2**64 values in a few hundred
bytes.
"""

MAX_TUPLE_KEYS = 10_000
"""Dict keys in one state at most that are tuples; see `is_quick_key`."""

MAX_INT_BITS = 2032
"""The longest integer that one pickle LONG1 opcode holds; torch's restricted unpickler knows no longer one.
"""


_DEVICE = re.compile(
    "(?:cpu|cuda|mps|xpu|meta|xla|hpu|mtia|ipu|hip|lazy|vulkan|ve|fpga|maia|privateuseone)"
    "(?::(?:0|[1-9][0-9]?|1[01][0-9]|12[0-7]))?"
)


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSlot:
    """The place of a tensor in a canonical tree: its index in the list of stored tensors."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class Atom:
    """A torch value that is no tensor: ``kind`` is "dtype", "device" or "size"."""

    kind: str
    value: str | tuple[int, ...]


def join_path(parts: tuple[Any, ...]) -> str:
    """A key path as one string: parts joined by "/", with "~" and "/" inside a part escaped (RFC 6901)."""
    return "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in parts)


class _Flattener:
    """Walks a state once; keeps the tensors found, each stored once however often it is shared."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._values = self._tuple_keys = 0
        self.like_keys = False
        """Whether some dict has two keys of one text (0 and "0"): only then can two tensors share a name."""
        self._seen: dict[tuple[object, ...], int] = {}

    def convert(self, value: Any, path: tuple[Any, ...]) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise UnsavableValue(
                join_path(path), f"more than {MAX_VALUES:,} values. Store long lists as tensors."
            )
        if len(path) > MAX_DEPTH:
            raise UnsavableValue(
                join_path(path[:8]) + "/...",
                f"nested deeper than {MAX_DEPTH} levels (or a container holds itself). Flatten it.",
            )
        kind = type(value)
        if value is None or kind is bool or kind is float or kind is str:
            return value
        if kind is int:
            return self._integer(value, path)
        if kind is dict:
            return self._dict(value, path)
        if kind is list:
            return [self.convert(item, (*path, i)) for i, item in enumerate(value)]
        if kind is tuple:
            return tuple(self.convert(item, (*path, i)) for i, item in enumerate(value))
        return self._other(value, path)

    def _dict(self, value: Mapping[Any, Any], path: tuple[Any, ...]) -> dict[Any, Any]:
        found = {self._key(key, path): self.convert(item, (*path, key)) for key, item in value.items()}
        if len(found) != len(value):
            raise UnsavableValue(
                join_path(path),
                "two of its keys become the same plain value (a path or enum and its text, say). Rename one.",
            )
        if any(type(key) is not str for key in found) and len(set(map(str, found))) != len(found):
            self.like_keys = True
        return found

    def _other(self, value: Any, path: tuple[Any, ...]) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None:
            if isinstance(value, torch.Tensor):
                return self._tensor(value, path)
            if isinstance(value, torch.Size):
                return Atom("size", tuple(int(n) for n in value))
            if isinstance(value, torch.dtype):
                return self._dtype(value, path)
            if isinstance(value, torch.device):
                # Other programs do not know the device types of an extension: for them its name is text.
                return Atom("device", str(value)) if is_device(str(value)) else str(value)
        if isinstance(value, OrderedDict):
            copy = OrderedDict(self._dict(value, path))
            # nn.Module.state_dict keeps the versions of its layers in this attribute; without it old batch
            # norms load wrongly.
            metadata = getattr(value, "_metadata", None)
            if metadata is not None:
                copy._metadata = self._attributes(metadata, (*path, "_metadata"))  # type: ignore[attr-defined]
            return copy
        if isinstance(value, enum.Enum):
            return self.convert(value.value, path)
        simple = self._simple(value)
        if simple is not None:
            return self.convert(simple, path)
        if isinstance(value, complex):
            return complex(value)
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        if isinstance(value, (set, frozenset)):
            return self._set(value, path)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, (numpy.generic, numpy.ndarray)):
            return self._numpy(value, path)
        raise UnsavableValue(
            join_path(path),
            f"got {type(value).__module__}.{type(value).__qualname__}, "
            "expected tensors and plain values "
            "(numbers, text, lists, dicts). Store its state_dict() or its fields instead of the object.",
        )

    @staticmethod
    def _simple(value: Any) -> Any:
        """The plain value that stands for a common class, or None."""
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, (datetime, date, time)):
            return value.isoformat()
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, (Namespace, SimpleNamespace)):
            return dict(vars(value))
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, tuple):
            return tuple(value)
        if isinstance(value, (list, deque, range)):
            return list(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return None

    def _attributes(self, metadata: Any, path: tuple[Any, ...]) -> Any:
        plain = self.convert(metadata, path)
        inside = next(iter_slots(plain), None)
        if inside is not None:
            raise UnsavableValue(
                join_path((*path, *inside[0])), "a tensor among the attributes of a state dict."
            )
        return plain

    @staticmethod
    def _dtype(value: torch.dtype, path: tuple[Any, ...]) -> Atom:
        name = str(value).removeprefix("torch.")
        if name not in ITEM_SIZE:
            raise UnsavableValue(
                join_path(path), f"tensors of type {value} are not stored. Store its name as text."
            )
        return Atom("dtype", name)

    def _integer(self, value: int, path: tuple[Any, ...]) -> int:
        if value.bit_length() > MAX_INT_BITS:
            raise UnsavableValue(
                join_path(path), f"an integer of {value.bit_length()} bits; at most {MAX_INT_BITS} fit."
            )
        return value

    def _key(self, key: Any, path: tuple[Any, ...]) -> Any:
        plain = self.convert(key, (*path, "<key>")) if type(key) is not str else key
        self._tuple_keys += isinstance(plain, tuple)
        if self._tuple_keys > MAX_TUPLE_KEYS:
            raise UnsavableValue(
                join_path(path), f"more than {MAX_TUPLE_KEYS:,} dict keys that are tuples. Use text."
            )
        if is_quick_key(plain):
            return plain
        raise UnsavableValue(
            join_path(path),
            f"a dict key of type {type(key).__name__}; "
            "expected text, a number below 2**60 or a tuple of these.",
        )

    def _set(self, value: set[Any] | frozenset[Any], path: tuple[Any, ...]) -> set[Any]:
        listed = [self.convert(item, (*path, "<item>")) for item in value]
        items = set(listed) if all(is_quick_key(item) for item in listed) else set()
        if len(items) != len(value) or any(isinstance(item, tuple) for item in items):
            raise UnsavableValue(
                join_path(path),
                "a set may hold distinct text and numbers below 2**60 only. Store a list instead.",
            )
        return items

    def _numpy(self, value: Any, path: tuple[Any, ...]) -> Any:
        import numpy
        import torch

        if isinstance(value, numpy.generic):
            plain = value.item()
            if isinstance(plain, numpy.generic):
                raise UnsavableValue(
                    join_path(path), f"NumPy scalar of type {value.dtype} has no plain equal."
                )
            return self.convert(plain, path)
        if isinstance(value, numpy.ma.MaskedArray):
            raise UnsavableValue(
                join_path(path), "a masked array would lose its mask. Store its data and its mask."
            )
        try:
            # A copy: torch shares memory only with arrays that are writable, aligned and of the machine's
            # byte order.
            copy = numpy.array(value, dtype=value.dtype.newbyteorder("="), order="C")
            return self._tensor(torch.from_numpy(copy), path)
        except (TypeError, ValueError) as error:
            raise UnsavableValue(join_path(path), f"NumPy array of type {value.dtype}: {error}") from error

    def _tensor(self, value: torch.Tensor, path: tuple[Any, ...]) -> TensorSlot:
        import torch

        problem = _tensor_problem(value)
        if problem:
            raise UnsavableValue(join_path(path), problem)
        plain = value.detach() if value.requires_grad else value
        if type(plain) is not torch.Tensor:
            plain = plain.as_subclass(torch.Tensor)
        # Tied weights and exact aliases are stored once; other overlapping views get bytes of their own.
        distinct = not _address(plain)
        identity = ("distinct", len(self.tensors)) if distinct else _identity(plain)
        index = self._seen.get(identity)
        if index is None:
            index = self._seen[identity] = len(self.tensors)
            self.tensors.append(plain)
        return TensorSlot(index)


def is_device(name: str) -> bool:
    """Whether torch knows a device of this name, wherever the file is read."""
    return _DEVICE.fullmatch(name) is not None


def is_quick_key(key: object, depth: int = 0) -> bool:
    """Whether a value may be a dict key in a file.

    Integers past 2**61 are left out because a file could choose a million of them with one hash; then filling
    the dict takes hours. Tuples have the same weakness, so they are counted instead.
    """
    if isinstance(key, tuple):
        return depth < MAX_DEPTH and all(is_quick_key(item, depth + 1) for item in key)
    if type(key) is int:
        return key.bit_length() <= 60
    return key is None or type(key) in (str, float, bool)


def _tensor_problem(value: torch.Tensor) -> str | None:
    """Why a tensor has no plain row of bytes to store, or None."""
    import torch

    dense = value.layout is torch.strided and not value.is_nested and _is_stored(value.dtype)
    if type(value) is torch.Tensor and dense and _address(value):
        return None  # Nearly all of them: the loop waits for this check.
    if value.layout is not torch.strided:
        return f"a {value.layout} tensor; only dense tensors are stored. Call .to_dense() first."
    name = str(value.dtype).removeprefix("torch.")
    if value.is_quantized:
        return "a quantized tensor. Store .int_repr() with its scale and zero point."
    if name not in ITEM_SIZE:
        return f"a tensor of type {name}, which is not stored. Convert it, or view it as uint8, first."
    if value.device.type == "meta":
        return "a tensor on the meta device holds no data. Materialise the model first."
    if getattr(value, "is_nested", False) or type(value).__name__ == "DTensor":
        kind = type(value).__name__
        return f"a {kind} is spread or ragged. Gather it to plain tensors first (full_tensor(), unbind())."
    if torch.nn.parameter.is_lazy(value):
        return "a lazy parameter has no numbers yet. Run one batch through the model first."
    if value.numel() and not _address(value) and value.device.type in ("cpu", "cuda"):
        return (
            f"a {type(value).__name__} has no memory of its own. Store the plain tensors that it is made of."
        )
    return None


@lru_cache(maxsize=256)
def _is_stored(dtype: torch.dtype) -> bool:
    return str(dtype).removeprefix("torch.") in ITEM_SIZE


def _address(tensor: torch.Tensor) -> int:
    """Where a tensor's numbers lie; 0 where there are none, or on devices that do not tell."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def _identity(plain: torch.Tensor) -> tuple[object, ...]:
    """What two tensors have in common that are the same bytes, read in the same way."""
    bits = (plain.is_conj(), plain.is_neg())
    return (plain.device, plain.dtype, plain.data_ptr(), plain.shape, plain.stride(), *bits)


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """A canonical deep copy of a training state, with its tensors taken out.

    Args:
        state: nested dicts, lists and tuples of tensors and plain values.

    Returns:
        The tree, in which every tensor is a `TensorSlot`, and the tensors (detached, not copied), each stored
        once.

    Raises:
        UnsavableValue: naming the key path of a value that has no place in a checkpoint.
    """
    if not isinstance(state, Mapping):
        raise UnsavableValue(
            "", f"expected a dict of state dicts and plain values, got {type(state).__name__}."
        )
    flattener = _Flattener()
    tree = flattener.convert(dict(state), ())
    wrong = next((key for key in tree if not isinstance(key, str)), None)
    if wrong is not None:
        raise UnsavableValue(join_path((wrong,)), "the keys at the top of a checkpoint are text.")
    if flattener.like_keys:
        _check_names(tree)
    return tree, flattener.tensors


def _check_names(tree: dict[str, Any]) -> None:
    names = Counter(join_path(path) for path, _ in iter_slots(tree))
    for name, count in names.items():
        if count > 1:
            raise UnsavableValue(
                name, "two tensors have this key path as text (the keys 0 and '0', say). Rename one."
            )


def iter_slots(tree: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yield (key path, TensorSlot) for every tensor of a canonical tree, in order."""
    if isinstance(tree, TensorSlot):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from iter_slots(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from iter_slots(value, (*path, index))


def renumber(tree: Any, indices: Mapping[int, int]) -> Any:
    """A canonical tree whose slots have other indices."""
    kind = type(tree)
    if kind is TensorSlot:
        return TensorSlot(indices[tree.index])
    if kind is dict:
        return {key: renumber(value, indices) for key, value in tree.items()}
    if kind is OrderedDict:
        copy = OrderedDict((key, renumber(value, indices)) for key, value in tree.items())
        if hasattr(tree, "_metadata"):
            copy._metadata = tree._metadata  # type: ignore[attr-defined]
        return copy
    if kind is list or kind is tuple:
        return kind(renumber(value, indices) for value in tree)
    return tree


def is_finite_number(value: object) -> bool:
    """Whether a value is a real, finite number (bools are none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
