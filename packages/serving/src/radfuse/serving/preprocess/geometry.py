"""Where a prepared array's voxels lie, and the way of a label map back to the original grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.images.volume import Volume, on_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Geometry:
    """Two grids in the same patient.

    Attributes:
        shape: (D, H, W) of the prepared array.
        affine: (4, 4), index of the prepared array to patient mm, LPS.
        original_shape: (D, H, W) as read from the file, before reorienting.
        original_affine: (4, 4) of that.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    original_shape: tuple[int, int, int]
    original_affine: NDArray[np.float64]

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel of the prepared array."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def as_json(self) -> dict[str, Any]:
        """For a manifest; `from_json` reads it."""
        return {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "original_shape": list(self.original_shape),
            "original_affine": self.original_affine.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Geometry:
        """What `as_json` gave."""
        depth, height, width = data["shape"]
        original_depth, original_height, original_width = data["original_shape"]
        return cls(
            (depth, height, width),
            np.asarray(data["affine"], np.float64),
            (original_depth, original_height, original_width),
            np.asarray(data["original_affine"], np.float64),
        )


def between(original: Volume, prepared: Volume) -> Geometry:
    """The geometry of a volume that was made from another one."""
    return Geometry(prepared.shape, prepared.affine, original.shape, original.affine)


def restore(label_map: NDArray[Any], geometry: Geometry) -> Volume:
    """A label map on the grid of the original file; voxels that the prepared array did not cover are 0.

    Args:
        label_map: (D, H, W) of ``geometry.shape``.
        geometry: of the array that the label map was made from.

    Raises:
        ValueError: the shapes differ.
    """
    if label_map.shape != geometry.shape:
        raise ValueError(f"expected a label map of shape {geometry.shape}, got {label_map.shape}")
    prepared = Volume(label_map, geometry.affine)
    voxels = on_grid(prepared, geometry.original_affine, geometry.original_shape, nearest=True)
    return Volume(voxels, geometry.original_affine)
