"""Checkpoint files as an attacker would build them: any records, table and summary, under digests that are
right.
"""

import hashlib
import io
import json
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptcore import container, unpickled
from ckptcore.container import ROOT, Record
from ckptcore.header import (
    FORMAT_VERSION,
    MAGIC,
    SEAL,
    SUMMARY_RECORD,
    TABLE_RECORD,
    TensorEntry,
    canonical_json,
    derive_content,
    model_digest,
    tensor_counts,
    tensor_entries,
)
from ckptcore.pickled import PickleProblem


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Parts:
    """A native file taken apart: records below the root, rows of the tensor table, the summary's JSON."""

    records: list[tuple[str, bytes]]
    tensors: list[list[Any]]
    summary: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> "Parts":
        with zipfile.ZipFile(path) as archive:
            found = {name.removeprefix(f"{ROOT}/"): archive.read(name) for name in archive.namelist()}
        table = json.loads(found.pop(TABLE_RECORD))
        summary = json.loads(found.pop(SUMMARY_RECORD)[: -SEAL.size])
        return cls(list(found.items()), table["tensors"], summary)

    @classmethod
    def around(cls, pickle: bytes, good: "Parts") -> "Parts | None":
        """A file whose every part agrees with this pickle; None if no file can."""
        try:
            tree, specs = unpickled.parse(pickle)
        except PickleProblem:
            return None
        if sorted(specs) != list(range(len(specs))) or sum(spec.nbytes for spec in specs.values()) > 1 << 20:
            return None
        stored = {index: bytes(specs[index].nbytes) for index in sorted(specs)}
        fixed = [(name, data) for name, data in good.records if "/" not in name and name != "data.pkl"]
        rows = tensor_entries(tree, specs, {index: sha256(data) for index, data in stored.items()})
        count, nbytes, parameters = tensor_counts(rows)
        told = {"content": derive_content(tree), "model_digest": model_digest(rows)}
        told["tensors"] = {"count": count, "bytes": nbytes, "parameters": parameters}
        records = [("data.pkl", pickle), *fixed, *((f"data/{index}", data) for index, data in stored.items())]
        tensors = [[e.name, e.dtype, list(e.shape), e.storage, e.digest] for e in rows]
        return cls(records, tensors, {**good.summary, **told})

    def replace(self, name: str, data: bytes) -> None:
        """Give a record other bytes."""
        self.records = [(n, data if n == name else d) for n, d in self.records]

    def record(self, name: str) -> bytes:
        return dict(self.records)[name]

    def refresh(self) -> None:
        """Make the digests in table and summary those of the records."""
        stored = dict(self.records)
        for row in self.tensors:
            if f"data/{row[3]}" in stored:
                row[4] = sha256(stored[f"data/{row[3]}"])
        rows = [TensorEntry(n, d, tuple(s), i, h) for n, d, s, i, h in self.tensors]
        self.summary["model_digest"] = model_digest(rows)

    def table(self) -> bytes:
        rows = [[n, len(d), f"{zlib.crc32(d):08x}", sha256(d)] for n, d in self.records]
        return canonical_json({"tensors": self.tensors, "records": rows})

    def build(
        self, table: bytes | None = None, summary: bytes | None = None, version: int = FORMAT_VERSION
    ) -> bytes:
        """The file's bytes, canonical and sealed; table and summary as given, or as they follow from the
        parts.
        """
        table = self.table() if table is None else table
        records = [Record(f"{ROOT}/{n}", len(d), zlib.crc32(d)) for n, d in self.records]
        data = [d for _, d in self.records]
        end = list(container.place_all(records))[-1].end
        at = container.place(Record(f"{ROOT}/{TABLE_RECORD}", len(table), 0), end).data_at
        if summary is None:
            place = {"at": at, "size": len(table), "sha256": sha256(table)}
            summary = canonical_json(
                {**self.summary, "table": {**place, **self.summary.get("forced_table", {})}}
            )
        for name, content in ((TABLE_RECORD, table), (SUMMARY_RECORD, sealed(summary, version))):
            records.append(Record(f"{ROOT}/{name}", len(content), zlib.crc32(content)))
            data.append(content)
        return pack(records, data)


def sealed(summary: bytes, version: int = FORMAT_VERSION) -> bytes:
    """The summary record around any bytes, its seal right."""
    return summary + SEAL.pack(MAGIC, version, 0, len(summary), hashlib.sha256(summary).digest())


def pack(records: list[Record], data: list[bytes]) -> bytes:
    """A canonical zip of these records."""
    placed = list(container.place_all(records))
    body = b"".join(container.local_header(p) + content for p, content in zip(placed, data, strict=True))
    return body + container.directory(placed)


def torch_zip(
    pickle: bytes, storages: dict[str, bytes] | None = None, root: str = "archive", **extra: bytes
) -> bytes:
    """A file as torch.save writes it, around any pickle."""
    members = {f"{root}/data.pkl": pickle, f"{root}/byteorder": b"little", f"{root}/version": b"3\n"}
    members |= {f"{root}/data/{key}": data for key, data in (storages or {}).items()}
    return zip_of([*members.items(), *extra.items()])


def zip_of(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of members in this order; names may repeat."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as archive:
        warnings.simplefilter("ignore")  # names may repeat
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return out.getvalue()


def text(value: str) -> bytes:
    """The pickle opcode that pushes a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def global_(path: str) -> bytes:
    """The pickle opcode that pushes a global."""
    module, name = path.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    """The pickle opcode that pushes an integer."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes((len(data),)) + data


def tuple_(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(path: str, *arguments: bytes) -> bytes:
    return global_(path) + tuple_(*arguments) + b"R"


def state(**values: bytes) -> bytes:
    """A whole pickle of a dict whose values are given as opcodes."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in values.items()) + b"u."


def storage(key: str, elements: int, kind: str = "torch.FloatStorage", location: str = "cpu") -> bytes:
    """The opcodes of a persistent reference to a storage."""
    return tuple_(text("storage"), global_(kind), text(key), text(location), number(elements)) + b"Q"


def tensor(stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """The opcodes of a tensor in a storage."""
    hooks = call("collections.OrderedDict")
    sizes = (tuple_(*map(number, shape)), tuple_(*map(number, strides)))
    return call("torch._utils._rebuild_tensor_v2", stored, number(offset), *sizes, b"\x89", hooks)


def safetensors_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file around any header, given as JSON value or as bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data
