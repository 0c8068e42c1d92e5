"""Size of a JPEG, JPEG-LS or JPEG 2000 picture inside a DICOM file, read from the picture's own header.

A decoder allocates what this header asks for, whatever the DICOM tags around it say: a file of 300 bytes can
ask for gigabytes. So the two are compared before a decoder sees the bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.limits import MAX_TILES

_J2K_START = b"\xff\x4f\xff\x51"
"""Start of codestream and SIZ marker: ISO/IEC 15444-1, annex A."""
_JP2_START = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
"""First box of a JP2 file."""
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
"""SOF0 to SOF15 (ITU-T T.81, table B.1) and SOF55 of JPEG-LS."""
_END = b"\xff\xd9"
"""End of image (JPEG, JPEG-LS) and end of codestream (JPEG 2000)."""
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD9)) | {0x01}


@dataclass(frozen=True)
class PictureSize:
    """What a compressed picture says of itself."""

    height: int
    width: int
    components: int
    tiles: int = 1


def check_codestream(path: Path, frame: bytes, expected: PictureSize) -> None:
    """Make sure that a compressed frame is as large as the tags say, and whole.

    Raises:
        UnreadableImage: its header is damaged, asks for another size, or the end marker is missing.
    """
    found = size_of(frame)
    if found is None:
        raise UnreadableImage(path, "the compressed pixel data has no readable header; copy the file again")
    if (found.height, found.width, found.components) != (
        expected.height,
        expected.width,
        expected.components,
    ):
        raise UnreadableImage(
            path,
            f"the tags say {expected.width} x {expected.height} pixels of {expected.components} samples, the "
            f"compressed picture inside {found.width} x {found.height} of {found.components}",
        )
    if _END not in frame[-16:]:
        raise UnreadableImage(
            path, "the compressed pixel data breaks off; copy the file again from its origin"
        )
    if found.tiles > MAX_TILES:
        raise UnreadableImage(path, f"the picture has {found.tiles} tiles; the limit is {MAX_TILES}")


def size_of(frame: bytes) -> PictureSize | None:
    """Size of a compressed picture; None where its header cannot be read.

    Args:
        frame: one frame's JPEG, JPEG-LS or JPEG 2000 bytes (bare or in its JP2 box).
    """
    try:
        if frame.startswith(b"\xff\xd8"):
            return _jpeg(frame)
        start = _codestream_in_boxes(frame) if frame.startswith(_JP2_START) else 0
        return _jpeg_2000(frame, start) if frame.startswith(_J2K_START, start) else None
    except (struct.error, IndexError, ZeroDivisionError):
        return None


def _jpeg(frame: bytes) -> PictureSize | None:
    at = 2
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        elif marker in _START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", frame, at + 5)
            return PictureSize(height, width, components)
        else:
            at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _codestream_in_boxes(frame: bytes) -> int:
    """Where the codestream begins in a JP2 file: ISO/IEC 15444-1, annex I.

    A box without length would keep a decoder that trusts it going for ever.
    """
    at = len(_JP2_START)
    while frame[at + 4 : at + 8] != b"jp2c":
        length = struct.unpack_from(">I", frame, at)[0]
        if length < 8:
            raise IndexError("a box is shorter than its own header")
        at += length
    return at + 8


def _jpeg_2000(frame: bytes, start: int) -> PictureSize:
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", frame, start + 8)
    tile_left, tile_top, components = struct.unpack_from(">2IH", frame, start + 32)
    tiles = ceil((right - tile_left) / tile_width) * ceil((bottom - tile_top) / tile_height)
    return PictureSize(bottom - top, right - left, components, tiles)
