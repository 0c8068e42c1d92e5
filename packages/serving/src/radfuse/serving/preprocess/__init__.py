"""From image files to what a network takes, by a recipe that training writes and serving carries out.

    prepare(spec, {"image": path}) -> Prepared          once a sample, stored
    to_input(spec, prepared.array) -> (C, ...) float32  at each use; exactly what the exported graph takes

Kinds of recipes: `radiograph`, `ct_patch` and `mr_volume`, each documented in its module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radfuse.serving.images.scans import LastScan, Source, VolumeReader, read_volume
from radfuse.serving.preprocess.ct_patch import CtPatchKind
from radfuse.serving.preprocess.geometry import Geometry, restore
from radfuse.serving.preprocess.kind import Images, Kind, Prepared, Spec, kind_of, register
from radfuse.serving.preprocess.mr_volume import MrVolumeKind
from radfuse.serving.preprocess.radiograph import RadiographKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Geometry",
    "Images",
    "Kind",
    "LastScan",
    "Prepared",
    "Source",
    "Spec",
    "input_shape",
    "kind_of",
    "prepare",
    "prepare_mask",
    "register",
    "restore",
    "roles",
    "to_input",
]

register("radiograph", RadiographKind())
register("ct_patch", CtPatchKind())
register("mr_volume", MrVolumeKind())


def prepare(
    spec: Spec,
    images: Images,
    point_mm: Sequence[float] | None = None,
    read: VolumeReader = read_volume,
) -> Prepared:
    """Read one sample and bring it into the form in which it is stored.

    Args:
        spec: the recipe.
        images: sources by role (`roles`): a file, a folder with a DICOM series, or the files of one.
        point_mm: x, y, z in patient mm (LPS) of what a patch is about.
        read: reads volumes; a `LastScan` reads a scan once for many points in it.

    Raises:
        UnreadableImage: a file cannot be read, or does not fit: grids differ, a whole scan without a point.
        InputError: roles are missing, or there is a point where none is used.
        SpecError: the recipe is not right.
    """
    return kind_of(spec).prepare(spec, images, point_mm, read)


def prepare_mask(
    spec: Spec, path: str | Path, geometry: Geometry, values: Mapping[int, int] | None = None
) -> NDArray[np.uint8]:
    """Read a label map on the grid of a prepared array, by nearest neighbour.

    Args:
        spec: the recipe.
        path: the label map; axes may be in another order than the image's.
        geometry: of the prepared image.
        values: labels to be replaced, as {4: 3}.

    Returns:
        (D, H, W) uint8.

    Raises:
        UnreadableImage: it is no label map, or lies on another grid than its image.
    """
    return kind_of(spec).prepare_mask(spec, Path(path), geometry, values)


def to_input(spec: Spec, array: NDArray[Any]) -> NDArray[np.float32]:
    """A prepared array as the exported graph takes it: (C, ...) without the batch axis."""
    return kind_of(spec).to_input(spec, array)


def roles(spec: Spec) -> tuple[str, ...]:
    """Names of the images that a recipe takes: ``image``, or those of MR sequences."""
    return kind_of(spec).roles(spec)


def input_shape(spec: Spec) -> tuple[int | None, ...]:
    """Shape (C, ...) of what `to_input` gives; None where it depends on the image.

    Raises:
        SpecError: the recipe is not right.
    """
    return kind_of(spec).input_shape(spec)
