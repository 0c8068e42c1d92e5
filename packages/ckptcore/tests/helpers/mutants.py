"""Damaged and hostile files made by chance.

The mutations know the structure: they change a part (pickle, table, summary, zip directory, JSON header) and
then, more often than not, make the digests around it right again, so that the code behind the digests is
reached.
"""

import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forgery import (
    Parts,
    call,
    global_,
    number,
    pack,
    safetensors_file,
    sealed,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_,
    zip_of,
)
from states import small_state, tiny_state

import ckptcore
from ckptcore.container import ROOT, Record
from ckptcore.header import canonical_json

ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    2**32,
    2**47,
    2**60,
    2**61 - 1,
    2**63,
    2**64,
    10**30,
    0.5,
    1e308,
)
ODD_VALUES = (
    *ODD_NUMBERS,
    None,
    True,
    False,
    "",
    "x",
    "nan",
    "\ud800",
    "data.pkl",
    "../x",
    [],
    {},
    [[]],
    {"a": {}},
    "0" * 5000,
)
OPCODES = b"(.0NQR]}tuesabcqrhjXUKMJGI\x80\x81\x85\x86\x87\x88\x89\x8a\x8f\x90\x93\x94\x95"


class Seeds:
    """Good files of every kind, in memory."""

    def __init__(self, folder: Path) -> None:
        self.small = Parts.of(
            ckptcore.save(folder / "small.pt", small_state(), {"roles": ["best"], "metrics": {"f1": 0.5}})
        )
        self.tiny = Parts.of(ckptcore.save(folder / "tiny.pt", tiny_state()))
        self.native = [(folder / name).read_bytes() for name in ("small.pt", "tiny.pt")]
        self.foreign, self.pickles = [], []
        for new in (True, False):
            state = {
                "epoch": 1,
                "model": torch.nn.Linear(2, 2).state_dict(),
                "note": "x",
                "set": {1, 2},
                "p": torch.nn.Parameter(torch.ones(2)),
            }
            out = io.BytesIO()
            torch.save(state, out, _use_new_zipfile_serialization=new)
            self.foreign.append(out.getvalue())
        with zipfile.ZipFile(io.BytesIO(self.foreign[0])) as archive:
            self.members = [(name, archive.read(name)) for name in archive.namelist()]
        self.header = {"__metadata__": {"format": "pt"}}
        self.header |= {
            name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * i, 24 * i + 24]}
            for i, name in enumerate("ab")
        }  # type: ignore[dict-item]


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, taken out, doubled or exchanged."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        if not changed:
            break
        at, count = chance.randrange(len(changed)), chance.choice((1, 1, 2, 4, 16))
        match chance.randrange(6):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice(OPCODES)
            case 2:
                changed[at : at + count] = chance.randbytes(count)
            case 3:
                del changed[at : at + count]
            case 4:
                other = chance.randrange(len(changed))
                changed[at:at] = changed[other : other + count]
            case 5:
                changed[at : at + 4] = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"))
    return bytes(changed)


