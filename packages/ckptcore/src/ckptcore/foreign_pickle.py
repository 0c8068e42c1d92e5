"""What a stranger's pickle would do, found out before torch reads it: every opcode is followed, nothing is
made.

torch's weights_only unpickler runs no code, and still lets a file of 200 bytes ask for a terabyte
(``bytearray(10**12)``), for hours (colliding keys, ``str.encode`` by slow codecs) or for views past the end
of their storage. Here only what stored data needs passes: tensors that lie within their records, plain values
and their containers. No torch is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from ckptcore.dtypes import ITEM_SIZE, is_possible
from ckptcore.foreign_values import (
    CALLABLES,
    CODECS,
    DTYPES,
    KINDS,
    PYTHON_2,
    REBUILD,
    STORAGES,
    Dict,
    Made,
    Name,
    Store,
    Tuple,
    is_expanded,
    lies_within,
)
from ckptcore.plain import MAX_DEPTH, MAX_TUPLE_KEYS, is_quick_key
from ckptcore.unpickled import MAX_CONTAINERS

MAX_FOREIGN_PICKLE = 32 << 20
"""Bytes of one pickle at most; the numbers of tensors are not in it."""


class PickleRefused(Exception):
    """The pickle asks for more than data; ``names`` holds the classes and functions that it names."""

    def __init__(self, problem: str, names: tuple[str, ...] = ()) -> None:
        self.names = names
        super().__init__(problem)


class Survey:
    """One pickle, followed to its end.

    Attributes:
        end: the byte after it.
        names: what it names that loading data never needs.
        storages: bytes of every storage that its tensors lie in, by key.
    """

    def __init__(self, data: bytes, at: int = 0, records: Mapping[str, int] | None = None) -> None:
        """Follow the pickle that begins at byte ``at``.

        Args:
            data: the bytes it lies in.
            at: where it begins.
            records: bytes of every record that a storage may lie in, by key; None if that is found out later.

        Raises:
            PickleRefused: it is none that torch.save writes of data.
        """
        self.end = at
        self.names: dict[str, None] = {}
        self.storages: dict[str, int] = {}
        self._data, self._records = data, records
        self._limit = min(len(data), at + MAX_FOREIGN_PICKLE)
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._containers = self._tuple_keys = 0
        try:
            self.result = self._follow()
        except (IndexError, UnicodeError, struct.error) as error:
            raise PickleRefused(
                f"its pickle does not hold together ({type(error).__name__})", tuple(self.names)
            ) from error

    def _follow(self) -> Any:
        while (opcode := self._take(1)[0]) != 0x2E:
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise PickleRefused(
                    f"its pickle has the opcode {bytes((opcode,))!r}, which torch.save never writes",
                    tuple(self.names),
                )
            operation(self)
        if self.names:
            raise PickleRefused(f"it names {', '.join(list(self.names)[:5])}", tuple(self.names))
        return self._stack.pop()

    def _take(self, count: int) -> bytes:
        start, self.end = self.end, self.end + count
        if self.end > self._limit:
            raise PickleRefused(
                f"its pickle ends too early, or takes more than {MAX_FOREIGN_PICKLE:,} bytes",
                tuple(self.names),
            )
        return self._data[start : self.end]

    def _line(self) -> str:
        stop = self._data.find(b"\n", self.end, min(self._limit, self.end + 256))
        if stop < 0:
            raise PickleRefused("its pickle has a name without an end", tuple(self.names))
        line = self._data[self.end : stop].decode("utf-8")
        self.end = stop + 1
        return line

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def container(self, value: Any) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise PickleRefused(f"its pickle has more than {MAX_CONTAINERS:,} lists, dicts and tuples")
        self._stack.append(value)

    def number(self, size: int, form: str) -> None:
        self._stack.append(struct.unpack(form, self._take(size))[0])

    def long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._take(1)[0]), "little", signed=True))

    def text(self) -> None:
        size = struct.unpack("<I", self._take(4))[0]
        self._stack.append(self._take(size).decode("utf-8", "surrogatepass"))

    def short_bytes(self) -> None:
        self._stack.append(self._take(self._take(1)[0]).decode("latin-1"))

    def mark(self) -> None:
        if len(self._marks) > 4 * MAX_DEPTH:
            raise PickleRefused(f"its pickle is nested deeper than {MAX_DEPTH} levels")
        self._marks.append(self._stack)
        self._stack = []

    def to_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._marks.pop()
        return values

    def last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError(count)
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def tuple_(self, items: list[Any]) -> None:
        depth = max((item.depth for item in items if isinstance(item, Tuple)), default=0) + 1
        if depth > MAX_DEPTH:
            raise PickleRefused(f"its pickle is nested deeper than {MAX_DEPTH} levels")
        made = Tuple(items)
        made.depth = depth
        self.container(made)

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise IndexError(index)
        self._stack.append(self._memo[index])

    def append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise PickleRefused("its pickle appends to something that is no list", tuple(self.names))
        self._stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, Dict) or len(items) % 2:
            if self.names:  # Items for an object of a class that is refused at the end, by its name.
                return
            raise PickleRefused("its pickle sets items of something that is no dict")
        for key in items[::2]:
            self._check_key(key)
            target.count += 1
            if len(target.keys) < 8:
                target.keys += (key,)

    def _check_key(self, key: Any) -> None:
        self._tuple_keys += isinstance(key, tuple)
        if self._tuple_keys > MAX_TUPLE_KEYS or not is_quick_key(key):
            raise PickleRefused("its pickle has dict keys that are neither text nor small numbers")

    def global_(self) -> None:
        module, name = self._line(), self._line()
        path = f"{PYTHON_2.get(module, module)}.{name}"
        if path not in CALLABLES and path not in DTYPES and path not in STORAGES:
            self.names[path] = None
        self._stack.append(Name(path))

    def persistent(self) -> None:
        identity = self._stack.pop()
        if (
            not isinstance(identity, Tuple)
            or len(identity) not in (5, 6)
            or identity[0] != "storage"
            or identity[5:] not in ((), (None,))
        ):
            raise PickleRefused("its pickle refers to something that is no storage", tuple(self.names))
        kind, key, _, elements = identity[1:5]
        dtype = STORAGES.get(kind.path) if isinstance(kind, Name) else None
        if (
            dtype is None
            or not isinstance(key, str)
            or type(elements) is not int
            or not 0 <= elements < 1 << 56
        ):
            raise PickleRefused("its pickle refers to an impossible storage", tuple(self.names))
        nbytes = elements * ITEM_SIZE[dtype]
        if self._records is not None and self._records.get(key) != nbytes:
            has = self._records.get(key)
            raise PickleRefused(
                f"its storage {key[:40]!r} should have {nbytes:,} bytes; its record has {has}"
            )
        if self.storages.setdefault(key, nbytes) != nbytes:
            raise PickleRefused(f"its storage {key[:40]!r} has two sizes")
        self._stack.append(Store(dtype, elements))

    def reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, Tuple):
            raise PickleRefused("its pickle calls something that is no function", tuple(self.names))
        if function.path in CALLABLES:
            if not _may_call(self, function.path, arguments):
                raise PickleRefused(
                    f"it calls {function.path} with arguments that stored data never has", (function.path,)
                )
        else:
            self.names[function.path] = None
        made = (
            Dict()
            if function.path in ("collections.OrderedDict", "collections.Counter")
            else Made(function.path)
        )
        self.container(made)

    def new_object(self) -> None:
        _, kind = self._stack.pop(), self._stack.pop()
        self.names[kind.path if isinstance(kind, Name) else "an unnamed class"] = None
        self._stack.append(Made("object"))

    def build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        plain = (
            isinstance(target, Dict)
            and isinstance(state, Dict)
            and state.count == 1
            and state.keys == ("_metadata",)
        )
        if not plain and not self.names:
            raise PickleRefused("its pickle sets attributes of something that is no state dict")


def _may_call(survey: Survey, path: str, arguments: tuple[Any, ...]) -> bool:
    if path in REBUILD:
        if len(arguments) not in (REBUILD[path], REBUILD[path] + 1) or not lies_within(path, arguments):
            return False
        if is_expanded(path, arguments):
            raise PickleRefused(
                f"a tensor of shape {tuple(arguments[2])} has more elements than are stored for it (an "
                "expanded view). Save it again where it was made, with .contiguous() or .clone()",
                tuple(survey.names),
            )
        return True
    if path == "torch._utils._rebuild_parameter":
        return len(arguments) == 3 and isinstance(arguments[0], Made) and arguments[0].kind in REBUILD
    if path == "collections.OrderedDict":
        return arguments == () or (len(arguments) == 1 and _are_pairs(survey, arguments[0]))
    if path == "collections.Counter":
        return tuple(map(type, arguments)) in ((), (Dict,))
    if path == "builtins.set":
        if len(arguments) != 1 or type(arguments[0]) is not list:
            return False
        for item in arguments[0]:
            survey._check_key(item)
        return True
    kinds = tuple(map(type, arguments))
    if path == "_codecs.encode":
        return kinds == (str, str) and str(arguments[1]) in CODECS
    if path == "builtins.bytearray":
        text = kinds == (str, str) and str(arguments[1]) in CODECS
        return text or tuple(arguments) in ((), (Made("_codecs.encode"),))
    if path == "torch.Size":
        return kinds == (Tuple,) and is_possible(arguments[0])
    return any(kinds == allowed for allowed in KINDS[path])


def _are_pairs(survey: Survey, pairs: Any) -> bool:
    """Whether these are the items of an OrderedDict as Python 2 wrote them."""
    if type(pairs) is not list or any(
        not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs
    ):
        return False
    for key, _ in pairs:
        survey._check_key(key)
    return True


_OPERATIONS: dict[int, Callable[[Survey], Any]] = {
    ord(opcode): operation
    for opcode, operation in {
        "\x80": lambda s: s._take(1),
        "}": lambda s: s.container(Dict()),
        "]": lambda s: s.container([]),
        ")": lambda s: s.push(Tuple()),
        "\x8f": lambda s: s.container(Made("set")),
        "N": lambda s: s.push(None),
        "\x88": lambda s: s.push(True),
        "\x89": lambda s: s.push(False),
        "K": lambda s: s.number(1, "<B"),
        "M": lambda s: s.number(2, "<H"),
        "J": lambda s: s.number(4, "<i"),
        "G": lambda s: s.number(8, ">d"),
        "\x8a": Survey.long,
        "X": Survey.text,
        "U": Survey.short_bytes,
        "(": Survey.mark,
        "t": lambda s: s.tuple_(s.to_mark()),
        "\x85": lambda s: s.tuple_(s.last(1)),
        "\x86": lambda s: s.tuple_(s.last(2)),
        "\x87": lambda s: s.tuple_(s.last(3)),
        "a": lambda s: s.append(s.last(1)),
        "e": lambda s: s.append(s.to_mark()),
        "s": lambda s: s.set_items(s.last(2)),
        "u": lambda s: s.set_items(s.to_mark()),
        "c": Survey.global_,
        "R": Survey.reduce,
        "\x81": Survey.new_object,
        "b": Survey.build,
        "Q": Survey.persistent,
        "q": lambda s: s.put(s._take(1)[0]),
        "r": lambda s: s.put(struct.unpack("<I", s._take(4))[0]),
        "h": lambda s: s.get(s._take(1)[0]),
        "j": lambda s: s.get(struct.unpack("<I", s._take(4))[0]),
    }.items()
}
"""The opcodes that torch's restricted unpickler knows, and no others."""


def survey_legacy(data: bytes) -> list[Survey]:
    """The five pickles at the start of a file of torch's format from before 1.6, whose storages follow them.

    Raises:
        PickleRefused: they ask for more than data, or for more of it than the file has.
    """
    found: list[Survey] = []
    at = 0
    for _ in range(5):
        found.append(Survey(data, at))
        at = found[-1].end
    # Each storage follows its length, in eight bytes.
    wanted = sum(8 + nbytes for one in found for nbytes in one.storages.values())
    if wanted > len(data) - at:
        raise PickleRefused(
            f"its storages should have {wanted:,} bytes; {len(data) - at:,} are left in the file"
        )
    return found
