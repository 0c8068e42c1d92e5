"""Writing a checkpoint file: canonical tree and tensors in, one durable, digested file out."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore import container, durable, pickled
from ckptcore.container import ROOT, Record
from ckptcore.dtypes import ITEM_SIZE
from ckptcore.errors import UnsavableValue, UsageError
from ckptcore.hashing import Crew, buffer_digests, cores
from ckptcore.header import (
    FORMAT_VERSION,
    MARKER,
    SUMMARY_RECORD,
    TABLE_RECORD,
    RecordEntry,
    derive_content,
    encode_table,
    jsonable,
    model_digest,
    seal,
    summary_bytes,
    tensor_entries,
)
from ckptcore.package import own_version
from ckptcore.pickled import MAX_PICKLE, TensorSpec
from ckptcore.plain import flatten, iter_slots, renumber
from ckptcore.reader import DATA_PICKLE, FIXED_RECORDS
from ckptcore.stream import Stream

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Encoded:
    """A state ready to be written: everything but the digests of its tensors is computed.

    Attributes:
        tree: the canonical tree.
        tensors: contiguous CPU tensors by storage index.
        metadata: plain JSON values.
    """

    tree: dict[str, Any]
    tensors: list[torch.Tensor]
    metadata: dict[str, Any]
    created: str

    @property
    def nbytes(self) -> int:
        """About what the file will take: tensors, and a margin for pickle, table and directory."""
        return sum(t.numel() * t.element_size() for t in self.tensors) + 600 * len(self.tensors) + (1 << 16)

    def compacted(self) -> Encoded:
        """The same with only the tensors that its tree still names, numbered anew."""
        used = list(dict.fromkeys(slot.index for _, slot in iter_slots(self.tree)))
        renumbered = {index: position for position, index in enumerate(used)}
        return replace(
            self, tree=renumber(self.tree, renumbered), tensors=[self.tensors[index] for index in used]
        )


def encode(state: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Encoded:
    """Check a state and take it apart; tensors stay where they are.

    Raises:
        UnsavableValue: naming the key path of what cannot be stored.
    """
    if sys.byteorder != "little":
        raise UsageError("checkpoints are written on little-endian machines only; this one is big-endian.")
    tree, tensors = flatten(state)
    tree[MARKER] = FORMAT_VERSION
    plain, none = flatten(metadata or {})
    if none:
        raise UnsavableValue("metadata", "a tensor has no place in the metadata; put it into the state.")
    return Encoded(tree, tensors, jsonable(plain), datetime.now(UTC).isoformat())


def save(
    path: str | os.PathLike[str], state: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> Path:
    """Save a training state as one durable, digested file that plain ``torch.load(path)`` opens.

    Args:
        path: the file; whatever has that name is replaced, whole, at the end.
        state: a dict of state dicts and plain values. NumPy scalars, paths, enums and dates become plain
            values.
        metadata: what the header shall say beyond the state (JSON values).

    Returns:
        The path.

    Raises:
        UnsavableValue: naming the key path of what cannot be stored; nothing was written.
        UsageError: the file is there and read-only.
        DiskFull: it does not fit; whatever was there is untouched.
    """
    target = Path(path)
    if target.is_file() and not target.is_symlink() and not target.stat().st_mode & 0o222:
        raise UsageError(
            f"{target} is read-only, as promoted versions are, and is not replaced. "
            "Save under another name, or make it writable first (chmod u+w)."
        )
    encoded = encode(state, metadata)
    if not target.parent.is_dir():
        durable.make_folder(target.parent)
    with durable.staged(target, encoded.nbytes) as (fd, temporary):
        write(fd, encoded)
    durable.publish(temporary, [target])
    return target


def write(fd: int, encoded: Encoded) -> str | None:
    """Write a checkpoint to an empty file; returns the model digest.

    Args:
        fd: the file, open for writing, at its start.
        encoded: what `encode` made.

    Raises:
        UnsavableValue: it is more than readers accept, or of a type that is not stored.
    """
    tensors = [contiguous(t) for t in encoded.tensors]
    specs = [_spec(t) for t in tensors]
    pickle = pickled.emit(encoded.tree, specs)
    if len(pickle) > MAX_PICKLE:
        raise UnsavableValue("", f"the plain values take {len(pickle):,} bytes; store long lists as tensors.")
    views = [bytes_of(tensor, spec) for tensor, spec in zip(tensors, specs, strict=True)]
    with Stream(fd, encoded.nbytes) as stream, Crew(views, buffer_digests, helpers=cores()) as hashing:
        records = _Records(stream)
        for name, data in ((DATA_PICKLE, pickle), *FIXED_RECORDS.items()):
            records.add(name, memoryview(data), *buffer_digests(memoryview(data)))
        for index, view in enumerate(views):
            records.add(f"data/{index}", view, *hashing.result(index))
        digest = _write_header(records, encoded, specs)
        stream.write(container.directory(records.placed))
        stream.finish()
    return digest


class _Records:
    """The records of one file, written one after another."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.entries: list[RecordEntry] = []
        self.placed: list[container.Placed] = []

    def next_data_at(self, name: str) -> int:
        """Where the data of a record of this name would begin, if it came next."""
        return container.place(Record(f"{ROOT}/{name}", 0, 0), self._stream.position).data_at

    def add(self, name: str, data: memoryview, crc32: int, digest: str) -> None:
        placed = container.place(Record(f"{ROOT}/{name}", len(data), crc32), self._stream.position)
        self._stream.write(container.local_header(placed))
        self._stream.write(data)
        self.placed.append(placed)
        self.entries.append(RecordEntry(name, len(data), crc32, digest))


def _write_header(records: _Records, encoded: Encoded, specs: Sequence[TensorSpec]) -> str | None:
    """The tensor table and the summary, which name everything before them; returns the model digest."""
    digests = {
        int(e.name.removeprefix("data/")): e.digest for e in records.entries if e.name.startswith("data/")
    }
    tensors = tensor_entries(encoded.tree, dict(enumerate(specs)), digests)
    table = encode_table(tensors, records.entries)
    content = derive_content(encoded.tree)
    table_at = records.next_data_at(TABLE_RECORD)
    records.add(TABLE_RECORD, memoryview(table), *buffer_digests(memoryview(table)))
    sealed = seal(
        summary_bytes(
            content, encoded.metadata, tensors, table, table_at, encoded.created, f"ckptcore {own_version()}"
        )
    )
    records.add(SUMMARY_RECORD, memoryview(sealed), *buffer_digests(memoryview(sealed)))
    return model_digest(tensors)


def _spec(tensor: torch.Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEM_SIZE:
        raise UnsavableValue("", f"tensors of type {dtype} are not stored yet; convert them first.")
    return TensorSpec(dtype, tuple(tensor.shape))


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a copy on the CPU whose numbers lie in row-major order."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def bytes_of(tensor: torch.Tensor, spec: TensorSpec) -> memoryview:
    """The bytes of a contiguous CPU tensor, without NumPy or a copy; valid while the tensor lives."""
    if spec.nbytes == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_char * spec.nbytes).from_address(tensor.data_ptr())).cast("B")
