"""Kind ``ct_patch``: a cube of CT about a nodule.

    {"kind": "ct_patch", "size": [D, H, W], "spacing_mm": [1, 1, 1] | null, "window_hu": [-1000, 400] | null}
    stored int16 (D, H, W)      input float32 (1, D, H, W)

The input is in Hounsfield units, clipped to the window; without a window it is the file's own values (0..255
of 8-bit data). Scaling them to what the network likes is inside the exported graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.errors import InputError, SpecError
from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.scans import VolumeReader
from radfuse.serving.images.volume import Volume, crop_or_pad, patch_at, reorient
from radfuse.serving.preprocess.geometry import Geometry, between
from radfuse.serving.preprocess.kind import (
    Images,
    Prepared,
    Spec,
    at_spacing,
    chosen,
    lengths,
    no_mask,
    parameters,
    place_of,
    spacing,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

AIR_HU = -1000.0
"""What lies outside a scan."""
_WHOLE_SCAN = 3
"""A volume more than so many times as long as the patch, along two axes, is a scan and needs a point."""


@dataclass(frozen=True)
class _Recipe:
    size: tuple[int, ...]
    spacing_mm: tuple[float, float, float] | None
    window_hu: tuple[float, float] | None

    @property
    def fill(self) -> float:
        """Outside the scan: air, or as dark as the window shows; 0 in 8-bit data."""
        return 0.0 if self.window_hu is None else max(AIR_HU, self.window_hu[0])


class CtPatchKind:
    """Reads a DICOM series or a NIfTI, and cuts a patch about a point or takes one that was cut before."""

    def roles(self, spec: Spec) -> tuple[str, ...]:
        return ("image",)

    def input_shape(self, spec: Spec) -> tuple[int | None, ...]:
        return (1, *_recipe(spec).size)

    def prepare(
        self, spec: Spec, images: Images, point_mm: Sequence[float] | None, read: VolumeReader
    ) -> Prepared:
        recipe = _recipe(spec)
        source = chosen(images, self.roles(spec))[0]
        path = place_of(source)
        point = None if point_mm is None else _point(point_mm)
        volume = read(source, "CT")
        with guarded(path, "the patch cannot be cut"):
            patch = _whole(path, volume, recipe) if point is None else _about(path, volume, recipe, point)
            return Prepared(_compact(patch.voxels, recipe), between(volume, patch))

    def prepare_mask(
        self, spec: Spec, path: Path, geometry: Geometry, values: Mapping[int, int] | None
    ) -> NDArray[np.uint8]:
        raise no_mask(path, "ct_patch")

    def to_input(self, spec: Spec, array: NDArray[Any]) -> NDArray[np.float32]:
        values = array.astype(np.float32)
        window = _recipe(spec).window_hu
        return (values if window is None else values.clip(*window))[None]


def _recipe(spec: Spec) -> _Recipe:
    given = parameters(spec, {"size": ..., "spacing_mm": None, "window_hu": None})
    return _Recipe(
        lengths(given["size"], "size", 3), spacing(given["spacing_mm"]), _window(given["window_hu"])
    )


def _window(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise SpecError(f"expected two numbers or null in 'window_hu', got {value!r}")
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in value):
        raise SpecError(f"expected two numbers in 'window_hu', got {value!r}")
    low, high = map(float, value)
    if not -32768 <= low < high <= 32767:
        raise SpecError(f"expected 'window_hu' to rise within -32768..32767, got {value!r}")
    return low, high


def _point(point_mm: Sequence[float]) -> list[float]:
    point = [float(each) for each in point_mm]
    if len(point) != 3 or not np.isfinite(point).all():
        raise InputError("expected a point as x, y, z in patient mm (LPS): three finite numbers")
    return point


def _about(path: Path, volume: Volume, recipe: _Recipe, point: Sequence[float]) -> Volume:
    try:
        return patch_at(volume, point, recipe.size, recipe.spacing_mm, recipe.fill)
    except ValueError as error:
        reason = "the point lies outside the scan; give x, y, z in patient coordinates (mm, LPS)"
        raise UnreadableImage(path, reason) from error


def _whole(path: Path, volume: Volume, recipe: _Recipe) -> Volume:
    """A volume that is a patch already, resampled and brought to the size about its centre."""
    canonical = reorient(volume)
    extents = np.asarray(canonical.shape, np.float64)
    if recipe.spacing_mm is not None:
        extents = extents * canonical.spacing_mm / recipe.spacing_mm
    if (extents > _WHOLE_SCAN * np.asarray(recipe.size)).sum() >= 2:
        said = " x ".join(map(str, canonical.shape))
        reason = f"the volume ({said} voxels) is a whole scan; give the nodule's position in patient mm (LPS)"
        raise UnreadableImage(path, reason)
    return crop_or_pad(at_spacing(path, canonical, recipe.spacing_mm), recipe.size, recipe.fill)


def _compact(values: NDArray[Any], recipe: _Recipe) -> NDArray[np.int16]:
    low, high = recipe.window_hu or (-32768.0, 32767.0)
    whole: NDArray[np.int16] = np.rint(values.astype(np.float32).clip(low, high)).astype(np.int16)
    return whole
