"""Kind ``radiograph``: a projection image at a fixed size.

{"kind": "radiograph", "size": [H, W]}      stored uint8 (H, W)      input float32 (3, H, W) in 0..1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.images.errors import guarded
from radfuse.serving.images.radiograph import read_radiograph
from radfuse.serving.images.scans import VolumeReader
from radfuse.serving.preprocess.kind import (
    Images,
    Prepared,
    Spec,
    chosen,
    lengths,
    no_mask,
    parameters,
    place_of,
    refused_point,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radfuse.serving.preprocess.geometry import Geometry

CHANNELS = 3
"""The grey picture three times, as networks made for photographs take it."""


class RadiographKind:
    """Reads one DICOM, PNG or JPEG, fits it into the size and stores it in 8 bits."""

    def roles(self, spec: Spec) -> tuple[str, ...]:
        return ("image",)

    def input_shape(self, spec: Spec) -> tuple[int | None, ...]:
        return (CHANNELS, *self._size(spec))

    def prepare(
        self, spec: Spec, images: Images, point_mm: Sequence[float] | None, read: VolumeReader
    ) -> Prepared:
        height, width = self._size(spec)
        refused_point(point_mm, images)
        path = place_of(chosen(images, self.roles(spec))[0])
        pixels = read_radiograph(path).pixels
        with guarded(path, "the picture cannot be resized"):
            return Prepared(np.rint(fitted(pixels, height, width) * 255).astype(np.uint8), None)

    def prepare_mask(
        self, spec: Spec, path: Path, geometry: Geometry, values: Mapping[int, int] | None
    ) -> NDArray[np.uint8]:
        raise no_mask(path, "radiograph")

    def to_input(self, spec: Spec, array: NDArray[Any]) -> NDArray[np.float32]:
        grey = array.astype(np.float32) / np.float32(255)
        return np.repeat(grey[None], CHANNELS, axis=0)

    def _size(self, spec: Spec) -> tuple[int, int]:
        height, width = lengths(parameters(spec, {"size": ...})["size"], "size", 2)
        return height, width


def fitted(pixels: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A picture scaled to fit into a size with its proportions kept, about the middle, black beside it.

    Where it shrinks, each new pixel is the mean of the area that it covers, so that nothing aliases; where it
    grows, pixels are interpolated linearly.

    Args:
        pixels: (H, W) in 0..1.
        height: of the result.
        width: of the result.
    """
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    rows = min(height, max(1, round(pixels.shape[0] * scale)))
    columns = min(width, max(1, round(pixels.shape[1] * scale)))
    scaled = _along_rows(_along_rows(pixels, rows).T, columns).T
    fit = np.zeros((height, width), np.float32)
    top, left = (height - rows) // 2, (width - columns) // 2
    fit[top : top + rows, left : left + columns] = scaled
    return fit


def _along_rows(pixels: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """(n, m) to (count, m)."""
    length = len(pixels)
    if count == length:
        return pixels
    if count < length:
        # The integral up to each edge of a new pixel; differences of neighbours are the sums over the areas.
        total = np.vstack([np.zeros((1, pixels.shape[1])), np.cumsum(pixels, axis=0, dtype=np.float64)])
        integral = _between(total, np.linspace(0, length, count + 1))
        return (np.diff(integral, axis=0) * (count / length)).astype(np.float32)
    centres = ((np.arange(count) + 0.5) * (length / count) - 0.5).clip(0, length - 1)
    return _between(pixels, centres).astype(np.float32)


def _between(values: NDArray[Any], at: NDArray[np.float64]) -> NDArray[Any]:
    """Rows at fractional places, interpolated linearly."""
    lower = np.minimum(at.astype(np.int64), max(len(values) - 2, 0))
    upper = np.minimum(lower + 1, len(values) - 1)
    part = (at - lower)[:, None]
    blended: NDArray[Any] = values[lower] * (1 - part) + values[upper] * part
    return blended
