"""The tensor types that a checkpoint can hold, by torch's own names, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptcore.errors import UnknownFormat

if TYPE_CHECKING:
    import torch

ITEM_SIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "uint16": 2, "uint32": 4, "uint64": 8,
    "complex64": 8, "complex128": 16,
    "float8_e5m2": 1, "float8_e4m3fn": 1, "float8_e5m2fnuz": 1, "float8_e4m3fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
"""Bytes of one element, for every dtype that is stored."""

STORAGE_CLASS = {
    "float64": "DoubleStorage", "float32": "FloatStorage",
    "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage", "complex128": "ComplexDoubleStorage",
}  # fmt: skip
"""The class by which torch's pickles name a storage; dtypes that are not here are newer and named beside the
storage.
"""

DTYPE_OF_STORAGE = {name: dtype for dtype, name in STORAGE_CLASS.items()}


MAX_DIMENSIONS = 64
"""Dimensions of a tensor at most, as torch has it."""


def torch_dtype(name: str) -> torch.dtype:
    """A stored type as torch's own.

    Raises:
        UnknownFormat: the installed torch is too old to have it.
    """
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise UnknownFormat(
            f"torch {torch.__version__} has no type {name}, which this file needs. Update it."
        )
    return found


def numel(shape: tuple[int, ...]) -> int:
    """The number of elements of a tensor of this shape."""
    product = 1
    for size in shape:
        product *= size
    return product


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements, as torch gives them to a fresh contiguous tensor of this shape."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_possible(shape: tuple[object, ...]) -> bool:
    """Whether torch can make a tensor of this shape at all: sizes and strides stay within 64 bits.

    An empty tensor of shape (0, 2**47, 2**47) takes no memory and makes torch fail all the same.
    """
    product = 1
    for size in shape:
        if type(size) is not int or not 0 <= size < 1 << 48:
            return False
        product *= max(size, 1)
        if product >= 1 << 56:
            return False
    return len(shape) <= MAX_DIMENSIONS