def mutated_json(value: Any, chance: random.Random) -> Any:
    """A JSON value in which one place holds something else."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        changed, key = dict(value), chance.choice(list(value))
        match chance.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[chance.choice(("", "x", "epoch", key + "2"))] = value[key]
            case _:
                changed[key] = mutated_json(value[key], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.85:
        listed, at = list(value), chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                del listed[at]
            case 1:
                listed.append(value[at])
            case 2:
                listed.reverse()
            case _:
                listed[at] = mutated_json(value[at], chance)
        return listed
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 7, 8, 64))
    return chance.choice(ODD_VALUES)


def dumped(value: Any, chance: random.Random) -> bytes:
    data = json.dumps(value).encode() if chance.random() < 0.2 else canonical_json(value)
    return mutated_bytes(data, chance) if chance.random() < 0.1 else data


def copy_of(parts: Parts) -> Parts:
    return Parts(
        list(parts.records), json.loads(json.dumps(parts.tensors)), json.loads(json.dumps(parts.summary))
    )


def native_pickle(seeds: Seeds, chance: random.Random) -> bytes:
    parts = copy_of(chance.choice((seeds.small, seeds.tiny)))
    parts.replace("data.pkl", mutated_bytes(parts.record("data.pkl"), chance))
    return parts.build()


def native_table(seeds: Seeds, chance: random.Random) -> bytes:
    parts = copy_of(chance.choice((seeds.small, seeds.tiny)))
    if chance.random() < 0.5:
        parts.tensors = mutated_json(parts.tensors, chance)
        return parts.build(table=dumped({**json.loads(seeds.tiny.table()), "tensors": parts.tensors}, chance))
    return parts.build(table=dumped(mutated_json(json.loads(parts.table()), chance), chance))


def native_summary(seeds: Seeds, chance: random.Random) -> bytes:
    parts = copy_of(seeds.tiny)
    if chance.random() < 0.2:
        parts.summary["forced_table"] = {chance.choice(("at", "size", "sha256")): chance.choice(ODD_VALUES)}
        return parts.build()
    changed = mutated_json(parts.summary, chance)
    if isinstance(changed, dict):
        parts.summary = changed
        return parts.build() if chance.random() < 0.7 else parts.build(summary=dumped(changed, chance))
    return parts.build(summary=dumped(changed, chance))


def native_records(seeds: Seeds, chance: random.Random) -> bytes:
    parts = copy_of(seeds.tiny)
    at = chance.randrange(len(parts.records))
    name, data = parts.records[at]
    match chance.randrange(5):
        case 0:
            parts.records[at] = (name, mutated_bytes(data, chance))
        case 1:
            parts.records[at] = (
                chance.choice(("data.pkl", "data/0", "data/7", "x/../y", "version", "")),
                data,
            )
        case 2:
            del parts.records[at]
        case 3:
            parts.records.insert(at, chance.choice(parts.records))
        case 4:
            chance.shuffle(parts.records)
    if chance.random() < 0.5:
        parts.refresh()
    return parts.build() if parts.records else b""


def native_bytes(seeds: Seeds, chance: random.Random) -> bytes:
    return mutated_bytes(chance.choice(seeds.native), chance)


def native_end(seeds: Seeds, chance: random.Random) -> bytes:
    data = seeds.native[1]
    return data[:-400] + mutated_bytes(data[-400:], chance)


def native_seal(seeds: Seeds, chance: random.Random) -> bytes:
    summary = (
        chance.randbytes(chance.randrange(300))
        if chance.random() < 0.5
        else dumped(chance.choice(ODD_VALUES), random.Random(1))
        if chance.random() < 0.2
        else b"{}"
    )
    content = sealed(summary, chance.choice((1, 1, 2)))
    record = Record(f"{ROOT}/ckptcore/summary.json", len(content), zlib.crc32(content))
    return pack([record], [content])


def foreign_pickle(seeds: Seeds, chance: random.Random) -> bytes:
    members = dict(seeds.members)
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = mutated_bytes(members[name], chance)
    return zip_of(list(members.items()))


def foreign_members(seeds: Seeds, chance: random.Random) -> bytes:
    members = list(seeds.members)
    at = chance.randrange(len(members))
    match chance.randrange(4):
        case 0:
            members[at] = (members[at][0], mutated_bytes(members[at][1], chance))
        case 1:
            members[at] = (
                chance.choice(
                    ("archive/data/0", "x", "../y", "archive/", "archive/constants.pkl", members[at][0] + "x")
                ),
                members[at][1],
            )
        case 2:
            del members[at]
        case 3:
            members.append(chance.choice(members))
    return zip_of(members, chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def foreign_bytes(seeds: Seeds, chance: random.Random) -> bytes:
    return mutated_bytes(chance.choice(seeds.foreign), chance)


def legacy_bytes(seeds: Seeds, chance: random.Random) -> bytes:
    data = seeds.foreign[1]
    return data[:15] + mutated_bytes(data[15:], chance)


def grammar_pickle(chance: random.Random) -> bytes:
    """Opcodes at random, most of them in an order that has a meaning."""
    names = (
        "collections.OrderedDict",
        "torch.Size",
        "builtins.set",
        "_codecs.encode",
        "builtins.bytearray",
        "torch.device",
        "builtins.complex",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.float16",
        "torch.FloatStorage",
        "torch.storage.UntypedStorage",
        "collections.Counter",
        "torch.serialization._get_layout",
        "builtins.eval",
    )

    def value(depth: int) -> bytes:
        if depth > 4:
            return chance.choice((b"N", b"K\x05", text("x"), b"\x88"))
        inner = [value(depth + 1) for _ in range(chance.randrange(4))]
        match chance.randrange(16):
            case 12:
                return call("torch.Size", tuple_(*(number(int(chance.choice(ODD_NUMBERS))) for _ in inner)))
            case 13:
                return call(
                    "torch.device",
                    text(chance.choice(("cpu", "cuda:1", "38", "cuda:128", "npu", "", "cpu:x"))),
                )
            case 14:
                return call("_codecs.encode", text(chance.choice(("x", "é", "\u0130"))), text("latin1"))
            case 15:
                return call("builtins.set", b"](" + b"".join(inner) + b"e")
            case 0:
                return b"](" + b"".join(inner) + b"e"
            case 1:
                return tuple_(*inner)
            case 2:
                return b"}(" + b"".join(inner) + b"u"
            case 3:
                return call(chance.choice(names), *inner)
            case 4:
                return number(int(chance.choice(ODD_NUMBERS)))
            case 5:
                return text(
                    chance.choice(("x", "storage", "latin1", "cpu", "_metadata", "0", "utf-8", "strided"))
                )
            case 6:
                sizes = tuple(chance.choice((0, 1, 2, 4, 2**40)) for _ in range(chance.randrange(4)))
                strides = tuple(chance.choice((0, 1, 2, 4, 2**40)) for _ in range(chance.randrange(4)))
                return tensor(
                    storage(chance.choice("0017"), chance.choice((0, 1, 4, 2**40))),
                    sizes,
                    strides,
                    chance.choice((0, 0, 1, 2**40)),
                )
            case 7:
                return global_(chance.choice(names))
            case 8:
                return b"h" + bytes((chance.randrange(4),))
            case 9:
                return value(depth + 1) + b"q" + bytes((chance.randrange(4),))
            case 10:
                return value(depth + 1) + b"}(" + text("_metadata") + value(depth + 1) + b"ub"
            case _:
                return chance.choice(
                    (
                        b"N",
                        b"\x88",
                        b"G" + chance.randbytes(8),
                        b")",
                        b"]",
                        b"}",
                        bytes((chance.choice(OPCODES),)),
                    )
                )

    marker = text("ckptcore_format") + b"K\x01"
    values = b"".join(text(key) + value(0) for key in ("a", "epoch", "val_metrics")[: chance.randrange(1, 4)])
    return b"\x80\x02}(" + values + marker + b"u."


def grammar_foreign(seeds: Seeds, chance: random.Random) -> bytes:
    data = grammar_pickle(chance).replace(b"ckptcore_format", b"ckptcore_forget")
    return torch_zip(data, {"0": bytes(16), "1": bytes(4)})


def grammar_native(seeds: Seeds, chance: random.Random) -> bytes:
    """A file in which all parts agree about a pickle that nobody would write."""
    parts = None
    for _ in range(30):
        parts = Parts.around(grammar_pickle(chance), seeds.tiny)
        if parts is not None:
            break
    return parts.build() if parts is not None else b""


def consistent_native(seeds: Seeds, chance: random.Random) -> bytes:
    """A file in which all parts agree about a damaged pickle."""
    good = chance.choice((seeds.small, seeds.tiny)).record("data.pkl")
    parts = None
    for _ in range(30):
        parts = Parts.around(mutated_bytes(good, chance), seeds.tiny)
        if parts is not None:
            break
    return parts.build() if parts is not None else b""


def safetensors_json(seeds: Seeds, chance: random.Random) -> bytes:
    changed: Any = seeds.header
    for _ in range(chance.choice((1, 1, 2, 3))):
        changed = mutated_json(changed, chance)
    return safetensors_file(changed, bytes(48), chance.choice((None, None, None, 0, 10, 1 << 40)))


def safetensors_bytes(seeds: Seeds, chance: random.Random) -> bytes:
    return mutated_bytes(safetensors_file(seeds.header, bytes(48)), chance)


def noise(seeds: Seeds, chance: random.Random) -> bytes:
    start = chance.choice(
        (
            b"",
            b"PK\x03\x04",
            b"PK\x05\x06",
            b"\x80\x02",
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
            b"12345678{",
        )
    )
    return start + chance.randbytes(chance.randrange(600))


MUTATORS: list[Callable[[Seeds, random.Random], bytes]] = [
    native_pickle, native_table, native_summary, native_records, native_bytes, native_end, native_seal,
    foreign_pickle, foreign_members, foreign_bytes, legacy_bytes,
    grammar_foreign, grammar_native, consistent_native,
    safetensors_json, safetensors_bytes, noise,
]  # fmt: skip
