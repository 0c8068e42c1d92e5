"""Kind ``mr_volume``: one or several MR sequences of a head on one grid.

    {"kind": "mr_volume", "sequences": ["t1", "t1ce", "t2", "flair"], "spacing_mm": [1, 1, 1] | null,
     "size": [D, H, W] | null, "crop_to_brain": true | false}
    stored float16 (C, D, H, W)      input float32 (C, D, H, W)

Each sequence is z-scored over its nonzero voxels; zero stays zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.errors import SpecError
from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.scans import VolumeReader, read_volume
from radfuse.serving.images.volume import (
    Volume,
    crop_or_pad,
    cut,
    on_grid,
    reorient,
    same_grid,
)
from radfuse.serving.preprocess.geometry import Geometry, between
from radfuse.serving.preprocess.kind import (
    Images,
    Prepared,
    Spec,
    at_spacing,
    chosen,
    lengths,
    parameters,
    place_of,
    refused_point,
    spacing,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FARTHEST = 100.0
"""Standard deviations; farther values come of nearly empty volumes and would overflow float16."""


@dataclass(frozen=True)
class _Recipe:
    sequences: tuple[str, ...]
    spacing_mm: tuple[float, float, float] | None
    size: tuple[int, ...] | None
    crop_to_brain: bool


class MrVolumeKind:
    """Reads a NIfTI or a DICOM series for each sequence."""

    def roles(self, spec: Spec) -> tuple[str, ...]:
        return _recipe(spec).sequences

    def input_shape(self, spec: Spec) -> tuple[int | None, ...]:
        recipe = _recipe(spec)
        return (len(recipe.sequences), *(recipe.size or (None, None, None)))

    def prepare(
        self, spec: Spec, images: Images, point_mm: Sequence[float] | None, read: VolumeReader
    ) -> Prepared:
        recipe = _recipe(spec)
        refused_point(point_mm, images)
        sources = chosen(images, recipe.sequences)
        path = place_of(sources[0])
        volumes = [read(source, "MR") for source in sources]
        canonical = [reorient(volume) for volume in volumes]
        _check_grids(recipe, sources, canonical)
        with guarded(path, "the volume cannot be brought to its grid"):
            channels = [at_spacing(path, volume, recipe.spacing_mm) for volume in canonical]
            start, size = _box(path, channels, recipe)
            channels = [_boxed(channel, start, size, recipe) for channel in channels]
            array = np.stack([_z_scored(channel.voxels) for channel in channels])
            return Prepared(array.astype(np.float16), between(volumes[0], channels[0]))

    def prepare_mask(
        self, spec: Spec, path: Path, geometry: Geometry, values: Mapping[int, int] | None
    ) -> NDArray[np.uint8]:
        mask = read_volume(path)
        with guarded(path, "the label map cannot be brought to the image's grid"):
            labels = Volume(_labels(path, mask.voxels, values or {}), mask.affine)
            _check_mask(path, labels, geometry)
            fitted: NDArray[np.uint8] = on_grid(labels, geometry.affine, geometry.shape, nearest=True)
            return fitted

    def to_input(self, spec: Spec, array: NDArray[Any]) -> NDArray[np.float32]:
        return array.astype(np.float32)


def _recipe(spec: Spec) -> _Recipe:
    given = parameters(spec, {"sequences": ..., "spacing_mm": None, "size": None, "crop_to_brain": False})
    names = given["sequences"]
    if not isinstance(names, list | tuple) or not names or any(not isinstance(name, str) for name in names):
        raise SpecError(f"expected a list of names in 'sequences', got {names!r}")
    if len(set(names)) < len(names):
        raise SpecError(f"'sequences' names one twice: {names!r}")
    if not isinstance(given["crop_to_brain"], bool):
        raise SpecError(f"expected true or false in 'crop_to_brain', got {given['crop_to_brain']!r}")
    size = None if given["size"] is None else lengths(given["size"], "size", 3)
    return _Recipe(tuple(names), spacing(given["spacing_mm"]), size, given["crop_to_brain"])


def _check_grids(recipe: _Recipe, sources: Sequence[Any], volumes: Sequence[Volume]) -> None:
    first = volumes[0]
    for name, source, volume in zip(recipe.sequences, sources, volumes, strict=True):
        if not same_grid(volume, first):
            reason = f"{name} {_grid(volume)} lies on another grid than {recipe.sequences[0]} {_grid(first)}"
            raise UnreadableImage(place_of(source), f"{reason}; resample all sequences to one grid")


def _grid(volume: Volume) -> str:
    lengths_of, steps = volume.shape[::-1], volume.spacing_mm[::-1]
    origin = ", ".join(f"{value:.1f}" for value in volume.affine[:3, 3])
    shape, spaced = " x ".join(map(str, lengths_of)), " x ".join(f"{step:.2f}" for step in steps)
    return f"({shape} voxels of {spaced} mm at {origin})"


def _box(path: Path, channels: Sequence[Volume], recipe: _Recipe) -> tuple[list[int], list[int]]:
    """Start and size of the part that is kept: the brain's box over all sequences, or everything."""
    brain = np.logical_or.reduce([channel.voxels != 0 for channel in channels])
    if not brain.any():
        raise UnreadableImage(path, "every voxel is 0; expected a head")
    if not recipe.crop_to_brain:
        return [0, 0, 0], list(brain.shape)
    start, size = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(brain.any(axis=others))
        start.append(int(found[0]))
        size.append(int(found[-1] - found[0] + 1))
    return start, size


def _boxed(volume: Volume, start: Sequence[int], size: Sequence[int], recipe: _Recipe) -> Volume:
    kept = cut(volume, start, size)
    return kept if recipe.size is None else crop_or_pad(kept, recipe.size)


def _z_scored(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit deviation over what is not 0; all 0 where that is one flat value."""
    inside = voxels != 0
    if not inside.any():
        return voxels
    values = voxels[inside].astype(np.float64)
    deviation = values.std()
    scored = np.zeros_like(voxels)
    if deviation > 1e-6 * max(abs(values.mean()), 1e-30):
        scored[inside] = ((values - values.mean()) / deviation).clip(-_FARTHEST, _FARTHEST)
    return scored


def _labels(path: Path, voxels: NDArray[Any], values: Mapping[int, int]) -> NDArray[np.uint8]:
    """Whole numbers 0..255, replaced as asked."""
    whole = np.rint(voxels)
    if not np.allclose(voxels, whole, atol=1e-3) or whole.min() < 0 or whole.max() > 255:
        raise UnreadableImage(
            path, "expected a label map of whole numbers from 0 to 255; name the segmentation"
        )
    table = np.arange(256, dtype=np.uint8)
    for old, new in values.items():
        table[old] = new
    labels: NDArray[np.uint8] = table[whole.astype(np.uint8)]
    return labels


def _check_mask(path: Path, mask: Volume, geometry: Geometry) -> None:
    """The label map must lie on the image's original grid, if with axes in another order."""
    blank = np.broadcast_to(np.uint8(0), geometry.original_shape)
    original = Volume(blank, geometry.original_affine)
    if not same_grid(reorient(mask), reorient(original)):
        reason = f"the label map {_grid(mask)} lies on another grid than its image {_grid(original)}"
        raise UnreadableImage(path, f"{reason}; resample it to the image's grid")
