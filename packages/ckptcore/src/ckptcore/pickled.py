"""``data.pkl``: a canonical tree as the pickle that ``torch.load(weights_only=True)`` opens, and back.

Both sides know only the opcodes below, so that what this parser reads is what torch reads. Nothing is looked
up or called
by name: a global is one of a fixed list or the file is refused. No torch is needed to parse.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ckptcore.dtypes import DTYPE_OF_STORAGE, ITEM_SIZE, STORAGE_CLASS, contiguous_strides, numel
from ckptcore.plain import MAX_DEPTH, Atom, TensorSlot

PROTOCOL_2 = b"\x80\x02"

MAX_PICKLE = 16 << 20
"""Bytes of ``data.pkl`` at most: a real one has some hundred kilobytes, and what a parser builds is a multiple of it."""

MAX_DIMENSIONS = 64


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
            self.list(value)
        elif kind is tuple:
            self.tuple(value)
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
        self.tuple(arguments)
        self.out += b"R"

    def items(self, value: Mapping[Any, Any]) -> None:
        if value:
            self.out += b"("
            for key, item in value.items():
                self.emit(key)
                self.emit(item)
            self.out += b"u"

    def list(self, value: list[Any]) -> None:
        self.out += b"]"
        if value:
            self.out += b"("
            for item in value:
                self.emit(item)
            self.out += b"e"

    def tuple(self, value: tuple[Any, ...]) -> None:
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
        self.tuple(spec.shape)
        self.tuple(contiguous_strides(spec.shape))
        self.out += b"\x89"
        self.global_("collections", "OrderedDict")
        self.out += b")R"
        if not legacy:
            self.global_("torch", spec.dtype)
        self.out += b"tR"


def emit(tree: Mapping[str, Any], specs: Sequence[TensorSpec]) -> bytes:
    """The pickle of a canonical tree whose slots are described by ``specs``; storage keys are the slots' indices."""
    emitter = _Emitter(specs)
    emitter.emit(tree)
    emitter.out += b"."
    return bytes(emitter.out)


class _Global(NamedTuple):
    module: str
    name: str


class _Storage(NamedTuple):
    index: int
    dtype: str | None
    size: int


_CALLABLES = {
    _Global("collections", "OrderedDict"), _Global("_codecs", "encode"), _Global("builtins", "complex"),
    _Global("builtins", "set"), _Global("torch", "Size"), _Global("torch", "device"),
    _Global("torch._utils", "_rebuild_tensor_v2"), _Global("torch._utils", "_rebuild_tensor_v3"),
    _Global("torch.storage", "UntypedStorage"),
}  # fmt: skip


def _known(name: _Global) -> bool:
    if name.module == "torch":
        return name in _CALLABLES or name.name in ITEM_SIZE or name.name in DTYPE_OF_STORAGE
    return name in _CALLABLES


