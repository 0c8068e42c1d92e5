"""Reading PNG and JPEG pictures of radiographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.formats import Format, format_of
from radfuse.serving.images.intensity import spread
from radfuse.serving.images.limits import check_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue: ITU-R BT.601."""


def read_picture(path: Path) -> NDArray[np.float32]:
    """A PNG or JPEG as grey values: (height, width), 0..1.

    8-bit values are taken as shown (255 is 1); grey values of 16 bits are spread between percentiles, because
    they are often 10 or 12 bits in a 16-bit file. Colours become their luminance, palettes their colours, and
    what is transparent lies on black. A JPEG is turned as its EXIF orientation says.

    Raises:
        UnreadableImage: another format, damage, several pictures in one file, or a size beyond the limit.
    """
    if format_of(path) not in (Format.PNG, Format.JPEG):
        raise UnreadableImage(path, "expected a PNG or JPEG picture, got another format")
    with guarded(path, "the picture cannot be decoded"):
        from PIL import Image, ImageOps

        with Image.open(path, formats=("PNG", "JPEG")) as image:
            check_picture(path, image.height, image.width)
            if getattr(image, "n_frames", 1) > 1:
                raise UnreadableImage(path, "the file holds several pictures; a radiograph is one")
            image.load()
            turned = ImageOps.exif_transpose(image)
            return _grey(path, turned)


def luminance(colour: NDArray[Any], highest: float) -> NDArray[np.float32]:
    """(..., 3) red, green, blue to (...) grey in 0..1.

    Args:
        colour: unsigned whole numbers.
        highest: the value that becomes 1.
    """
    grey: NDArray[np.float64] = colour.astype(np.float64) @ np.asarray(LUMINANCE)
    return np.clip(grey / highest, 0, 1).astype(np.float32)


def _grey(path: Path, image: Image) -> NDArray[np.float32]:
    if image.mode.startswith("I"):
        return spread(np.asarray(image))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"), np.float32) / np.float32(255)
    if image.mode in ("RGB", "CMYK", "YCbCr"):
        return _luminance_of_bytes(np.asarray(image.convert("RGB")))
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        layers = np.asarray(image.convert("RGBA"))
        grey = _luminance_of_bytes(layers[..., :3])
        return grey * (layers[..., 3].astype(np.float32) / np.float32(255))
    raise UnreadableImage(path, f"pixels of kind {image.mode} are not supported; convert it to 8-bit grey")


def _luminance_of_bytes(colour: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey in 0..1; exactly value / 255 where all three are equal, so a grey RGB equals its grey twin."""
    if (colour[..., 0] == colour[..., 1]).all() and (colour[..., 0] == colour[..., 2]).all():
        return colour[..., 0].astype(np.float32) / np.float32(255)
    return luminance(colour, 255)
