"""Limits on everything that comes from outside, checked against headers before memory is taken.

They are far above what scanners write, and keep a hostile or damaged header from taking the machine down.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from radfuse.serving.images.errors import UnreadableImage

MAX_FILE_BYTES = 2 << 30
"""A file on disk. The largest usual ones are multi-frame CTs of some hundred megabytes."""
MAX_PIXELS = 64_000_000
"""A picture: height times width. Digital radiographs have at most about 20 million."""
MAX_VOXELS = 1 << 29
"""A volume: 512 x 512 x 2048."""
MAX_FILES = 5_000
"""Files of one series."""
MAX_TILES = 4_096
"""Tiles of one JPEG 2000 picture, each of which its decoder allocates."""


def check_file(path: Path) -> int:
    """Size of a regular file in bytes.

    Raises:
        UnreadableImage: it is missing, empty, too large, or no regular file (a pipe would never end).
    """
    try:
        status = path.stat()
    except OSError as error:
        reason = "there is no such file, or it cannot be reached; check the list that names it"
        raise UnreadableImage(path, reason) from error
    except ValueError as error:  # a null byte in the name
        raise UnreadableImage(path, "this is no possible name of a file") from error
    if not path.is_file():
        raise UnreadableImage(path, "expected a file, got a folder or a device; name the image file itself")
    if not os.access(path, os.R_OK):
        raise UnreadableImage(path, "permission to read it is missing; change the file's mode")
    if status.st_size == 0:
        raise UnreadableImage(path, "the file is empty; copy it again from its origin")
    if status.st_size > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES / 2**30:g} GiB"
        raise UnreadableImage(path, f"the file has {status.st_size} bytes, more than the limit of {limit}")
    return status.st_size


def check_picture(path: Path, height: int, width: int) -> None:
    """Raises `UnreadableImage` for a picture without pixels or with more than `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise UnreadableImage(path, f"the picture is said to be {width} x {height} pixels; it has none")
    if height * width > MAX_PIXELS:
        reason = f"the picture is said to be {width} x {height} pixels; the limit is {MAX_PIXELS} in all"
        raise UnreadableImage(path, reason)


def check_volume(path: Path, shape: tuple[int, ...]) -> None:
    """Raises `UnreadableImage` for a volume without voxels or with more than `MAX_VOXELS`."""
    said = " x ".join(map(str, shape))
    if any(length < 1 for length in shape):
        raise UnreadableImage(path, f"the volume is said to be {said} voxels; it has none")
    if prod(shape) > MAX_VOXELS:
        raise UnreadableImage(
            path, f"the volume is said to be {said} voxels; the limit is {MAX_VOXELS} in all"
        )
