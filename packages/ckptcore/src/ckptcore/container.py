"""The zip file that holds a checkpoint, written and read in one canonical form.

Every byte outside the records (local headers, padding, central directory, end records) follows from the
names, sizes and CRCs of the records alone. A reader rebuilds those bytes and compares them, so no field of
the file is left unchecked. Nothing is compressed. Sizes past 4 GiB use ZIP64 fields.

Source: PKWARE APPNOTE 6.3.9, sections 4.3 (structure), 4.5.3 (ZIP64); torch expects each record aligned to 64
bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROOT = "archive"
ALIGNMENT = 64
END_SIZE = 22
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_UTF8_NAMES = 0x0800
_DATE_1980 = 0x0021
_PADDING_FIELD = 0x4246


class Record(NamedTuple):
    """One member of the zip: its full name, bytes and CRC-32."""

    name: str
    size: int
    crc32: int


class Placed(NamedTuple):
    """A record with its place in the file: where its local header and its data begin."""

    record: Record
    header_at: int
    data_at: int

    @property
    def end(self) -> int:
        """The byte after its data."""
        return self.data_at + self.record.size


def _name(record: Record) -> bytes:
    return record.name.encode("ascii")


def _zip64_local(record: Record) -> bytes:
    return struct.pack("<HHQQ", 1, 16, record.size, record.size) if record.size >= _MAX32 else b""


def place(record: Record, at: int) -> Placed:
    """Where a record lies whose local header begins at byte ``at``."""
    fixed = 30 + len(_name(record)) + len(_zip64_local(record)) + 4
    data_at = -(-(at + fixed) // ALIGNMENT) * ALIGNMENT
    return Placed(record, at, data_at)


def place_all(records: Sequence[Record]) -> Iterator[Placed]:
    """The records one after another from the start of the file."""
    at = 0
    for record in records:
        placed = place(record, at)
        at = placed.end
        yield placed


def local_header(placed: Placed) -> bytes:
    """The bytes from a record's local header up to its data, padding included."""
    record = placed.record
    name, zip64 = _name(record), _zip64_local(record)
    padding = placed.data_at - placed.header_at - 30 - len(name) - len(zip64) - 4
    extra = zip64 + struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
    size = min(record.size, _MAX32)
    fixed = struct.pack(
        "<IHHHHHIIIHH",
        0x04034B50,
        45 if zip64 else 20,
        _UTF8_NAMES,
        0,
        0,
        _DATE_1980,
        record.crc32,
        size,
        size,
        len(name),
        len(extra),
    )
    return fixed + name + extra


def _directory_entry(placed: Placed) -> bytes:
    record, name = placed.record, _name(placed.record)
    large = [value for value in (record.size, record.size, placed.header_at) if value >= _MAX32]
    # Size stands twice (compressed and not), so it is either twice in the ZIP64 field or not at all.
    zip64 = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    version = 45 if zip64 else 20
    size, at = min(record.size, _MAX32), min(placed.header_at, _MAX32)
    fixed = struct.pack(
        "<IHHHHHHIIIHHHHHII", 0x02014B50, version, version, _UTF8_NAMES, 0, 0, _DATE_1980,
        record.crc32, size, size, len(name), len(zip64), 0, 0, 0, 0, at,
    )  # fmt: skip
    return fixed + name + zip64


def directory(placed: Sequence[Placed]) -> bytes:
    """Everything after the last record: central directory, ZIP64 end where needed, end record."""
    start = placed[-1].end
    entries = b"".join(map(_directory_entry, placed))
    count = len(placed)
    tail = b""
    if count > _MAX16 - 1 or len(entries) >= _MAX32 or start >= _MAX32:
        end64_at = start + len(entries)
        tail = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, len(entries), start)
        tail += struct.pack("<IIQI", 0x07064B50, 0, end64_at, 1)
    shown = min(count, _MAX16) if not tail else _MAX16
    sizes = (min(len(entries), _MAX32), min(start, _MAX32)) if not tail else (_MAX32, _MAX32)
    return entries + tail + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, shown, shown, *sizes, 0)


def directory_start(tail: bytes, file_size: int) -> int | None:
    """Where the central directory begins, by the end records at the end of ``tail``; None where there are
    none.

    Args:
        tail: the last bytes of the file, 98 or more unless the file is shorter.
        file_size: its size in bytes.
    """
    if len(tail) < END_SIZE or tail[-END_SIZE:-18] != b"PK\x05\x06":
        return None
    start: int = struct.unpack("<I", tail[-6:-2])[0]
    if start == _MAX32 and len(tail) >= END_SIZE + 76 and tail[-98:-94] == b"PK\x06\x06":
        start = struct.unpack("<Q", tail[-50:-42])[0]
    return start if start < file_size else None
