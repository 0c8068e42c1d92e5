import io
import struct
import zipfile
import zlib

import pytest
from forgery import pack
from hypothesis import given
from hypothesis import strategies as st

from ckptcore.container import (
    ALIGNMENT,
    Record,
    directory,
    directory_start,
    local_header,
    place,
    place_all,
)

CONTENTS = st.lists(st.binary(max_size=300), min_size=1, max_size=8)
BIG = 5 << 30


def records_of(contents: list[bytes]) -> list[Record]:
    return [Record(f"archive/data/{i}", len(data), zlib.crc32(data)) for i, data in enumerate(contents)]


@given(CONTENTS)
def test_any_zip_reader_reads_what_was_packed(contents: list[bytes]) -> None:
    data = pack(records_of(contents), contents)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert [archive.read(name) for name in archive.namelist()] == contents


@given(CONTENTS)
def test_the_data_of_every_record_is_aligned_and_nothing_overlaps(contents: list[bytes]) -> None:
    placed = list(place_all(records_of(contents)))
    assert all(p.data_at % ALIGNMENT == 0 for p in placed)
    assert all(p.data_at - p.header_at == len(local_header(p)) for p in placed)
    assert [p.header_at for p in placed[1:]] == [p.end for p in placed[:-1]]


@given(CONTENTS)
def test_the_directory_is_found_from_the_end_alone(contents: list[bytes]) -> None:
    data = pack(records_of(contents), contents)
    start = list(place_all(records_of(contents)))[-1].end
    assert directory_start(data[-98:], len(data)) == start


@pytest.mark.parametrize("tail", [b"", b"PK\x05\x06", bytes(22), b"x" * 98])
def test_what_is_no_end_of_a_zip_has_no_directory(tail: bytes) -> None:
    assert directory_start(tail, 10**6) is None


def test_a_directory_past_the_end_of_the_file_is_none() -> None:
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, 46, 5000, 0)
    assert directory_start(end, 5000) is None


def test_records_past_4_gib_are_described_by_zip64_fields_that_zipfile_understands() -> None:
    records = [
        Record("archive/data/0", BIG, 1),
        Record("archive/data/1", 3, 2),
        Record("archive/data/2", BIG, 3),
    ]
    placed = list(place_all(records))
    end = placed[-1].end
    tail = directory(placed)
    assert directory_start(tail[-98:], end + len(tail)) == end
    infos = zipfile.ZipFile(_Sparse(end, tail)).infolist()
    assert [(i.header_offset, i.file_size, i.CRC) for i in infos] == [
        (p.header_at, p.record.size, p.record.crc32) for p in placed
    ]
    header = local_header(placed[0])
    assert struct.unpack("<HHQQ", header[30 + 14 : 30 + 34]) == (1, 16, BIG, BIG)


def test_more_records_than_16_bits_count_are_described_too() -> None:
    records = [Record(f"archive/data/{i}", 0, 0) for i in range(66_000)]
    placed = list(place_all(records))
    tail = directory(placed)
    end = placed[-1].end
    assert directory_start(tail[-98:], end + len(tail)) == end
    assert len(zipfile.ZipFile(_Sparse(end, tail)).infolist()) == 66_000


def test_a_header_at_the_edge_of_a_block_still_has_room_for_its_padding_field() -> None:
    for at in range(200):
        placed = place(Record("archive/data/0", 5, 0), at)
        assert len(local_header(placed)) == placed.data_at - at
        assert placed.data_at - at < 30 + 14 + 4 + ALIGNMENT


class _Sparse(io.RawIOBase):
    """A file of zeros that ends in a given tail, however large it is said to be."""

    def __init__(self, size: int, tail: bytes) -> None:
        self._size, self._tail, self._at = size, tail, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, at: int, whence: int = 0) -> int:
        self._at = at + {0: 0, 1: self._at, 2: self._size + len(self._tail)}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        end = self._size + len(self._tail) if count < 0 else self._at + count
        data = (
            bytes(max(0, min(end, self._size) - self._at))
            + self._tail[max(0, self._at - self._size) : max(0, end - self._size)]
        )
        self._at += len(data)
        return data
