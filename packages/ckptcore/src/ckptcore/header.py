"""What a checkpoint says of itself at the end of its file: a small summary, and the table of its tensors.

The last record of the zip is the summary: canonical JSON, then a seal of 64 bytes (magic, format version,
length, SHA-256 of the JSON). It is found from the end of the file in one read, without the central directory.
The record before it is the tensor table, which the summary names by its SHA-256; the table names every other
record by its own. So the seal stands for every byte of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ckptcore.dtypes import numel
from ckptcore.errors import UnsavableValue
from ckptcore.pickled import TensorSpec
from ckptcore.plain import MAX_DEPTH, Atom, TensorSlot, iter_slots, join_path

FORMAT_VERSION = 1
MARKER = "ckptcore_format"
MAGIC = b"ckptcore"
SEAL = struct.Struct("<8sIIQ32s8x")
TABLE_RECORD = "ckptcore/tensors.json"
SUMMARY_RECORD = "ckptcore/summary.json"
MAX_SUMMARY = 1 << 20
MAX_TABLE = 32 << 20
_MAX_TEXT = 200
_MAX_SCALARS = 200
MODEL_KEYS = ("model_state_dict", "state_dict")


class TensorEntry(NamedTuple):
    """A row of the tensor table: a tensor's key path, type, shape, storage and SHA-256."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: int
    digest: str

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return TensorSpec(self.dtype, self.shape).nbytes


class RecordEntry(NamedTuple):
    """A row of the record table: a zip member's name (below the root), size, CRC-32 and SHA-256."""

    name: str
    size: int
    crc32: int
    digest: str


