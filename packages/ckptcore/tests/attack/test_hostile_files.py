"""Files that somebody built to harm whoever opens them: refused by name, without running, eating memory or
hanging.
"""

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgery import (
    Parts,
    call,
    global_,
    number,
    pack,
    safetensors_file,
    state,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_,
    zip_of,
)
from judging import Verdict, judge
from states import tiny_state

import ckptcore
from ckptcore.container import Record
from ckptcore.header import MAX_SUMMARY, MAX_TABLE
from ckptcore.pickled import MAX_PICKLE

MEMORY = 400 << 20
"""What opening a file may take above an idle process, with four times the size of the file on top."""

SECONDS = 30
SHELL = text("touch executed")
TOUCH = b"](" + text("touch") + text("executed") + b"e"
PYTHON = text("open('executed', 'w')")
COLLIDING = [number(((1 << 61) - 1) * i) for i in range(1, 100_000)]
"""Integers with one hash: a dict of them takes a time that grows with the square of their number."""

FOUR = np.arange(4, dtype=np.float32).tobytes()

FILES: dict[str, Callable[[Path], bytes]] = {}


def listed(items: Iterable[bytes]) -> bytes:
    """The opcodes of a list."""
    return b"](" + b"".join(items) + b"e"


def hostile(name: str) -> Callable[[Callable[[Path], bytes]], Callable[[Path], bytes]]:
    """Register a builder of one hostile file; it is given the path of a good checkpoint."""

    def register(build: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
        FILES[name] = build
        return build

    return register


def add(name: str, data: Callable[[Path], bytes]) -> None:
    FILES[name] = data


# --- code in pickles
# -----------------------------------------------------------------------------------------

PAYLOADS = {
    "os.system": call("os.system", SHELL),
    "posix.system": call("posix.system", SHELL),
    "eval": call("builtins.eval", PYTHON),
    "exec": call("builtins.exec", PYTHON),
    "python 2 eval": call("__builtin__.eval", PYTHON),
    "subprocess.Popen": call("subprocess.Popen", TOUCH),
    "subprocess.check_output": call("subprocess.check_output", TOUCH),
    "getattr": call("builtins.getattr", global_("builtins.int"), text("__class__")),
    "import": call("builtins.__import__", text("os")),
    "torch.load": call("torch.load", text("/dev/zero")),
    "new object": global_("subprocess.Popen") + tuple_(TOUCH) + b"\x81",
    "instance opcode": b"(" + SHELL + b"ios\nsystem\n",
    "object opcode": b"(" + global_("os.system") + SHELL + b"o",
    "stack global": b"\x8c\x02os\x8c\x06system\x93" + tuple_(SHELL) + b"R",
    "setstate": global_("torch.nn.modules.linear.Linear") + b")\x81}(" + text("a") + b"Nub",
    "rebuild from type": call(
        "torch._tensor._rebuild_from_type_v2",
        global_("builtins.eval"),
        global_("torch.Tensor"),
        tuple_(PYTHON),
        b"}",
    ),
    "rebuild with state": call(
        "torch._utils._rebuild_parameter_with_state",
        tensor(storage("0", 4), (4,), (1,)),
        b"\x89",
        call("collections.OrderedDict"),
        b"}",
    ),
    "eval of a reduce": call("builtins.eval", call("builtins.compile", PYTHON, text("x"), text("exec"))),
}


def legacy(payload: bytes) -> bytes:
    """torch's format before 1.6 around a pickle."""
    magic, version = 0x1950A86A20F9469CFC6C, 1001
    sizes = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return b"".join(pickle.dumps(part, 2) for part in (magic, version, sizes)) + payload + pickle.dumps([], 2)


def tar(payload: bytes) -> bytes:
    """torch's format before 0.1.10 around a pickle."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (
            ("storages", pickle.dumps(0, 2)),
            ("tensors", pickle.dumps(0, 2)),
            ("pickle", payload),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def native_with_pickle(good: Path, data: bytes) -> bytes:
    parts = Parts.of(good)
    parts.replace("data.pkl", data)
    return parts.build()


for _name, _opcodes in PAYLOADS.items():
    _payload = state(epoch=b"K\x01", value=_opcodes)
    add(f"{_name} in a torch zip", lambda _, p=_payload: torch_zip(p, {"0": FOUR}))
    add(f"{_name} in a native file", lambda good, p=_payload: native_with_pickle(good, p))
    add(f"{_name} in the legacy format", lambda _, p=_payload: legacy(p))
for _name in ("os.system", "eval", "subprocess.Popen"):
    _payload = state(value=PAYLOADS[_name])
    add(f"{_name} in the tar format", lambda _, p=_payload: tar(p))
    add(f"{_name} in a bare pickle", lambda _, p=_payload: p)
    add(f"{_name} in a bare protocol 4 pickle", lambda _, p=_payload: b"\x80\x04" + p[2:])
add(
    "os.system in the first of the legacy pickles",
    lambda _: legacy(state())[:14] + state(a=PAYLOADS["os.system"]) + b"N.",
)
add(
    "a second pickle behind the first",
    lambda _: torch_zip(state(epoch=b"K\x01") + state(a=PAYLOADS["os.system"])),
)


# --- zips that two readers read differently
# ------------------------------------------------------------------

GOOD, EVIL = state(epoch=b"K\x01"), state(epoch=b"K\x02")


@hostile("data.pkl twice in a torch zip")
def _(good: Path) -> bytes:
    return zip_of([("archive/data.pkl", GOOD), ("archive/data.pkl", EVIL), ("archive/version", b"3\n")])


@hostile("data.pkl once more in capitals")
def _(good: Path) -> bytes:
    return zip_of([("archive/DATA.PKL", EVIL), ("archive/data.pkl", GOOD), ("archive/version", b"3\n")])


@hostile("twenty thousand records of one name")
def _(good: Path) -> bytes:
    return zip_of([("archive/data.pkl", GOOD), *[("archive/x", b"")] * 20_000])


@hostile("two roots with a data.pkl each")
def _(good: Path) -> bytes:
    return zip_of([("a/data.pkl", GOOD), ("b/data.pkl", EVIL), ("a/version", b"3\n")])


@hostile("data.pkl twice in a native file")
def _(good: Path) -> bytes:
    parts = Parts.of(good)
    parts.records.append(("data.pkl", EVIL))
    return parts.build()


@hostile("data.pkl twice in a native file that lists it once")
def _(good: Path) -> bytes:
    parts = Parts.of(good)
    table = parts.table()
    parts.records.insert(0, ("data.pkl", EVIL))
    return parts.build(table=table)


@hostile("a record that the native table does not list")
def _(good: Path) -> bytes:
    parts = Parts.of(good)
    table = parts.table()
    parts.records.append(("data/99", b"hidden"))
    return parts.build(table=table)


@hostile("a record that the native table lists and the state does not name")
def _(good: Path) -> bytes:
    parts = Parts.of(good)
    parts.records.append((f"data/{len(parts.records) - 5}", b"hidden"))
    return parts.build()


@hostile("a record missing that the state names")
def _(good: Path) -> bytes:
    parts = Parts.of(good)
    parts.records.pop()
    return parts.build()


@hostile("a directory that lists two records in one place")
def _(good: Path) -> bytes:
    data = bytearray(torch_zip(GOOD, {"0": FOUR, "1": FOUR}))
    first, second = data.index(b"PK\x01\x02"), data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return bytes(data)


@hostile("records that overlap")
def _(good: Path) -> bytes:
    inner = zip_of([("archive/data/0", FOUR)])[: 30 + len("archive/data/0") + 16]
    data = bytearray(torch_zip(GOOD, {"1": inner, "0": FOUR}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 42 : at + 46] = struct.pack("<I", data.index(inner))
    return bytes(data)


@hostile("a record between the records that the directory does not list")
def _(good: Path) -> bytes:
    data = torch_zip(GOOD, {"0": FOUR, "1": FOUR * 100})
    first = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x01\x02"))
    second = data.rindex(b"PK\x01\x02")
    directory = data.index(b"PK\x01\x02")
    end = bytearray(data[-22:])
    end[8:12] = struct.pack("<HH", 4, 4)
    end[12:16] = struct.pack("<I", len(data) - 22 - directory - (second - first))
    return data[:first] + data[second:-22] + bytes(end)


@hostile("bytes before the first record")
def _(good: Path) -> bytes:
    return b"PK\x03\x04" + bytes(4000) + torch_zip(GOOD)


@hostile("a second zip in the comment of the first")
def _(good: Path) -> bytes:
    data = bytearray(torch_zip(GOOD))
    comment = torch_zip(EVIL)
    data[-2:] = struct.pack("<H", len(comment))
    return bytes(data) + comment


@hostile("a record called otherwise in its own header")
def _(good: Path) -> bytes:
    return torch_zip(GOOD, {"0": FOUR}).replace(b"archive/data/0", b"archive/data/1", 1)


@hostile("a native zip directory in another order")
def _(good: Path) -> bytes:
    parts = Parts.of(good)
    parts.records[1], parts.records[2] = parts.records[2], parts.records[1]
    return parts.build()


@hostile("a native file under another root")
def _(good: Path) -> bytes:
    parts = Parts.of(good)
    records = [Record(f"other/{name}", len(data), zlib.crc32(data)) for name, data in parts.records]
    return pack(records, [data for _, data in parts.records])


@hostile("a native file with a record before its first")
def _(good: Path) -> bytes:
    whole = good.read_bytes()
    return zip_of([("archive/data.pkl", EVIL)])[: 30 + 16 + len(EVIL)] + whole


for _trick in (
    "../../executed",
    "/executed",
    "archive/../../executed",
    "archive\\..\\executed",
    "archive/a\nb",
):
    add(
        f"the name {_trick!r} in a torch zip",
        lambda _, t=_trick: zip_of([("archive/data.pkl", GOOD), ("archive/version", b"3\n"), (t, b"x")]),
    )
add(
    "a name that ends at a zero byte for some readers",
    lambda _: torch_zip(GOOD, **{"archive/aXb": b"x"}).replace(b"aXb", b"a\0b"),
)
add("a root that leads out", lambda _: torch_zip(GOOD, root=".."))
for _trick in ("../data.pkl", "/etc/passwd", "..\\x", "../version"):
    add(
        f"the storage {_trick!r} in a torch zip",
        lambda _, t=_trick: torch_zip(state(a=tensor(storage(t, 4), (4,), (1,))), {"0": FOUR}),
    )
    add(
        f"the storage {_trick!r} in a native file",
        lambda good, t=_trick: native_with_pickle(good, state(a=tensor(storage(t, 4), (4,), (1,)))),
    )


# --- programs
# ------------------------------------------------------------------------------------------------

add("constants.pkl in a torch zip", lambda _: torch_zip(GOOD, **{"archive/constants.pkl": b"\x80\x02)."}))
add("code in a torch zip", lambda _: torch_zip(GOOD, **{"archive/code/__torch__.py": b"import os"}))
add("constants.pkl in a native file", lambda good: _with_record(good, "constants.pkl", b"\x80\x02)."))


def _with_record(good: Path, name: str, data: bytes) -> bytes:
    parts = Parts.of(good)
    parts.records.insert(1, (name, data))
    return parts.build()


@hostile("a TorchScript program")
def _(good: Path) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what people have on their disks
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), out)
    return out.getvalue()


# --- sizes
# ---------------------------------------------------------------------------------------------------


@hostile("a deflated data.pkl of a hundred megabytes")
def _(good: Path) -> bytes:
    return zip_of([("archive/data.pkl", bytes(100 << 20)), ("archive/version", b"3\n")], zipfile.ZIP_DEFLATED)


@hostile("a deflated summary")
def _(good: Path) -> bytes:
    with zipfile.ZipFile(good) as archive:
        return zip_of([(name, archive.read(name)) for name in archive.namelist()], zipfile.ZIP_DEFLATED)


@hostile("a record that claims a terabyte")
def _(good: Path) -> bytes:
    data = bytearray(torch_zip(GOOD, {"0": FOUR}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    return bytes(data)


@hostile("an end record that claims four billion records")
def _(good: Path) -> bytes:
    data = torch_zip(GOOD)
    start = data.index(b"PK\x01\x02")
    end64 = struct.pack(
        "<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 1 << 32, 1 << 32, len(data) - 22 - start, start
    )
    locator = struct.pack("<IIQI", 0x07064B50, 0, len(data) - 22, 1)
    return (
        data[:-22]
        + end64
        + locator
        + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    )


def with_summary(good: Path, summary: bytes) -> bytes:
    return Parts.of(good).build(summary=summary)


def with_table(good: Path, table: bytes) -> bytes:
    return Parts.of(good).build(table=table)


add(
    "a summary of a hundred megabytes",
    lambda good: with_summary(good, b'{"a":"' + b"x" * (100 << 20) + b'"}'),
)
add("a summary nested a hundred thousand deep", lambda good: with_summary(good, b"[" * 100_000))
add(
    "a summary of a megabyte of empty lists",
    lambda good: with_summary(good, b"[" + b"[]," * (MAX_SUMMARY // 3 - 2) + b"[]]"),
)
add("a summary that is no object", lambda good: with_summary(good, b"[]"))
add("a summary that is no JSON", lambda good: with_summary(good, b"\xff\xfe"))
add("a summary without anything", lambda good: with_summary(good, b""))
add(
    "metadata nested five hundred deep",
    lambda good: _summary(good, metadata=json.loads('{"a":' * 500 + "1" + "}" * 500)),
)
add("a table of a hundred megabytes", lambda good: with_table(good, b'{"a":"' + b"x" * (100 << 20) + b'"}'))
add("a table nested a million deep", lambda good: with_table(good, b"[" * 1_000_000))
add(
    "a table of as many empty lists as it may have",
    lambda good: with_table(good, b"[" + b"[]," * (MAX_TABLE // 3 - 2) + b"[]]"),
)
add(
    "a table of as many empty rows as it may have",
    lambda good: with_table(good, b'{"tensors":[' + b"[]," * (MAX_TABLE // 3 - 20) + b'[]],"records":[]}'),
)
add(
    "a table of as many numbers as it may have",
    lambda good: with_table(good, b'{"tensors":[' + b"0.5," * (MAX_TABLE // 4 - 20) + b'1],"records":[]}'),
)
add("a table that lies beyond the file", lambda good: _forced_table(good, at=1 << 50))
add("a table of negative size", lambda good: _forced_table(good, size=-1))
add("a table at a place that is no number", lambda good: _forced_table(good, at="1" * 5000))
add("a table in the place of the pickle", lambda good: _forced_table(good, at=64))
add(
    "a native pickle larger than is read",
    lambda good: native_with_pickle(good, b"\x80\x02" + b"N" * MAX_PICKLE),
)
add(
    "a native pickle of empty lists",
    lambda good: native_with_pickle(good, b"\x80\x02" + b"]" * 3_000_000 + b"."),
)
add(
    "a native pickle of nested tuples",
    lambda good: native_with_pickle(good, state(a=b"N" + b"\x85" * 300_000)),
)
add("a native pickle of marks", lambda good: native_with_pickle(good, b"\x80\x02" + b"(" * 10_000_000 + b"."))
add("a native pickle of colliding keys", lambda good: native_with_pickle(good, _colliding()))
add("a native tensor of a shape beyond 64 bits", lambda good: native_with_pickle(good, _endless_shape()))
add(
    "a native storage of a terabyte",
    lambda good: native_with_pickle(good, state(a=tensor(storage("0", 1 << 40), (1 << 40,), (1,)))),
)


def _forced_table(good: Path, **forced: Any) -> bytes:
    parts = Parts.of(good)
    parts.summary["forced_table"] = forced
    return parts.build()


def _summary(good: Path, **changed: Any) -> bytes:
    parts = Parts.of(good)
    parts.summary |= changed
    return parts.build()


def _colliding() -> bytes:
    return state(a=b"}(" + b"".join(key + b"N" for key in COLLIDING) + b"u")


def _endless_shape() -> bytes:
    return state(a=tensor(storage("0", 0), (0, 1 << 47, 1 << 47), (1 << 47, 1 << 47, 1)))


# --- what torch's restricted unpickler would do
# ----------------------------------------------------------------

ASKING = {
    "a terabyte of bytes": call("builtins.bytearray", number(1 << 40)),
    "six gigabytes of bytes": call("builtins.bytearray", number(6 << 30)),
    "an untyped storage of a terabyte": call("torch.storage.UntypedStorage", number(1 << 40)),
    "an untyped storage of six gigabytes": call("torch.storage.UntypedStorage", number(6 << 30)),
    "a float storage of a terabyte": call("torch.FloatStorage", number(1 << 38)),
    "a float tensor of a terabyte": call("torch.FloatTensor", number(1 << 38)),
    "a tensor of six gigabytes": call("torch.Tensor", number(3 << 29)),
    "a size of huge numbers": call("torch.Size", tuple_(number(1 << 62), number(1 << 62))),
    "a meta tensor": call(
        "torch._utils._rebuild_meta_tensor_no_storage",
        global_("torch.float32"),
        tuple_(number(1 << 40)),
        tuple_(b"K\x01"),
        b"\x89",
    ),
    "a wrapper class": call(
        "torch._utils._rebuild_wrapper_subclass", global_("torch.Tensor"), global_("torch.float32")
    ),
    "a sparse tensor with indices outside": call(
        "torch._utils._rebuild_sparse_tensor", global_("torch.sparse_coo"), tuple_()
    ),
    "a slow codec": call("_codecs.encode", text("a" * 1_000_000 + "\u0130"), text("idna")),
    "a codec that packs": call("_codecs.encode", text("a"), text("zip")),
    "a storage larger than its record": tensor(storage("0", 1 << 28), (1 << 28,), (1,)),
    "a storage of a terabyte": tensor(storage("0", 1 << 38), (1 << 38,), (1,)),
    "a storage without a record": tensor(storage("7", 4), (4,), (1,)),
    "a storage of negative size": tensor(storage("0", -4), (4,), (1,)),
    "a shape larger than its storage": tensor(storage("0", 4), (1 << 33,), (1,)),
    "a stride that leads out of its storage": tensor(storage("0", 4), (2, 2), (1 << 20, 1)),
    "a negative stride": tensor(storage("0", 4), (4,), (-1,), offset=3),
    "an offset behind its storage": tensor(storage("0", 4), (1,), (1,), offset=4),
    "a shape beyond 64 bits": tensor(storage("0", 4), (0, 1 << 47, 1 << 47), (1, 1, 1)),
    "a tensor of seventy dimensions": tensor(storage("0", 4), (1,) * 70, (1,) * 70),
    "a dict of colliding keys": b"}(" + b"".join(key + b"N" for key in COLLIDING) + b"u",
    "a set of colliding numbers": call("builtins.set", listed(COLLIDING)),
    "pairs of colliding keys": call(
        "collections.OrderedDict", listed(tuple_(key, b"N") for key in COLLIDING)
    ),
    "twenty thousand keys that are tuples": b"}("
    + b"".join(tuple_(number(i)) + b"N" for i in range(20_000))
    + b"u",
    "a counter of a list": call("collections.Counter", b"]"),
    "a state dict whose items is a number": call("collections.OrderedDict")
    + b"}("
    + text("items")
    + b"K\x05ub",
    "attributes of a tensor": tensor(storage("0", 4), (4,), (1,)) + b"}(" + text("data") + b"Nub",
    "tuples nested three million deep": b"N" + b"\x85" * 3_000_000,
    "marks ten million deep": b"(" * 10_000_000,
    "three million lists": b"]" * 3_000_000,
    "three million dicts": b"}" * 3_000_000,
    "a text of four gigabytes": b"X\xff\xff\xff\xff",
    "a memo entry that is not there": b"h\x77",
    "items of a text": text("x") + b"(NNu",
    "a module": tuple_(text("module"), global_("os.system"), text("x"), text("y")) + b"Q",
}
for _name, _opcodes in ASKING.items():
    _payload = state(a=_opcodes)
    add(f"{_name}, asked for by a torch zip", lambda _, p=_payload: torch_zip(p, {"0": FOUR}))
for _name in (
    "a terabyte of bytes",
    "a storage of a terabyte",
    "a storage larger than its record",
    "a shape larger than its storage",
    "a slow codec",
):
    _payload = state(a=ASKING[_name])
    add(f"{_name}, asked for by the legacy format", lambda _, p=_payload: legacy(p))
add("a pickle larger than is read, in a torch zip", lambda _: torch_zip(b"\x80\x02" + b"N" * (33 << 20)))


# --- headers that lie
# ----------------------------------------------------------------------------------------


def lie(name: str) -> Callable[[Callable[[Parts], None]], Callable[[Parts], None]]:
    def register(change: Callable[[Parts], None]) -> Callable[[Parts], None]:
        def build(good: Path) -> bytes:
            parts = Parts.of(good)
            change(parts)
            return parts.build()

        FILES[f"a header that lies about {name}"] = build
        return change

    return register


@lie("the epoch")
def _(parts: Parts) -> None:
    parts.summary["content"]["scalars"]["epoch"] += 1


@lie("the type of the epoch")
def _(parts: Parts) -> None:
    parts.summary["content"]["scalars"]["epoch"] = 2.0


@lie("a metric")
def _(parts: Parts) -> None:
    parts.summary["content"]["scalars"]["val_auc"] = 0.99


@lie("a text")
def _(parts: Parts) -> None:
    parts.summary["content"]["texts"]["note"] = "other"


@lie("the keys")
def _(parts: Parts) -> None:
    parts.summary["content"]["keys"].append("more")


@lie("the model digest")
def _(parts: Parts) -> None:
    parts.summary["model_digest"] = "00" * 32


@lie("the number of parameters")
def _(parts: Parts) -> None:
    parts.summary["tensors"]["parameters"] += 1


@lie("the number of tensors")
def _(parts: Parts) -> None:
    parts.summary["tensors"]["count"] += 1


@lie("a tensor's name")
def _(parts: Parts) -> None:
    parts.tensors[0][0] = "model_state_dict/v"
    parts.refresh()


@lie("a tensor's shape")
def _(parts: Parts) -> None:
    parts.tensors[0][2] = [2, 2]
    parts.refresh()


@lie("a tensor's type")
def _(parts: Parts) -> None:
    parts.tensors[0][1] = "float16"
    parts.refresh()


@lie("a tensor's digest")
def _(parts: Parts) -> None:
    parts.tensors[0][4] = "00" * 32


@lie("the place of tensors")
def _(parts: Parts) -> None:
    parts.tensors[0][3], parts.tensors[1][3] = parts.tensors[1][3], parts.tensors[0][3]
    parts.refresh()


@lie("the order of tensors")
def _(parts: Parts) -> None:
    parts.tensors.reverse()


@lie("a tensor that is not there")
def _(parts: Parts) -> None:
    parts.tensors.append(["ghost", "int8", [0], 9, "00" * 32])


@lie("a tensor that it leaves out")
def _(parts: Parts) -> None:
    parts.tensors.pop()
    parts.summary["tensors"] |= {"count": 1, "bytes": 8}


@lie("the marker")
def _(parts: Parts) -> None:
    parts.replace("data.pkl", parts.record("data.pkl").replace(b"ckptcore_format", b"ckptcore_forget"))
    parts.summary["content"]["keys"][-1] = "ckptcore_forget"
    parts.summary["content"]["scalars"]["ckptcore_forget"] = parts.summary["content"]["scalars"].pop(
        "ckptcore_format"
    )


@lie("the byte order")
def _(parts: Parts) -> None:
    parts.replace("byteorder", b"big")


@lie("the version of torch's format")
def _(parts: Parts) -> None:
    parts.replace("version", b"2\n")


@lie("a digest's spelling")
def _(parts: Parts) -> None:
    parts.tensors[0][4] = parts.tensors[0][4].upper()


for _name, _changed in {
    "content that is a list": {"content": []},
    "content without keys": {"content": {"scalars": {}, "texts": {}, "val_metrics": {}}},
    "scalars that are texts": {
        "content": {"scalars": {"epoch": "2"}, "texts": {}, "val_metrics": {}, "keys": []}
    },
    "metadata that is a list": {"metadata": [1]},
    "a model digest that is an object": {"model_digest": {}},
    "counts that are texts": {"tensors": {"count": "1", "bytes": 1, "parameters": 1}},
    "counts that are missing": {"tensors": {}},
    "a time that is a number": {"created": 5},
    "a format that is a text": {"format": "1"},
}.items():
    add(f"a summary with {_name}", lambda good, c=_changed: _summary(good, **c))


# --- safetensors
# ---------------------------------------------------------------------------------------------


def entry(shape: Any, offsets: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


BYTE = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
SAFETENSORS = {
    "a header of a terabyte": safetensors_file({"a": entry([2], [0, 8])}, bytes(8), 1 << 40),
    "a header of all 64 bits": safetensors_file({"a": entry([2], [0, 8])}, bytes(8), (1 << 64) - 1),
    "a header of forty megabytes": safetensors_file(b'{"a":"' + b"x" * (40 << 20) + b'"}'),
    "a header of empty objects": safetensors_file(b'{"a":[' + b"{}," * 11_000_000 + b"{}]}"),
    "a header nested a million deep": safetensors_file(b'{"a":' * 1_000_000),
    "overlapping ranges": safetensors_file({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, bytes(12)),
    "the same range twice": safetensors_file({"a": entry([2], [0, 8]), "b": entry([2], [0, 8])}, bytes(8)),
    "a hole": safetensors_file({"a": entry([2], [0, 8]), "b": entry([2], [16, 24])}, bytes(24)),
    "a tensor of a terabyte": safetensors_file({"a": entry([1 << 38], [0, 1 << 40])}, bytes(8)),
    "a shape whose product overflows": safetensors_file({"a": entry([1 << 33, 1 << 33], [0, 8])}, bytes(8)),
    "an empty tensor whose strides overflow": safetensors_file({"a": entry([0, 1 << 47, 1 << 47], [0, 0])}),
    "the same name twice": safetensors_file(b'{"a":%b,"a":%b}' % (BYTE, BYTE), b"x"),
    "the marker of a native file": safetensors_file({"ckptcore_format": entry([2], [0, 8])}, bytes(8)),
}  # fmt: skip
for _name, _data in SAFETENSORS.items():
    add(f"safetensors with {_name}", lambda _, d=_data: d)


# --- the tests
# -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """What came of every hostile file, opened one after another in one process."""
    folder = tmp_path_factory.mktemp("hostile")
    good = ckptcore.save(folder / "good.pt", tiny_state(), {"roles": ["latest"]})
    files = {}
    for index, (name, build) in enumerate(FILES.items()):
        files[name] = folder / f"{index}.pt"
        files[name].write_bytes(build(good))
    playground = folder / "playground"
    playground.mkdir()
    found = judge(files, playground)
    for path in files.values():
        path.unlink()
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_by_our_own_error_and_runs_nothing(
    verdicts: dict[str, Verdict], name: str
) -> None:
    verdict = verdicts[name]
    assert not verdict.executed
    assert verdict.errors["load"] is not None, f"it was loaded: {verdict.mapping}"
    assert verdict.errors["verify"] is not None, "verify calls it whole"
    assert verdict.errors["import"] is not None and verdict.left == [], "it was imported"
    alien = {
        reader: error for reader, error in verdict.errors.items() if error and error[0].startswith("NOT OURS")
    }
    assert alien == {}
    assert verdict.bytes < MEMORY + 4 * verdict.size
    assert verdict.seconds < SECONDS


def test_the_file_that_all_forgeries_start_from_is_itself_in_order(tmp_path: Path) -> None:
    """Else they would be refused for a fault of the forger's."""
    good = ckptcore.save(tmp_path / "good.pt", tiny_state(), {"roles": ["latest"]})
    rebuilt = tmp_path / "rebuilt.pt"
    rebuilt.write_bytes(Parts.of(good).build())
    assert rebuilt.read_bytes() == good.read_bytes()
    harmless = tmp_path / "harmless.pt"
    harmless.write_bytes(torch_zip(state(epoch=b"K\x01", a=tensor(storage("0", 4), (4,), (1,))), {"0": FOUR}))
    assert ckptcore.load(harmless)["a"].tolist() == [0, 1, 2, 3]
    assert torch.load(harmless)["epoch"] == 1
    old = tmp_path / "old.pt"
    old.write_bytes(legacy(state(epoch=b"K\x01")))
    assert ckptcore.load(old)["epoch"] == 1


def test_a_refused_class_is_named(verdicts: dict[str, Verdict]) -> None:
    for name in ("os.system", "eval", "subprocess.Popen"):
        for place in ("a torch zip", "the legacy format", "a native file"):
            kind, message = verdicts[f"{name} in {place}"].errors["load"] or ("", "")
            assert kind in ("RefusedContent", "DamagedCheckpoint")
            assert name in message
