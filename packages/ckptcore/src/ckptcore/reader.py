"""The one parser of checkpoint files: `ckptcore.read_header`, `ckptcore.verify` and `ckptcore.load` all stand
on it.

It works on an open file descriptor, so that the file that was checked is the file that is read, and needs no
torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptcore import container, unpickled
from ckptcore.container import ROOT, Placed, Record
from ckptcore.errors import DamagedCheckpoint, NewerFormat, UnknownFormat
from ckptcore.header import (
    FORMAT_VERSION,
    MAGIC,
    MARKER,
    MAX_SUMMARY,
    SEAL,
    SUMMARY_RECORD,
    TABLE_RECORD,
    Header,
    RecordEntry,
    TensorEntry,
    canonical_json,
    decode_summary,
    decode_table,
    derive_content,
    encode_table,
    model_digest,
    read_exactly,
    summary_format,
    tensor_counts,
    tensor_entries,
)
from ckptcore.pickled import MAX_PICKLE, PickleProblem, TensorSpec

_TAIL = 16 << 10
DATA_PICKLE = "data.pkl"
FIXED_RECORDS = {
    ".format_version": b"1",
    ".storage_alignment": b"64",
    "byteorder": b"little",
    "version": b"3\n",
}
"""Small records that torch's reader asks for, with their only content."""


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Path, int]]:
    """Open a regular file for reading.

    Raises:
        UnknownFormat: it is a folder, a pipe or a device.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UnknownFormat(f"{path} is a socket or device; expected a checkpoint file.") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnknownFormat(f"{path} is no regular file; expected a checkpoint file.")
        yield path, fd
    finally:
        os.close(fd)


def find_summary(fd: int, path: Path) -> Header | None:
    """The header of an open file, from its last kilobytes; None if its end does not look like ours.

    Raises:
        DamagedCheckpoint: the seal is there, and what it seals is not what was written.
    """
    size = os.fstat(fd).st_size
    tail_at = max(0, size - _TAIL)
    tail = read_exactly(fd, size - tail_at, tail_at)
    start = container.directory_start(tail, size)
    if start is None or start < SEAL.size:
        return None
    seal_at = start - SEAL.size
    sealed = (
        tail[seal_at - tail_at : start - tail_at]
        if seal_at >= tail_at
        else read_exactly(fd, SEAL.size, seal_at)
    )
    if len(sealed) != SEAL.size:
        return None
    magic, version, reserved, length, digest = SEAL.unpack(sealed)
    if magic != MAGIC:
        return None
    if reserved or sealed[-8:] != bytes(8) or length > min(MAX_SUMMARY, seal_at):
        raise DamagedCheckpoint(path, [f"the seal of its header (version {version}, {length} bytes)"])
    summary_at = seal_at - length
    summary = (
        tail[summary_at - tail_at : seal_at - tail_at]
        if summary_at >= tail_at
        else read_exactly(fd, length, summary_at)
    )
    if hashlib.sha256(summary).digest() != digest:
        raise DamagedCheckpoint(path, ["the summary in its header (ckptcore/summary.json)"])
    try:
        if version > FORMAT_VERSION and summary_format(summary) == version:
            raise NewerFormat(
                f"{path.name} has format version {version}; this ckptcore reads up to {FORMAT_VERSION}. "
                "Update ckptcore."
            )
        if version != FORMAT_VERSION:
            raise ValueError(f"its seal has version {version}")
        return decode_summary(summary + sealed, path, size)
    except ValueError as error:
        raise DamagedCheckpoint(path, [f"its header: {error}"]) from error


def looks_native(fd: int) -> bool:
    """Whether a file that does not read as ours was ours once: it carries the marker or the name of the
    header.
    """
    size = os.fstat(fd).st_size
    head = read_exactly(fd, min(size, 1 << 20), 0)
    if MARKER.encode() in head:
        return True
    tail = read_exactly(fd, min(size, 1 << 20), max(0, size - (1 << 20)))
    return (MAGIC in tail and b"/ckptcore/" in tail) or MARKER.encode() in tail


@dataclass(frozen=True)
class Opened:
    """A native checkpoint of which all is checked but the tensors' data, which is not read yet."""

    header: Header
    tree: dict[str, Any]
    specs: dict[int, TensorSpec]
    tensors: list[TensorEntry]
    records: list[RecordEntry]
    placed: dict[str, Placed]
    """By record name below the root."""


