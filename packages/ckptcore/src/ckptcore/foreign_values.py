"""What a stranger's pickle may name, and what stands for its values while it is followed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ckptcore.dtypes import DTYPE_OF_STORAGE, ITEM_SIZE, is_possible

REBUILD = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
}
CODECS = {"latin1", "latin-1", "ascii", "utf-8"}
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
CALLABLES = {
    *REBUILD, "torch._utils._rebuild_parameter",
    "torch.serialization._get_layout", "torch.Size", "torch.device",
    "collections.OrderedDict", "collections.Counter", "_codecs.encode",
    "builtins.bytearray", "builtins.set", "builtins.complex",
}  # fmt: skip
KINDS: dict[str, tuple[tuple[type, ...], ...]] = {
    "builtins.complex": ((float, float),),
    "torch.device": ((str,), (str, int)),
    "torch.serialization._get_layout": ((str,),),
}
DTYPES = {f"torch.{name}" for name in ITEM_SIZE}
STORAGES = {
    **{f"torch.{name}": dtype for name, dtype in DTYPE_OF_STORAGE.items()},
    **{f"torch.cuda.{name}": dtype for name, dtype in DTYPE_OF_STORAGE.items()},
    "torch.storage.UntypedStorage": "uint8",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A global, by its path."""

    path: str


@dataclass(frozen=True, slots=True)
class Made:
    """Something that a call would make, by kind alone."""

    kind: str


@dataclass(frozen=True, slots=True)
class Store:
    """A storage: the type of its elements and their number."""

    dtype: str
    elements: int


class Tuple(tuple[Any, ...]):
    """A tuple that knows how deep tuples lie in it."""

    depth = 0


class Dict:
    """A dict, of which only the first keys are remembered."""

    __slots__ = ("count", "keys")

    def __init__(self) -> None:
        self.keys: tuple[Any, ...] = ()
        self.count = 0


def lies_within(path: str, arguments: tuple[Any, ...]) -> bool:
    """Whether every element of a tensor lies within its storage."""
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Store) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        return False
    numbers = (offset, *strides)
    if (
        not is_possible(shape)
        or len(shape) != len(strides)
        or any(type(n) is not int or not 0 <= n < 1 << 56 for n in numbers)
    ):
        return False
    if path.endswith("v3") and (not isinstance(arguments[6], Name) or arguments[6].path not in DTYPES):
        return False
    elements = _elements(path, arguments)
    if 0 in shape:
        return bool(offset <= elements)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return bool(offset + last < elements)


def is_expanded(path: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a tensor that lies within its storage has more elements than are stored there.

    Whoever copies it needs memory for all of them, and a file of a kilobyte can ask for any amount.
    """
    return bool(prod(arguments[2]) > _elements(path, arguments))


def _elements(path: str, arguments: tuple[Any, ...]) -> int:
    """How many elements of a tensor's own type fit into its storage."""
    storage: Store = arguments[0]
    if not path.endswith("v3"):
        return storage.elements
    item_size = ITEM_SIZE[arguments[6].path.removeprefix("torch.")]
    return storage.elements * ITEM_SIZE[storage.dtype] // item_size
