"""The tensor table of a checkpoint: a row for every tensor and every record, each with its SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ckptcore.canonical import canonical_json, too_many_brackets
from ckptcore.dtypes import numel
from ckptcore.errors import UnsavableValue
from ckptcore.pickled import TensorSpec
from ckptcore.plain import iter_slots, join_path

MAX_TABLE = 32 << 20
"""Bytes of a table at most: some 100,000 tensors."""

MODEL_KEYS = ("model_state_dict", "state_dict")
"""Under which of its keys a checkpoint has the model, in the order in which they are looked for."""


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


def model_digest(entries: Sequence[TensorEntry]) -> str | None:
    """SHA-256 over the sorted (name, dtype, shape, digest) of the model's tensors; None where there is no
    model.

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
            "",
            f"the table of {len(tensors):,} tensors takes {len(table):,} bytes; at most {MAX_TABLE:,}. "
            "Store fewer.",
        )
    if too_many_brackets(table):
        raise UnsavableValue("", "the names of its tensors are brackets for the most part. Rename them.")
    return table


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


def tensor_counts(tensors: Sequence[TensorEntry]) -> tuple[int, int, int]:
    """How many tensors a table names, their bytes on disk, and how many elements the model has."""
    model_prefixes = tuple(key + "/" for key in MODEL_KEYS)
    return (
        len(tensors),
        sum({e.storage: e.nbytes for e in tensors}.values()),
        sum(numel(e.shape) for e in tensors if e.name.startswith(model_prefixes)),
    )
