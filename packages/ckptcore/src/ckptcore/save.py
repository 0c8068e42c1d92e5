"""Writing a checkpoint file: canonical tree and tensors in, one durable, digested file out."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore import container, durable, pickled
from ckptcore.container import ROOT, Record
from ckptcore.errors import UnsavableValue, UsageError
from ckptcore.hashing import Crew, buffer_digests, cores
from ckptcore.header import (
    FORMAT_VERSION,
    MARKER,
    MAX_TABLE,
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
from ckptcore.pickled import TensorSpec
from ckptcore.plain import flatten, iter_slots, renumber
from ckptcore.reader import DATA_PICKLE, FIXED_RECORDS

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
        return replace(self, tree=renumber(self.tree, renumbered), tensors=[self.tensors[index] for index in used])


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


def save(path: str | os.PathLike[str], state: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Path:
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
        DiskFull: it does not fit; whatever was there is untouched.
    """
    target = Path(path)
    encoded = encode(state, metadata)
    if not target.parent.is_dir():
        durable.make_folder(target.parent)
    with durable.staged(target, encoded.nbytes) as (fd, temporary):
        write(fd, encoded)
    durable.publish(temporary, [target])
    return target


def write(fd: int, encoded: Encoded, helpers: int | None = None) -> str | None:
    """Write a checkpoint to an empty file; returns the model digest.

    Args:
        fd: the file, open for writing, at its start.
        encoded: what `encode` made.
        helpers: threads that hash while this one writes; by default one for every other core, and one at least.
    """
    tensors = [_contiguous(t) for t in encoded.tensors]
    specs = [TensorSpec(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for t in tensors]
    unknown = next((spec.dtype for spec in specs if spec.dtype not in pickled.ITEM_SIZE), None)
    if unknown is not None:
        raise UnsavableValue("", f"tensors of type {unknown} are not stored yet; convert them first.")
    small = {DATA_PICKLE: pickled.emit(encoded.tree, specs), **FIXED_RECORDS}
    if len(small[DATA_PICKLE]) > pickled.MAX_PICKLE:
        raise UnsavableValue("", f"the plain values take {len(small[DATA_PICKLE]):,} bytes; store long lists as tensors.")
    views = [_bytes_of(tensor, spec) for tensor, spec in zip(tensors, specs, strict=True)]
    hashing = Crew(views, buffer_digests, max(1, cores() - 1) if helpers is None else helpers)
    entries = [RecordEntry(n, len(d), zlib.crc32(d), hashlib.sha256(d).hexdigest()) for n, d in small.items()]
    at = _write_small(fd, entries, list(small.values()))
    places = list(_write_tensors(fd, views, at))
    entries += [RecordEntry(f"data/{i}", len(views[i]), *result) for i, result in enumerate(hashing.results())]
    return _finish(fd, encoded, specs, entries, places)


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _bytes_of(tensor: torch.Tensor, spec: TensorSpec) -> memoryview:
    """The bytes of a contiguous CPU tensor, without NumPy and without a copy; valid while the tensor lives."""
    if spec.nbytes == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_char * spec.nbytes).from_address(tensor.data_ptr())).cast("B")


def _write_small(fd: int, entries: Sequence[RecordEntry], data: Sequence[bytes]) -> int:
    """Write whole records with their local headers; returns where the next one begins."""
    at = 0
    for entry, content in zip(entries, data, strict=True):
        placed = container.place(Record(f"{ROOT}/{entry.name}", entry.size, entry.crc32), at)
        durable.write_all(fd, container.local_header(placed) + content)
        at = placed.end
    return at


def _write_tensors(fd: int, views: Sequence[memoryview], at: int) -> Any:
    """Write the tensors' data, leaving room for the local headers, which need the CRCs first."""
    for index, view in enumerate(views):
        placed = container.place(Record(f"{ROOT}/data/{index}", len(view), 0), at)
        durable.write_all(fd, bytes(placed.data_at - placed.header_at))
        durable.write_all(fd, view)
        at = placed.end
        yield placed


def _finish(
    fd: int, encoded: Encoded, specs: Sequence[TensorSpec], entries: Sequence[RecordEntry], places: Sequence[container.Placed]
) -> str | None:
    """Write the local headers of the tensors, then table, summary and directory."""
    by_index = {int(e.name.removeprefix("data/")): e for e in entries[-len(places) :]} if places else {}
    for index, placed in enumerate(places):
        exact = placed._replace(record=placed.record._replace(crc32=by_index[index].crc32))
        durable.write_all_at(fd, container.local_header(exact), placed.header_at)
    tensors = tensor_entries(encoded.tree, dict(enumerate(specs)), {i: e.digest for i, e in by_index.items()})
    if len({e.name for e in tensors}) != len(tensors):
        raise UnsavableValue("", "two tensors have the same key path as text (the keys 0 and '0', say). Rename one.")
    table = encode_table(tensors, entries)
    if len(table) > MAX_TABLE:
        raise UnsavableValue("", f"the table of {len(tensors):,} tensors takes {len(table):,} bytes; at most {MAX_TABLE:,}.")
    records = [Record(f"{ROOT}/{e.name}", e.size, e.crc32) for e in entries]
    placed = list(container.place_all(records))
    table_at = container.place(Record(TABLE_RECORD, len(table), 0), placed[-1].end)
    summary = summary_bytes(
        derive_content(encoded.tree), encoded.metadata, tensors, table, table_at.data_at, encoded.created, _writer()
    )
    for name, data in ((TABLE_RECORD, table), (SUMMARY_RECORD, seal(summary))):
        last = container.place(Record(name, len(data), zlib.crc32(data)), placed[-1].end)
        durable.write_all(fd, container.local_header(last) + data)
        placed.append(last)
    durable.write_all(fd, container.directory(placed))
    return model_digest(tensors)


def _writer() -> str:
    try:
        return f"ckptcore {version('ckptcore')}"
    except PackageNotFoundError:
        return "ckptcore"