def canonical_json(value: object) -> bytes:
    """One spelling for one value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def encode_number(value: float) -> float | int | str:
    """A number as strict JSON has it; NaN and infinities become text."""
    return value if math.isfinite(value) else str(float(value))


def jsonable(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """A canonical tree without tensors as JSON values (tuples become lists, non-finite numbers text).

    Raises:
        UnsavableValue: there is a tensor, or bytes, in it.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return encode_number(value)
    if isinstance(value, dict):
        return {str(key): jsonable(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, set):
        return sorted((jsonable(item, path) for item in value), key=repr)
    if isinstance(value, Atom):
        return list(value.value) if isinstance(value.value, tuple) else value.value
    what = "a tensor" if isinstance(value, TensorSlot) else type(value).__name__
    raise UnsavableValue(
        join_path(("metadata", *path)), f"{what} has no place in the metadata; put it into the state."
    )


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def derive_content(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary says about the state itself; readers derive it again and compare.

    Args:
        tree: the canonical tree of ``data.pkl``.
    """
    scalars = {k: encode_number(v) for k, v in list(tree.items()) if len(k) <= _MAX_TEXT and _is_number(v)}
    metrics = tree.get("val_metrics")
    val_metrics = {}
    if isinstance(metrics, dict):
        val_metrics = {
            str(k): encode_number(v) for k, v in metrics.items() if len(str(k)) <= _MAX_TEXT and _is_number(v)
        }
    texts = {k: v for k, v in tree.items() if type(v) is str and len(v) <= _MAX_TEXT >= len(k)}
    return {
        "scalars": dict(list(scalars.items())[:_MAX_SCALARS]),
        "texts": dict(list(texts.items())[:_MAX_SCALARS]),
        "val_metrics": dict(list(val_metrics.items())[:_MAX_SCALARS]),
        "keys": [key[:_MAX_TEXT] for key in list(tree)[:_MAX_SCALARS]],
    }


def model_digest(entries: Sequence[TensorEntry]) -> str | None:
    """SHA-256 over the sorted (name, dtype, shape, digest) of the model's tensors; None where there is no model.

    Args:
        entries: the tensor table of a checkpoint, or rows whose names begin with one of `MODEL_KEYS`.
    """
    for key in MODEL_KEYS:
        prefix = key + "/"
        rows = sorted(
            [e.name[len(prefix) :], e.dtype, list(e.shape), e.digest]
            for e in entries
            if e.name.startswith(prefix)
        )
        if rows:
            return hashlib.sha256(b"\n".join(map(canonical_json, rows))).hexdigest()
    return None


def tensor_entries(
    tree: Mapping[str, Any], specs: Mapping[int, TensorSpec], digests: Mapping[int, str]
) -> list[TensorEntry]:
    """The tensor table of a tree, in the tree's order."""
    return [
        TensorEntry(
            join_path(path), specs[slot.index].dtype, specs[slot.index].shape, slot.index, digests[slot.index]
        )
        for path, slot in iter_slots(tree)
    ]


def encode_table(tensors: Sequence[TensorEntry], records: Sequence[RecordEntry]) -> bytes:
    """The bytes of the tensor table record.

    Raises:
        UnsavableValue: it is more than readers accept.
    """
    table = canonical_json(
        {
            "tensors": [[e.name, e.dtype, list(e.shape), e.storage, e.digest] for e in tensors],
            "records": [[r.name, r.size, f"{r.crc32:08x}", r.digest] for r in records],
        }
    )
    if len(table) > MAX_TABLE:
        raise UnsavableValue(
            "", f"the table of {len(tensors):,} tensors takes {len(table):,} bytes; at most {MAX_TABLE:,}. Store fewer."
        )
    if too_many_brackets(table):
        raise UnsavableValue("", "the names of its tensors are brackets for the most part. Rename them.")
    return table


def too_many_brackets(data: bytes) -> bool:
    """Whether a large JSON text holds more lists and objects for its length than our tables do.

    An empty list takes 3 bytes there and 64 in memory; a row with its digest has two lists in 80 bytes or more.
    """
    return len(data) > 1 << 20 and data.count(b"[") + data.count(b"{") > len(data) // 8


def decode_table(data: bytes) -> tuple[list[TensorEntry], list[RecordEntry]]:
    """The rows of a tensor table record.

    Raises:
        ValueError: it is not of that form.
    """
    if too_many_brackets(data):
        raise ValueError("the tensor table has more lists than rows")
    try:
        table = json.loads(data)
        tensors = [
            TensorEntry(str(n), str(d), tuple(map(int, s)), int(i), str(h))
            for n, d, s, i, h in table["tensors"]
        ]
        records = [RecordEntry(str(n), int(s), int(c, 16), str(h)) for n, s, c, h in table["records"]]
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the tensor table has another form ({type(error).__name__})") from error
    if any(
        r.size < 0 or r.size >= 1 << 62 or not 0 <= r.crc32 <= 0xFFFFFFFF or not r.name.isascii()
        for r in records
    ):
        raise ValueError("the tensor table has an impossible record")
    return tensors, records


def seal(summary: bytes) -> bytes:
    """The summary record: JSON and its seal."""
    return summary + SEAL.pack(MAGIC, FORMAT_VERSION, 0, len(summary), hashlib.sha256(summary).digest())


@dataclass(frozen=True)
class Header:
    """What is known of a checkpoint without reading its tensors.

    Attributes:
        path: the file.
        format: "ckptcore", or the name of a foreign format.
        format_version: version of the ckptcore format; 0 for foreign files.
        content: what the file's state says (scalars, texts, val_metrics, keys).
        metadata: what its writer said (roles, run_key, metrics, reason, layout, ...).
        model_digest: names the model, whatever file it sits in; None where there is none.
        file_size: bytes.
    """

    path: Path
    format: str
    format_version: int
    content: Mapping[str, Any]
    metadata: Mapping[str, Any]
    model_digest: str | None
    file_size: int
    created: str | None = None
    tensor_count: int = 0
    tensor_bytes: int = 0
    parameters: int = 0
    writer: str | None = None
    table_at: tuple[int, int, str] | None = field(default=None, repr=False)
    sealed: bytes = field(default=b"", repr=False)
    """The whole summary record of a native file."""

    @property
    def epoch(self) -> int | None:
        """``epoch`` as it stands in the file, whatever it counts there."""
        value = self.content.get("scalars", {}).get("epoch")
        return value if isinstance(value, int) else None

    @property
    def epochs_finished(self) -> int | None:
        """How many epochs were finished, in the one meaning that ckptcore has."""
        given = self.metadata.get("epochs_finished")
        if isinstance(given, int):
            return given
        epoch = self.epoch
        if epoch is None or self.metadata.get("epoch_counts") == "finished":
            return epoch
        return None if self.metadata.get("epoch_counts") == "unknown" else epoch + 1

    @property
    def global_step(self) -> int | None:
        """Optimizer steps taken."""
        value = self.content.get("scalars", {}).get("global_step", self.metadata.get("global_step"))
        return value if isinstance(value, int) else None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the writer and of the state by name; where both speak, the writer's count."""
        found: dict[str, Any] = {}
        for key, value in self.content.get("scalars", {}).items():
            if key.startswith(("val_", "train_", "loss", "best_", "test_", "optimal_threshold")):
                found[key] = value
        found.update(self.content.get("val_metrics", {}))
        given = self.metadata.get("metrics")
        found.update(given if isinstance(given, dict) else {})
        return {str(k): float(v) for k, v in found.items() if _floatable(v)}

    @property
    def roles(self) -> tuple[str, ...]:
        """What the file was saved as: best, latest, periodic, stage, final."""
        roles = self.metadata.get("roles")
        return tuple(map(str, roles)) if isinstance(roles, list) else ()

    @property
    def run_key(self) -> str | None:
        """The key of the training run that wrote the file."""
        key = self.metadata.get("run_key")
        return key if isinstance(key, str) else None

    @property
    def reason(self) -> str | None:
        """Why it was saved, where that was no plan: signal, exception, nonfinite."""
        reason = self.metadata.get("reason")
        return reason if isinstance(reason, str) else None


def _floatable(value: object) -> bool:
    if isinstance(value, str):
        return value in ("nan", "inf", "-inf")
    return type(value) is float or (type(value) is int and abs(value) < 1 << 1000)


def summary_bytes(
    content: Mapping[str, Any],
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorEntry],
    table: bytes,
    table_at: int,
    created: str,
    writer: str,
) -> bytes:
    """The JSON of the summary record; ``table_at`` is the byte at which the table's data begins.

    Raises:
        UnsavableValue: the metadata makes it larger than readers accept.
    """
    count, nbytes, parameters = tensor_counts(tensors)
    summary = canonical_json(
        {
            "format": FORMAT_VERSION,
            "created": created,
            "writer": writer,
            "content": content,
            "metadata": metadata,
            "model_digest": model_digest(tensors),
            "tensors": {"count": count, "bytes": nbytes, "parameters": parameters},
            "table": {"at": table_at, "size": len(table), "sha256": hashlib.sha256(table).hexdigest()},
        }
    )
    if len(summary) > MAX_SUMMARY:
        raise UnsavableValue(
            "metadata",
            f"the summary has {len(summary):,} bytes; at most {MAX_SUMMARY:,}. Put it into the state.",
        )
    return summary


def tensor_counts(tensors: Sequence[TensorEntry]) -> tuple[int, int, int]:
    """How many tensors a table names, how many bytes they take on disk, and how many elements the model has."""
    model_prefixes = tuple(key + "/" for key in MODEL_KEYS)
    return (
        len(tensors),
        sum({e.storage: e.nbytes for e in tensors}.values()),
        sum(numel(e.shape) for e in tensors if e.name.startswith(model_prefixes)),
    )


def summary_format(summary: bytes) -> object:
    """The format version that the JSON of a summary names.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        return json.loads(summary)["format"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the summary has another form ({type(error).__name__})") from error


def decode_summary(sealed: bytes, path: Path, file_size: int) -> Header:
    """The header that a summary record describes.

    Args:
        sealed: the record, its JSON already checked against its seal.
        path: the file.
        file_size: bytes of the file.

    Raises:
        ValueError: the JSON is not of this form.
    """
    try:
        found = json.loads(sealed[: -SEAL.size])
        if type(found["format"]) is not int or found["format"] != FORMAT_VERSION:
            raise ValueError(f"format version {found['format']}, this ckptcore reads up to {FORMAT_VERSION}")
        content, metadata, counts, table = (
            found["content"],
            found["metadata"],
            found["tensors"],
            found["table"],
        )
        _check_summary(found)
        size, at = table["size"], table["at"]
        if not 0 <= size <= MAX_TABLE or not 0 <= at <= file_size - size:
            raise ValueError(f"a tensor table of {size} bytes at byte {at}")
        return Header(
            path=path,
            format="ckptcore",
            format_version=FORMAT_VERSION,
            content=content,
            metadata=metadata,
            model_digest=found["model_digest"],
            file_size=file_size,
            created=found["created"],
            tensor_count=counts["count"],
            tensor_bytes=counts["bytes"],
            parameters=counts["parameters"],
            writer=found["writer"],
            table_at=(at, size, table["sha256"]),
            sealed=sealed,
        )
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the summary has another form ({type(error).__name__})") from error


def _check_summary(found: Mapping[str, Any]) -> None:
    content, counts, table = found["content"], found["tensors"], found["table"]
    numbers = (*content["scalars"].values(), *content["val_metrics"].values())
    texts = (*content["texts"].values(), *content["keys"], found["created"], found["writer"], table["sha256"])
    whole = (counts["count"], counts["bytes"], counts["parameters"], table["at"], table["size"])
    right = (
        set(content) == {"scalars", "texts", "val_metrics", "keys"}
        and all(_is_number(n) or n in ("nan", "inf", "-inf") for n in numbers)
        and all(type(text) is str for text in texts)
        and all(type(n) is int for n in whole)
        and type(content["keys"]) is list
        and type(found["metadata"]) is dict
        and type(found["model_digest"]) in (str, type(None))
    )
    if not right or _json_depth(found["metadata"]) > MAX_DEPTH + 1:
        raise TypeError("a part has another type")


def _json_depth(value: Any) -> int:
    """How deep lists and objects lie in each other, counted without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if type(item) in (dict, list)]:
        depth += 1
        level = [inside for item in level for inside in (item.values() if type(item) is dict else item)]
    return depth


def read_exactly(fd: int, size: int, at: int) -> bytes:
    """``size`` bytes at ``at``, or fewer at the end of the file."""
    parts = []
    while size > 0:
        part = os.pread(fd, min(size, 64 << 20), at)
        if not part:
            break
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return b"".join(parts)