def open_native(fd: int, header: Header) -> Opened:
    """Check everything of a native file but its tensors' data.

    Args:
        fd: the open file.
        header: its header, from `find_summary` on the same descriptor.

    Raises:
        DamagedCheckpoint: naming the part that is not what was written.
    """
    try:
        table, tensors, records = read_table(fd, header)
        placed = _check_structure(fd, header, table, records)
        for entry in records:
            expected = FIXED_RECORDS.get(entry.name)
            if expected is not None and checked_record(fd, placed, entry) != expected:
                raise ValueError(f"record {entry.name} has another content")
        tree, specs = unpickled.parse(checked_record(fd, placed, records[0]))
        _check_agreement(header, tree, specs, table, records)
    except PickleProblem as error:
        raise DamagedCheckpoint(header.path, [f"record {DATA_PICKLE}: {error}"]) from error
    except ValueError as error:
        raise DamagedCheckpoint(header.path, [str(error)]) from error
    return Opened(header, tree, specs, tensors, records, placed)


def read_table(fd: int, header: Header) -> tuple[bytes, list[TensorEntry], list[RecordEntry]]:
    """The tensor table of a native file, checked against its summary: its bytes, and both lists of rows.

    Raises:
        ValueError: it is not what the summary names.
    """
    if header.table_at is None:
        raise ValueError("a foreign file has no tensor table")
    at, size, digest = header.table_at
    data = read_exactly(fd, size, at)
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("the tensor table in its header (ckptcore/tensors.json)")
    tensors, records = decode_table(data)
    names = [record.name for record in records]
    tensor_names = [f"data/{i}" for i in range(len(records) - 1 - len(FIXED_RECORDS))]
    # A seal may stand for a forged list, too: of none, of a million, or of some that reach past the end.
    if names != [DATA_PICKLE, *FIXED_RECORDS, *tensor_names]:
        raise ValueError(
            "its records are not the ones that are written (missing, twice, unlisted or out of order)"
        )
    return data, tensors, records


def _check_structure(fd: int, header: Header, table: bytes, entries: list[RecordEntry]) -> dict[str, Placed]:
    """Compare every byte outside the records with the one form there is; returns the places by name."""
    records = [Record(f"{ROOT}/{e.name}", e.size, e.crc32) for e in entries]
    records.append(Record(f"{ROOT}/{TABLE_RECORD}", len(table), zlib.crc32(table)))
    records.append(Record(f"{ROOT}/{SUMMARY_RECORD}", len(header.sealed), zlib.crc32(header.sealed)))
    places = list(container.place_all(records))
    for placed in places:
        if read_exactly(fd, placed.data_at - placed.header_at, placed.header_at) != container.local_header(
            placed
        ):
            raise ValueError(f"the zip header of record {placed.record.name}")
    if header.table_at is None or places[-2].data_at != header.table_at[0]:
        raise ValueError("the tensor table is not where the records end")
    directory = container.directory(places)
    start = places[-1].end
    if header.file_size != start + len(directory) or read_exactly(fd, len(directory), start) != directory:
        raise ValueError("the zip directory at its end")
    return {entry.name: placed for entry, placed in zip(entries, places, strict=False)}


def checked_record(fd: int, placed: dict[str, Placed], entry: RecordEntry) -> bytes:
    """A small record's bytes, checked against its digest and its CRC.

    Raises:
        ValueError: they are not what was written, or too many to be a small record.
    """
    if entry.size > MAX_PICKLE:
        raise ValueError(f"record {entry.name} has {entry.size:,} bytes; at most {MAX_PICKLE:,} are read")
    data = read_exactly(fd, entry.size, placed[entry.name].data_at)
    if hashlib.sha256(data).hexdigest() != entry.digest or zlib.crc32(data) != entry.crc32:
        raise ValueError(f"record {entry.name}")
    return data


def _check_agreement(
    header: Header,
    tree: dict[str, Any],
    specs: dict[int, TensorSpec],
    table: bytes,
    records: list[RecordEntry],
) -> None:
    """The header must say of the state what the state says itself, in the one spelling there is."""
    by_name = {record.name: record for record in records}
    stored = len(records) - 1 - len(FIXED_RECORDS)
    if sorted(specs) != list(range(stored)):
        raise ValueError("the state names other tensors than are stored")
    for index, spec in specs.items():
        size = by_name[f"data/{index}"].size
        if size != spec.nbytes:
            raise ValueError(
                f"tensor {index} has {size} bytes, its shape {spec.shape} asks for {spec.nbytes}"
            )
    tensors = tensor_entries(tree, specs, {index: by_name[f"data/{index}"].digest for index in specs})
    if encode_table(tensors, records) != table:
        raise ValueError("the tensor table says other things of the state than the state")
    if canonical_json(derive_content(tree)) != canonical_json(header.content):
        raise ValueError("the header says other things of the state than the state")
    if type(tree.get(MARKER)) is not int or tree[MARKER] != header.format_version:
        raise ValueError(f"the state lacks its {MARKER}")
    counts = (header.tensor_count, header.tensor_bytes, header.parameters)
    if model_digest(tensors) != header.model_digest or tensor_counts(tensors) != counts:
        raise ValueError("the header's model digest or counts are not those of its tensors")
