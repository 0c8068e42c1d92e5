"""``data.pkl``: a canonical tree as the pickle that ``torch.load(weights_only=True)`` opens.

Only few opcodes are written, each in one way; `ckptcore.unpickled` reads these and no others, so that what it
reads is what torch reads. No torch is needed for either.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ckptcore.dtypes import ITEM_SIZE, STORAGE_CLASS, contiguous_strides, numel
from ckptcore.plain import Atom, TensorSlot

PROTOCOL_2 = b"\x80\x02"

MAX_PICKLE = 16 << 20
"""Bytes of ``data.pkl`` at most: a real one has some hundred kilobytes, and what a parser builds is a
multiple of it.
"""


class TensorSpec(NamedTuple):
    """A stored tensor as its pickle describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its row-major data."""
        return numel(self.shape) * ITEM_SIZE[self.dtype]


class PickleProblem(ValueError):
    """The pickle is not one that this package writes; ``names`` holds the globals it asked for."""

    def __init__(self, problem: str, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        super().__init__(problem)


class _Emitter:
    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.out = bytearray(PROTOCOL_2)
        self._specs = specs
        self._memo: dict[tuple[str, str], int] = {}

    def emit(self, value: Any) -> None:
        kind = type(value)
        if kind is str:
            self.text(value)
        elif kind is dict:
            self.out += b"}"
            self.items(value)
        elif kind is TensorSlot:
            self.tensor(value)
        elif value is None:
            self.out += b"N"
        elif kind is bool:
            self.out += b"\x88" if value else b"\x89"
        elif kind is int:
            self.integer(value)
        elif kind is float:
            self.out += b"G" + struct.pack(">d", value)
        elif kind is list:
            self.list_(value)
        elif kind is tuple:
            self.tuple_(value)
        else:
            self.rare(value)

    def rare(self, value: Any) -> None:
        if isinstance(value, OrderedDict):
            self.global_("collections", "OrderedDict")
            self.out += b")R"
            self.items(value)
            metadata = getattr(value, "_metadata", None)
            if metadata is not None:
                self.emit({"_metadata": metadata})
                self.out += b"b"
        elif isinstance(value, Atom):
            self.atom(value)
        elif isinstance(value, bytes):
            self.call("_codecs", "encode", (value.decode("latin-1"), "latin1"))
        elif isinstance(value, complex):
            self.call("builtins", "complex", (value.real, value.imag))
        elif isinstance(value, set):
            self.call("builtins", "set", (sorted(value, key=repr),))
        else:
            raise TypeError(f"{type(value)} in a canonical tree")

    def atom(self, value: Atom) -> None:
        if value.kind == "dtype":
            self.global_("torch", str(value.value))
        else:
            self.call("torch", {"size": "Size", "device": "device"}[value.kind], (value.value,))

    def call(self, module: str, name: str, arguments: tuple[Any, ...]) -> None:
        self.global_(module, name)
        self.tuple_(arguments)
        self.out += b"R"

    def items(self, value: Mapping[Any, Any]) -> None:
        if value:
            self.out += b"("
            for key, item in value.items():
                self.emit(key)
                self.emit(item)
            self.out += b"u"

    def list_(self, value: list[Any]) -> None:
        self.out += b"]"
        if value:
            self.out += b"("
            for item in value:
                self.emit(item)
            self.out += b"e"

    def tuple_(self, value: tuple[Any, ...]) -> None:
        if not value:
            self.out += b")"
            return
        short = len(value) <= 3
        if not short:
            self.out += b"("
        for item in value:
            self.emit(item)
        self.out += (b"\x85", b"\x86", b"\x87")[len(value) - 1] if short else b"t"

    def integer(self, value: int) -> None:
        if 0 <= value < 0x100:
            self.out += b"K" + value.to_bytes(1, "little")
        elif 0 <= value < 0x10000:
            self.out += b"M" + value.to_bytes(2, "little")
        elif -0x80000000 <= value < 0x80000000:
            self.out += b"J" + struct.pack("<i", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a" + len(data).to_bytes(1, "little") + data

    def text(self, value: str) -> None:
        if not self._recall(("", value)):
            data = value.encode("utf-8", "surrogatepass")
            self.out += b"X" + struct.pack("<I", len(data)) + data
            self._remember(("", value))

    def global_(self, module: str, name: str) -> None:
        if not self._recall((module, name)):
            self.out += f"c{module}\n{name}\n".encode("ascii")
            self._remember((module, name))

    def _recall(self, key: tuple[str, str]) -> bool:
        index = self._memo.get(key)
        if index is None:
            return False
        self.out += b"h" + bytes((index,)) if index < 0x100 else b"j" + struct.pack("<I", index)
        return True

    def _remember(self, key: tuple[str, str]) -> None:
        index = self._memo[key] = len(self._memo)
        self.out += b"q" + bytes((index,)) if index < 0x100 else b"r" + struct.pack("<I", index)

    def tensor(self, slot: TensorSlot) -> None:
        spec = self._specs[slot.index]
        legacy = STORAGE_CLASS.get(spec.dtype)
        self.global_("torch._utils", "_rebuild_tensor_v2" if legacy else "_rebuild_tensor_v3")
        self.out += b"(("
        self.text("storage")
        self.global_("torch" if legacy else "torch.storage", legacy or "UntypedStorage")
        self.text(str(slot.index))
        self.text("cpu")
        self.integer(numel(spec.shape) if legacy else spec.nbytes)
        self.out += b"tQK\x00"
        self.tuple_(spec.shape)
        self.tuple_(contiguous_strides(spec.shape))
        self.out += b"\x89"
        self.global_("collections", "OrderedDict")
        self.out += b")R"
        if not legacy:
            self.global_("torch", spec.dtype)
        self.out += b"tR"


def emit(tree: Mapping[str, Any], specs: Sequence[TensorSpec]) -> bytes:
    """The pickle of a canonical tree whose slots are described by ``specs``; storage keys are the slots'
    indices.
    """
    emitter = _Emitter(specs)
    emitter.emit(tree)
    emitter.out += b"."
    return bytes(emitter.out)
