"""The zip files of torch.save, checked more strictly than torch does: structure, names and every CRC-32.

torch looks names up without regard to case, takes the first of two records and checks no CRC; Python's
zipfile takes the last one. A file in which such readings could differ is refused.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import IO

from ckptcore.container import END_SIZE
from ckptcore.errors import RefusedContent
from ckptcore.foreign_pickle import MAX_FOREIGN_PICKLE, PickleRefused, Survey
from ckptcore.header import MARKER

_MAX_DESCRIPTOR = 24
_MAX_RECORDS = 500_000
_MAX_DIRECTORY = 64 << 20
_CHUNK = 1 << 20
_ZIP64_END_SIZE = 76
_FULL = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
_ZIP_ERRORS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, UnicodeError, ValueError, EOFError, OverflowError,
    OSError, NotImplementedError, IndexError,
)  # fmt: skip

NOT_NATIVE = (
    "it carries the marker of a ckptcore file and no intact header at its end: "
    "it was changed after it was written, or loaded and saved again by another program "
    "(save it with ckptcore.save)"
)


def zip_findings(file: IO[bytes], path: Path) -> list[str]:
    """What is wrong with a file of torch.save: one line for each damaged record or structure.

    Args:
        file: the open file.
        path: its name, for errors.

    Raises:
        RefusedContent: it is a TorchScript program, or its pickle asks for more than data.
    """
    try:
        wrong = _end_findings(file)
        if wrong:
            return wrong
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            _refuse_programs(infos, path)
            wrong = (
                _listing_findings(infos)
                or _place_findings(file, archive, infos)
                or _crc_findings(file, infos)
            )
            return wrong or _pickle_findings(file, infos, path)
    except _ZIP_ERRORS as error:
        return [f"its zip directory does not hold ({error})"]


def _end_findings(file: IO[bytes]) -> list[str]:
    """The end record must be the last thing in the file, and its directory of a bearable size."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_SIZE))
    end = file.read()
    if len(end) < END_SIZE or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        return ["its zip directory does not hold (its end is missing, or something follows it)"]
    count, directory_size, start = struct.unpack("<HII", end[10:20])
    file.seek(max(0, size - END_SIZE - _ZIP64_END_SIZE))
    end64 = file.read(_ZIP64_END_SIZE)
    if end64[:4] == b"PK\x06\x06" and end64[56:60] == b"PK\x06\x07":
        # torch writes these records always; the short ones beside them say the same, or that they are full.
        size -= _ZIP64_END_SIZE
        full = struct.unpack("<QQQ", end64[32:56])
        if any(
            a not in (b, most) for a, b, most in zip((count, directory_size, start), full, _FULL, strict=True)
        ):
            return ["its zip directory does not hold (its two end records differ)"]
        count, directory_size, start = full
    if count > _MAX_RECORDS or directory_size > _MAX_DIRECTORY:
        what = f"{count:,} records in {directory_size:,} bytes"
        return [f"its zip directory lists {what}; more than any checkpoint has"]
    if start + directory_size != size - END_SIZE:
        return ["its zip directory does not hold (it is not where the end record says)"]
    return []


def _refuse_programs(infos: list[zipfile.ZipInfo], path: Path) -> None:
    below_root = {info.filename.split("/", 1)[-1].lower() for info in infos}
    if "constants.pkl" in below_root or any(name.startswith("code/") for name in below_root):
        raise RefusedContent(
            path,
            "it is a TorchScript program, not a checkpoint. "
            "Load its state_dict where it was made and save that.",
        )


def _listing_findings(infos: list[zipfile.ZipInfo]) -> list[str]:
    names = [info.orig_filename for info in infos]
    counts = Counter(name.lower() for name in names)
    wrong = [f"record {name!r} is listed twice" for name, count in counts.items() if count > 1]
    for info in infos:
        name = info.orig_filename
        if info.compress_type or info.flag_bits & 1 or info.file_size != info.compress_size:
            wrong.append(f"record {name!r} is compressed or encrypted; torch writes neither")
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or not name.isprintable():
            wrong.append(f"record {name!r} leads out of the archive")
    roots = {name.split("/", 1)[0] for name in names}
    if len(roots) != 1 or f"{min(roots)}/data.pkl" not in names:
        wrong.append("it is not one folder with a data.pkl: no checkpoint of torch.save")
    return wrong


def _place_findings(file: IO[bytes], archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> list[str]:
    """Overlapping records and bytes that no record owns."""
    at = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        file.seek(info.header_offset)
        head = file.read(30)
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            return [f"record {info.filename!r} has no header where the directory says"]
        name_size, extra_size = struct.unpack("<HH", head[26:30])
        encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
        if file.read(name_size) != info.orig_filename.encode(encoding):
            return [f"record {info.filename!r} is called otherwise in its own header"]
        if not at <= info.header_offset <= at + _MAX_DESCRIPTOR:
            return [
                f"record {info.filename!r} overlaps the one before it, or unlisted bytes lie between them"
            ]
        at = info.header_offset + 30 + name_size + extra_size + info.compress_size
    if not at <= archive.start_dir <= at + _MAX_DESCRIPTOR:
        return ["unlisted bytes lie before the zip directory, or records reach into it"]
    return []


def _crc_findings(file: IO[bytes], infos: list[zipfile.ZipInfo]) -> list[str]:
    wrong = []
    for info in infos:
        _seek_data(file, info)
        left, crc = info.file_size, 0
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        if left or crc != info.CRC:
            wrong.append(f"record {info.filename} (its CRC-32 does not match)")
    return wrong


def _pickle_findings(file: IO[bytes], infos: list[zipfile.ZipInfo], path: Path) -> list[str]:
    root = infos[0].orig_filename.split("/", 1)[0]
    sizes = {info.orig_filename.removeprefix(f"{root}/"): info.file_size for info in infos}
    if sizes["data.pkl"] > MAX_FOREIGN_PICKLE:
        return [f"its data.pkl has {sizes['data.pkl']:,} bytes; at most {MAX_FOREIGN_PICKLE:,} are read"]
    _seek_data(file, next(info for info in infos if info.orig_filename == f"{root}/data.pkl"))
    data = file.read(sizes["data.pkl"])
    if MARKER.encode() in data:
        return [NOT_NATIVE]
    records = {name.removeprefix("data/"): size for name, size in sizes.items() if name.startswith("data/")}
    try:
        survey = Survey(data, records=records)
    except PickleRefused as error:
        raise refused(path, error) from error
    return [] if survey.end == len(data) else ["something follows the pickle in its data.pkl"]


def _seek_data(file: IO[bytes], info: zipfile.ZipInfo) -> None:
    file.seek(info.header_offset + 26)
    name_size, extra_size = struct.unpack("<HH", file.read(4))
    file.seek(name_size + extra_size, os.SEEK_CUR)


def refused(path: Path, error: PickleRefused) -> RefusedContent:
    """The error for a pickle that asks for more than data."""
    if not error.names:
        return RefusedContent(path, f"{error}.")
    return RefusedContent(
        path,
        f"it asks for {', '.join(error.names[:5])}, and loading data needs neither classes nor calls. "
        "Save it again where it was made, with their state_dict() or plain values instead.",
        error.names,
    )