class _Parser:
    """A stack machine for exactly the opcodes that the emitter writes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: list[Any] = []
        self.specs: dict[int, TensorSpec] = {}

    def parse(self) -> Any:
        if self._take(2) != PROTOCOL_2:
            raise PickleProblem("it does not begin as a protocol 2 pickle")
        operations = _OPERATIONS
        while True:
            opcode = self._take(1)
            if opcode == b".":
                break
            operation = operations.get(opcode)
            if operation is None:
                raise PickleProblem(f"opcode {opcode!r} at byte {self._at - 1} is none of ours")
            operation(self)
        if len(self._stack) != 1 or self._marks or self._at != len(self._data):
            raise PickleProblem("it does not end with one value")
        return self._stack[0]

    def _take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise PickleProblem("it ends too early")
        return self._data[start : self._at]

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + 256)
        if end < 0:
            raise PickleProblem("a global without an end")
        line = self._data[self._at : end].decode("ascii", "replace")
        self._at = end + 1
        return line

    def _pop(self) -> Any:
        if not self._stack:
            raise PickleProblem("a value is missing")
        return self._stack.pop()

    def _pop_many(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) < count:
            raise PickleProblem("values are missing")
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        return values

    def _to_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleProblem("a mark is missing")
        values, self._stack = self._stack, self._marks.pop()
        return values

    def tuple_to_mark(self) -> None:
        values = tuple(self._to_mark())
        self._stack.append(values)

    def mark(self) -> None:
        if len(self._marks) > 4 * MAX_DEPTH:
            raise PickleProblem(f"nested deeper than {MAX_DEPTH} levels")
        self._marks.append(self._stack)
        self._stack = []

    def global_(self) -> None:
        name = _Global(self._line(), self._line())
        if not _known(name):
            raise PickleProblem(f"it names {name.module}.{name.name}", [f"{name.module}.{name.name}"])
        self._stack.append(name)

    def text(self) -> None:
        size = struct.unpack("<I", self._take(4))[0]
        self._stack.append(self._take(size).decode("utf-8", "surrogatepass"))

    def put(self, index: int) -> None:
        value = self._stack[-1] if self._stack else None
        # Only what cannot change is ever memoised: shared mutable containers would read differently
        # elsewhere.
        if index != len(self._memo) or not isinstance(value, (str, _Global)):
            raise PickleProblem("a memo entry that is none of ours")
        self._memo.append(value)

    def get(self, index: int) -> None:
        if index >= len(self._memo):
            raise PickleProblem("a memo entry that is not there")
        self._stack.append(self._memo[index])

    def set_items(self) -> None:
        items = self._to_mark()
        target = self._stack[-1] if self._stack else None
        if type(target) not in (dict, OrderedDict) or target or len(items) % 2:
            raise PickleProblem("items for something that is no empty dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not _is_key(key):
                raise PickleProblem("a dict key that is no plain value")
            if key in target:
                raise PickleProblem(f"the key {key!r} twice")
            target[key] = _value(value)

    def append_items(self) -> None:
        items = self._to_mark()
        target = self._stack[-1] if self._stack else None
        if type(target) is not list or target:
            raise PickleProblem("items for something that is no empty list")
        target.extend(map(_value, items))

    def build(self) -> None:
        state, target = self._pop(), self._stack[-1] if self._stack else None
        if type(target) is not OrderedDict or type(state) is not dict or list(state) != ["_metadata"]:
            raise PickleProblem("attributes for something that is no state dict")
        target._metadata = state["_metadata"]  # type: ignore[attr-defined]

    def persistent(self) -> None:
        identity = self._pop()
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage" or identity[3] != "cpu":
            raise PickleProblem("a persistent id that names no storage")
        kind, key, size = identity[1], identity[2], identity[4]
        if not isinstance(kind, _Global) or type(key) is not str or type(size) is not int:
            raise PickleProblem("a persistent id that names no storage")
        if not (key.isascii() and key.isdigit() and len(key) < 10 and str(int(key)) == key):
            raise PickleProblem(f"a storage key {key[:40]!r} that is no index")
        if kind == ("torch.storage", "UntypedStorage"):
            self._stack.append(_Storage(int(key), None, size))
        elif kind.module == "torch" and kind.name in DTYPE_OF_STORAGE:
            self._stack.append(_Storage(int(key), DTYPE_OF_STORAGE[kind.name], size))
        else:
            raise PickleProblem(f"a storage of class {kind.name}")

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise PickleProblem("a call that is none of ours")
        self._stack.append(self._call(function, arguments))

    def _call(self, function: _Global, arguments: tuple[Any, ...]) -> Any:
        name = function.name
        if name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return self._tensor(arguments, 6 if name.endswith("2") else 7)
        if name == "OrderedDict" and arguments == ():
            return OrderedDict()
        kinds = tuple(type(argument) for argument in arguments)
        if name == "encode" and kinds == (str, str) and arguments[1] == "latin1":
            return arguments[0].encode("latin-1")
        if name == "complex" and kinds == (float, float):
            return complex(*arguments)
        if name == "set" and kinds == (list,) and all(_is_key(item) for item in arguments[0]):
            return set(arguments[0])
        if name == "device" and kinds == (str,):
            return Atom("device", arguments[0])
        if name == "Size" and kinds == (tuple,) and all(type(n) is int for n in arguments[0]):
            return Atom("size", arguments[0])
        raise PickleProblem(f"a call of {function.module}.{name} that is none of ours", [f"{function.module}.{name}"])

    def _tensor(self, arguments: tuple[Any, ...], count: int) -> TensorSlot:
        if len(arguments) != count or type(arguments[0]) is not _Storage or type(arguments[2]) is not tuple:
            raise PickleProblem("a tensor that is none of ours")
        storage, offset, shape, strides, needs_grad, hooks = arguments[:6]
        dtype = storage.dtype
        if count == 7:
            kind = arguments[6]
            dtype = kind.name if isinstance(kind, _Global) and kind.module == "torch" else None
        if dtype not in ITEM_SIZE or (dtype in STORAGE_CLASS) != (count == 6) or (count == 6) != (storage.dtype is not None):
            raise PickleProblem("a tensor of unknown type")
        if len(shape) > MAX_DIMENSIONS or any(type(size) is not int or not 0 <= size < 1 << 48 for size in shape):
            raise PickleProblem("a tensor of impossible shape")
        if offset != 0 or needs_grad is not False or hooks:
            raise PickleProblem("a tensor that is none of ours")
        spec = TensorSpec(dtype, shape)
        if strides != contiguous_strides(shape) or storage.size != (numel(shape) if count == 6 else spec.nbytes):
            raise PickleProblem(f"a tensor of shape {shape} that does not fill its storage")
        if self.specs.setdefault(storage.index, spec) != spec:
            raise PickleProblem(f"storage {storage.index} is described in two ways")
        return TensorSlot(storage.index)


def _is_key(value: Any) -> bool:
    if type(value) is tuple and not isinstance(value, (_Global, _Storage)):
        return all(_is_key(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)


def _value(value: Any) -> Any:
    """A finished value: a bare global can only be a dtype, and a bare storage is nothing."""
    if type(value) is _Global:
        if value.module == "torch" and value.name in ITEM_SIZE:
            return Atom("dtype", value.name)
        raise PickleProblem(f"{value.module}.{value.name} as a value", [f"{value.module}.{value.name}"])
    if type(value) is _Storage:
        raise PickleProblem("a storage outside a tensor")
    if type(value) is tuple:
        return tuple(map(_value, value))
    return value


_OPERATIONS: dict[bytes, Any] = {
    b"}": lambda p: p._stack.append({}),
    b"]": lambda p: p._stack.append([]),
    b")": lambda p: p._stack.append(()),
    b"N": lambda p: p._stack.append(None),
    b"\x88": lambda p: p._stack.append(True),
    b"\x89": lambda p: p._stack.append(False),
    b"K": lambda p: p._stack.append(p._take(1)[0]),
    b"M": lambda p: p._stack.append(int.from_bytes(p._take(2), "little")),
    b"J": lambda p: p._stack.append(int.from_bytes(p._take(4), "little", signed=True)),
    b"\x8a": lambda p: p._stack.append(int.from_bytes(p._take(p._take(1)[0]), "little", signed=True)),
    b"G": lambda p: p._stack.append(struct.unpack(">d", p._take(8))[0]),
    b"X": _Parser.text,
    b"(": _Parser.mark,
    b"u": _Parser.set_items,
    b"e": _Parser.append_items,
    b"t": _Parser.tuple_to_mark,
    b"\x85": lambda p: p._stack.append(p._pop_many(1)),
    b"\x86": lambda p: p._stack.append(p._pop_many(2)),
    b"\x87": lambda p: p._stack.append(p._pop_many(3)),
    b"c": _Parser.global_,
    b"R": _Parser.reduce,
    b"b": _Parser.build,
    b"Q": _Parser.persistent,
    b"q": lambda p: p.put(p._take(1)[0]),
    b"r": lambda p: p.put(int.from_bytes(p._take(4), "little")),
    b"h": lambda p: p.get(p._take(1)[0]),
    b"j": lambda p: p.get(int.from_bytes(p._take(4), "little")),
}


def parse(data: bytes) -> tuple[dict[str, Any], dict[int, TensorSpec]]:
    """The canonical tree of a ``data.pkl``, and what its slots hold.

    Args:
        data: the whole record.

    Returns:
        The tree and, by storage index, dtype and shape of every tensor.

    Raises:
        PickleProblem: the bytes are not a pickle that `emit` writes.
    """
    if len(data) > MAX_PICKLE:
        raise PickleProblem(f"it has {len(data):,} bytes; at most {MAX_PICKLE:,} are read")
    parser = _Parser(data)
    try:
        tree = parser.parse()
    except (UnicodeError, RecursionError, OverflowError, struct.error) as error:
        raise PickleProblem(f"{type(error).__name__} in it: {error}") from error
    if type(tree) is not dict or any(type(key) is not str for key in tree):
        raise PickleProblem("it holds no dict with text keys")
    return tree, parser.specs
