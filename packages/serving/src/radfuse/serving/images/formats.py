"""What a file is, told from its first bytes: names and endings of files are not to be trusted."""

from __future__ import annotations

import zlib
from enum import Enum
from pathlib import Path

from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.limits import check_file

_HEAD = 1024


class Format(Enum):
    """The formats that are read."""

    DICOM = "DICOM"
    PNG = "PNG"
    JPEG = "JPEG"
    NIFTI = "NIfTI"


_REFUSED = (
    (b"NRRD0", "an NRRD file; convert it to NIfTI"),
    (b"ObjectType", "a MetaImage file; convert it to NIfTI"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"BM", "a BMP picture; convert it to PNG"),
    (b"II*\x00", "a TIFF picture; convert it to PNG"),
    (b"MM\x00*", "a TIFF picture; convert it to PNG"),
    (b"GIF8", "a GIF picture; convert it to PNG"),
    (b"\x93NUMPY", "a NumPy array, which has no geometry; convert it to NIfTI"),
    (b"\x89HDF", "an HDF5 or MINC 2 file; convert it to NIfTI"),
    (b"CDF", "a NetCDF or MINC 1 file; convert it to NIfTI"),
    (b"%PDF", "a PDF document"),
    (b"TRACK", "a tractography file"),
    (b"mrtrix", "an MRtrix file; convert it to NIfTI"),
)


def format_of(path: Path) -> Format:
    """The format of a file, by its content.

    Raises:
        UnreadableImage: no such file, a size out of limits, or a format that is not read.
    """
    check_file(path)
    with guarded(path, "the file cannot be opened"):
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        packed = head.startswith(b"\x1f\x8b")
        if packed:
            head = zlib.decompressobj(wbits=31).decompress(head, _HEAD)
    found = _known(head)
    if packed and found is not Format.NIFTI:
        raise UnreadableImage(path, "the file is packed with gzip and no NIfTI; unpack it first")
    if found is None:
        raise UnreadableImage(path, f"expected DICOM, PNG, JPEG or NIfTI, got {_description(head)}")
    return found


def _known(head: bytes) -> Format | None:
    if head[128:132] == b"DICM":
        return Format.DICOM
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format.PNG
    if head.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:12] in (b"n+2\0\r\n\032\n", b"ni2\0\r\n\032\n"):
        return Format.NIFTI
    return Format.DICOM if _is_bare_dicom(head) else None


def _is_bare_dicom(head: bytes) -> bool:
    """Whether a file without preamble begins as a DICOM data set does: PS3.5 section 7.1.

    The first element is of the file meta group (0002) or the identifying group (0008), and its length fits in
    what such elements have.
    """
    if head[:2] == b"\x00\x08" and head[4:6].isalpha():
        return True  # big endian, which is always explicit
    if head[:2] not in (b"\x02\x00", b"\x08\x00") or len(head) < 8:
        return False
    if head[4:6].isalpha() and head[4:6].isupper():
        return True
    return int.from_bytes(head[4:8], "little") <= 1024


def _description(head: bytes) -> str:
    for signature, description in _REFUSED:
        if head.startswith(signature):
            return description
    if len(head) >= 348 and head[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):
        return "an ANALYZE file, which does not say where left is; convert it to NIfTI"
    if not head.strip(b"\t\n\r\f" + bytes(range(0x20, 0x7F))):
        return "a text file"
    return "a file of unknown format"
