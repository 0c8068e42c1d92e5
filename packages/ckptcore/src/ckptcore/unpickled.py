"""``data.pkl`` read back without torch: a parser for the opcodes that `ckptcore.pickled` writes, and for no
others.

Nothing is looked up or called by name: a global is one of a fixed list or the file is refused. What a hostile
file can make this parser build is bounded by `MAX_PICKLE`, `MAX_CONTAINERS` and `MAX_DEPTH`.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any, NamedTuple

from ckptcore.dtypes import DTYPE_OF_STORAGE, ITEM_SIZE, STORAGE_CLASS, contiguous_strides, is_possible, numel
from ckptcore.pickled import MAX_PICKLE, PROTOCOL_2, PickleProblem, TensorSpec
from ckptcore.plain import (
    MAX_DEPTH,
    MAX_TUPLE_KEYS,
    MAX_VALUES,
    Atom,
    TensorSlot,
    is_device,
    is_quick_key,
    iter_slots,
)

MAX_CONTAINERS = 2 * MAX_VALUES
"""Lists, dicts and tuples in one pickle: an empty one takes one byte there and 64 in memory."""

_MAX_MARKS = 2 * MAX_DEPTH


class _Global(NamedTuple):
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Storage(NamedTuple):
    key: int
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
        self._containers = self._tuple_keys = 0
        self.specs: dict[int, TensorSpec] = {}

    def parse(self) -> Any:
        if self.take(2) != PROTOCOL_2:
            raise PickleProblem("it does not begin as a protocol 2 pickle")
        operations = _OPERATIONS
        while (opcode := self.take(1)) != b".":
            operation = operations.get(opcode)
            if operation is None:
                raise PickleProblem(f"opcode {opcode!r} at byte {self._at - 1} is none of ours")
            operation(self)
        if len(self._stack) != 1 or self._marks or self._at != len(self._data):
            raise PickleProblem("it does not end with one value")
        return self._stack[0]

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise PickleProblem("it ends too early")
        return self._data[start : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_container(self, value: Any) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise PickleProblem(f"it holds more than {MAX_CONTAINERS:,} containers")
        self._stack.append(value)

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

    def _top(self) -> Any:
        return self._stack[-1] if self._stack else None

    def short_tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise PickleProblem("values are missing")
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        self.push_container(values)

    def _to_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleProblem("a mark is missing")
        values, self._stack = self._stack, self._marks.pop()
        return values

    def tuple_to_mark(self) -> None:
        values = tuple(self._to_mark())
        self.push_container(values)

    def mark(self) -> None:
        if len(self._marks) > _MAX_MARKS:
            raise PickleProblem(f"nested deeper than {MAX_DEPTH} levels")
        self._marks.append(self._stack)
        self._stack = []

    def global_(self) -> None:
        name = _Global(self._line(), self._line())
        if not _known(name):
            raise PickleProblem(f"it names {name}", [str(name)])
        self._stack.append(name)

    def text(self) -> None:
        size = struct.unpack("<I", self.take(4))[0]
        self._stack.append(self.take(size).decode("utf-8", "surrogatepass"))

    def put(self, index: int) -> None:
        value = self._top()
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
        target = self._top()
        if not isinstance(target, dict) or target or len(items) % 2:
            raise PickleProblem("items for something that is no empty dict")
        for key, value in zip(map(_finished, items[::2]), items[1::2], strict=True):
            self._tuple_keys += type(key) is tuple
            if not is_quick_key(key) or self._tuple_keys > MAX_TUPLE_KEYS:
                raise PickleProblem("a dict key that is no plain value")
            if key in target:
                raise PickleProblem(f"the key {repr(key)[:80]} twice")
            target[key] = _finished(value)

    def append_items(self) -> None:
        items = self._to_mark()
        target = self._top()
        if type(target) is not list or target:
            raise PickleProblem("items for something that is no empty list")
        target.extend(map(_finished, items))

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if type(target) is not OrderedDict or type(state) is not dict or list(state) != ["_metadata"]:
            raise PickleProblem("attributes for something that is no state dict")
        if next(iter_slots(state), None) is not None:
            raise PickleProblem("tensors among the attributes of a state dict")
        target._metadata = state["_metadata"]  # type: ignore[attr-defined]

    def persistent(self) -> None:
        identity = self._pop()
        if (
            type(identity) is not tuple
            or len(identity) != 5
            or identity[0] != "storage"
            or identity[3] != "cpu"
        ):
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
        if function.name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            self._stack.append(self._tensor(arguments, 6 if function.name.endswith("2") else 7))
        else:
            self.push_container(_call(function, arguments))

    def _tensor(self, arguments: tuple[Any, ...], count: int) -> TensorSlot:
        if len(arguments) != count or type(arguments[0]) is not _Storage or type(arguments[2]) is not tuple:
            raise PickleProblem("a tensor that is none of ours")
        storage, offset, shape, strides, needs_grad, hooks = arguments[:6]
        dtype = storage.dtype if count == 6 else _dtype_name(arguments[6])
        legacy = count == 6
        if dtype not in ITEM_SIZE or (dtype in STORAGE_CLASS) != legacy or (storage.dtype is None) == legacy:
            raise PickleProblem("a tensor of unknown type")
        if not is_possible(shape):
            raise PickleProblem("a tensor of impossible shape")
        if (
            type(offset) is not int
            or offset
            or needs_grad is not False
            or type(hooks) is not OrderedDict
            or hooks
        ):
            raise PickleProblem("a tensor that is none of ours")
        spec = TensorSpec(dtype, shape)
        if strides != contiguous_strides(shape) or storage.size != (numel(shape) if legacy else spec.nbytes):
            raise PickleProblem(f"a tensor of shape {shape} that does not fill its storage")
        if self.specs.setdefault(storage.key, spec) != spec:
            raise PickleProblem(f"storage {storage.key} is described in two ways")
        return TensorSlot(storage.key)


def _dtype_name(kind: Any) -> str | None:
    return kind.name if isinstance(kind, _Global) and kind.module == "torch" else None


def _call(function: _Global, arguments: tuple[Any, ...]) -> Any:
    name = function.name
    if name == "OrderedDict" and arguments == ():
        return OrderedDict()
    kinds = tuple(type(argument) for argument in arguments)
    if name == "encode" and kinds == (str, str) and arguments[1] == "latin1":
        return arguments[0].encode("latin-1")
    if name == "complex" and kinds == (float, float):
        return complex(*arguments)
    if name == "set" and kinds == (list,) and all(_is_item(item) for item in arguments[0]):
        return set(arguments[0])
    if name == "device" and kinds == (str,) and is_device(arguments[0]):
        return Atom("device", arguments[0])
    if (
        name == "Size"
        and kinds == (tuple,)
        and all(type(n) is int and -(1 << 63) <= n < 1 << 63 for n in arguments[0])
    ):
        return Atom("size", arguments[0])
    raise PickleProblem(f"a call of {function} that is none of ours", [str(function)])


def _is_item(value: Any) -> bool:
    return not isinstance(value, tuple) and is_quick_key(value)


def _finished(value: Any, depth: int = 0) -> Any:
    """A value as it stays in the tree: a bare global can only be a dtype, and a bare storage is nothing."""
    if type(value) is _Global:
        if value.module == "torch" and value.name in ITEM_SIZE:
            return Atom("dtype", value.name)
        raise PickleProblem(f"{value} as a value", [str(value)])
    if type(value) is _Storage:
        raise PickleProblem("a storage outside a tensor")
    if type(value) is tuple:
        if depth > MAX_DEPTH:
            raise PickleProblem(f"nested deeper than {MAX_DEPTH} levels")
        return tuple(_finished(item, depth + 1) for item in value)
    return value


def _check_depth(value: Any, left: int = MAX_DEPTH) -> None:
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        inside = [*value.values(), *(key for key in value if type(key) is tuple)]
        if hasattr(value, "_metadata"):
            inside.append(value._metadata)
    elif kind is list or kind is tuple:
        inside = value
    else:
        return
    if inside and left <= 0:
        raise PickleProblem(f"nested deeper than {MAX_DEPTH} levels")
    for item in inside:
        _check_depth(item, left - 1)


_OPERATIONS: dict[bytes, Any] = {
    b"}": lambda p: p.push_container({}),
    b"]": lambda p: p.push_container([]),
    b")": lambda p: p.push(()),
    b"N": lambda p: p.push(None),
    b"\x88": lambda p: p.push(True),
    b"\x89": lambda p: p.push(False),
    b"K": lambda p: p.push(p.byte()),
    b"M": lambda p: p.push(int.from_bytes(p.take(2), "little")),
    b"J": lambda p: p.push(int.from_bytes(p.take(4), "little", signed=True)),
    b"\x8a": lambda p: p.push(int.from_bytes(p.take(p.byte()), "little", signed=True)),
    b"G": lambda p: p.push(struct.unpack(">d", p.take(8))[0]),
    b"X": _Parser.text,
    b"(": _Parser.mark,
    b"u": _Parser.set_items,
    b"e": _Parser.append_items,
    b"t": _Parser.tuple_to_mark,
    b"\x85": lambda p: p.short_tuple(1),
    b"\x86": lambda p: p.short_tuple(2),
    b"\x87": lambda p: p.short_tuple(3),
    b"c": _Parser.global_,
    b"R": _Parser.reduce,
    b"b": _Parser.build,
    b"Q": _Parser.persistent,
    b"q": lambda p: p.put(p.byte()),
    b"r": lambda p: p.put(int.from_bytes(p.take(4), "little")),
    b"h": lambda p: p.get(p.byte()),
    b"j": lambda p: p.get(int.from_bytes(p.take(4), "little")),
}


def parse(data: bytes) -> tuple[dict[str, Any], dict[int, TensorSpec]]:
    """The canonical tree of a ``data.pkl``, and what its slots hold.

    Args:
        data: the whole record.

    Returns:
        The tree and, by storage index, dtype and shape of every tensor.

    Raises:
        PickleProblem: the bytes are not a pickle that `ckptcore.pickled.emit` writes.
    """
    if len(data) > MAX_PICKLE:
        raise PickleProblem(f"it has {len(data):,} bytes; at most {MAX_PICKLE:,} are read")
    parser = _Parser(data)
    try:
        tree = parser.parse()
    except (UnicodeError, struct.error) as error:
        raise PickleProblem(f"{type(error).__name__} in it: {error}") from error
    if type(tree) is not dict or any(type(key) is not str for key in tree):
        raise PickleProblem("it holds no dict with text keys")
    _check_depth(tree)
    return tree, parser.specs
