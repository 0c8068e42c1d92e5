"""A volume on its grid in the patient, and the ways to put it on another grid.

Coordinates are the patient's, in millimetres: x to the patient's left, y to the back, z to the head (LPS, as
in DICOM). A volume's axes are (depth, height, width); in canonical order they run to the head, to the back
and to the left, as the slices, rows and columns of an axial CT do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CANONICAL = (2, 1, 0)
"""Patient axis (0 x, 1 y, 2 z) along which each of depth, height and width runs in canonical order."""


@dataclass(frozen=True)
class Volume:
    """Voxels and where they lie.

    Attributes:
        voxels: (D, H, W), any number type.
        affine: (4, 4) float64; takes a voxel's index (d, h, w, 1) to its centre in patient mm, LPS.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.affine.shape != (4, 4):
            got = f"{self.voxels.shape} with {self.affine.shape}"
            raise ValueError(f"expected (D, H, W) voxels with a (4, 4) affine, got {got}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        depth, height, width = self.voxels.shape
        return depth, height, width

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along depth, height and width."""
        return spacing_of(self.affine)


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lengths of an affine's columns: mm between neighbours along depth, height and width."""
    depth, height, width = np.linalg.norm(affine[:3, :3], axis=0)
    return float(depth), float(height), float(width)


def shifted(affine: NDArray[np.float64], start: Sequence[float]) -> NDArray[np.float64]:
    """The affine of a grid whose first voxel lies at index ``start`` of this one."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start, np.float64)
    return moved


def same_grid(first: Volume, second: Volume) -> bool:
    """Whether both have the same shape and their corners lie within a twentieth of a voxel of one another."""
    if first.shape != second.shape:
        return False
    corners = np.stack(np.meshgrid(*[(0, length - 1) for length in first.shape], indexing="ij"), -1).reshape(
        -1, 3
    )
    homogeneous = np.c_[corners, np.ones(len(corners))]
    apart = np.abs((homogeneous @ (first.affine - second.affine).T)[:, :3]).max()
    return bool(apart <= 0.05 * min(first.spacing_mm))


def reorient(volume: Volume) -> Volume:
    """The same voxels with axes in canonical order: depth to the head, height to the back, width to the left.

    Axes are swapped and flipped, never interpolated; an oblique volume comes as near as that can.
    """
    directions = volume.affine[:3, :3] / np.asarray(volume.spacing_mm)
    order = max(
        permutations(range(3)),
        key=lambda axes: sum(abs(directions[CANONICAL[new], old]) for new, old in enumerate(axes)),
    )
    backward = [directions[CANONICAL[new], old] < 0 for new, old in enumerate(order)]
    voxels = volume.voxels.transpose(order)
    affine = volume.affine[:, [*order, 3]]
    start = [length - 1 if flip else 0 for length, flip in zip(voxels.shape, backward, strict=True)]
    affine = shifted(affine, start)
    affine[:3, :3] *= np.where(backward, -1, 1)
    voxels = voxels[tuple(slice(None, None, -1 if flip else 1) for flip in backward)]
    return Volume(np.ascontiguousarray(voxels), affine)


def resample(volume: Volume, spacing_mm: Sequence[float], *, nearest: bool = False) -> Volume:
    """The volume at another spacing, along its own axes and about its own centre.

    Linear interpolation; along axes that become coarser, a Gaussian first takes out what the new grid cannot
    show.

    Args:
        volume: any.
        spacing_mm: new distance between voxels along depth, height and width.
        nearest: take the nearest voxel instead, for labels.

    Returns:
        float32, or the same type when nearest.

    Source:
        Width of the Gaussian: Cardoso et al., Scale factor point spread function matching, MICCAI 2015.
    """
    old, new = np.asarray(volume.spacing_mm), np.asarray(spacing_mm, np.float64)
    if np.allclose(old, new, rtol=1e-4):
        return volume if nearest else Volume(volume.voxels.astype(np.float32), volume.affine)
    shape = resampled_shape(volume, spacing_mm)
    step = new / old
    start = (np.asarray(volume.shape) - 1) / 2 - (np.asarray(shape) - 1) / 2 * step
    affine = shifted(volume.affine, start)
    affine[:3, :3] *= step
    return Volume(_sampled(volume.voxels, np.diag(step), start, shape, nearest), affine)


def resampled_shape(volume: Volume, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """(D, H, W) that `resample` gives at a spacing."""
    extents = zip(volume.shape, volume.spacing_mm, spacing_mm, strict=True)
    depth, height, width = (max(1, round(length * old / new)) for length, old, new in extents)
    return depth, height, width


def crop_or_pad(volume: Volume, size: Sequence[int], fill: float = 0) -> Volume:
    """The volume cut or filled up to a size, about its centre.

    Args:
        volume: any.
        size: (D, H, W) of the result.
        fill: value of voxels outside.
    """
    start = [(length - wanted) // 2 for length, wanted in zip(volume.shape, size, strict=True)]
    return cut(volume, start, size, fill)


def cut(volume: Volume, start: Sequence[int], size: Sequence[int], fill: float = 0) -> Volume:
    """The box of a size that begins at an index, which may lie outside; what is outside is filled.

    Args:
        volume: any.
        start: index (d, h, w) of the first voxel; negative before the volume.
        size: (D, H, W) of the result.
        fill: value of voxels outside.
    """
    voxels = np.full(tuple(size), fill, volume.voxels.dtype)
    source, target = [], []
    for begin, wanted, length in zip(start, size, volume.shape, strict=True):
        first, last = max(begin, 0), min(begin + wanted, length)
        source.append(slice(first, max(first, last)))
        target.append(slice(first - begin, max(first, last) - begin))
    voxels[tuple(target)] = volume.voxels[tuple(source)]
    return Volume(voxels, shifted(volume.affine, start))


def patch_at(
    volume: Volume,
    point_mm: Sequence[float],
    size: Sequence[int],
    spacing_mm: Sequence[float] | None,
    fill: float,
) -> Volume:
    """A patch about a point.

    With a spacing, the patch lies along the patient's axes in canonical order, whatever the scan's tilt, and
    its centre is the point exactly. Without one, it is cut from the (reoriented) volume's own voxels about
    the nearest to the point.

    Args:
        volume: any.
        point_mm: x, y, z in patient mm, LPS.
        size: (D, H, W) of the patch.
        spacing_mm: distance between its voxels along depth, height and width; None for the volume's own.
        fill: value of what lies outside the volume.

    Returns:
        float32, or the volume's own type without a spacing.

    Raises:
        ValueError: the point lies outside the volume.
    """
    index = index_of(volume, point_mm)
    if (index < -0.5).any() or (index > np.asarray(volume.shape) - 0.5).any():
        raise ValueError("the point lies outside the volume")
    if spacing_mm is None:
        canonical = reorient(volume)
        start = np.rint(index_of(canonical, point_mm) - (np.asarray(size) - 1) / 2).astype(int)
        return cut(canonical, start.tolist(), size, fill)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(CANONICAL)] * np.asarray(spacing_mm, np.float64)
    affine[:3, 3] = np.asarray(point_mm, np.float64) - affine[:3, :3] @ ((np.asarray(size) - 1) / 2)
    return Volume(on_grid(volume, affine, size, fill=fill), affine)


def index_of(volume: Volume, point_mm: Sequence[float]) -> NDArray[np.float64]:
    """Where a point (x, y, z in patient mm) lies in the volume: (d, h, w), with fractions."""
    homogeneous = np.array([*point_mm, 1.0])
    return np.linalg.solve(volume.affine, homogeneous)[:3]


def on_grid(
    volume: Volume,
    affine: NDArray[np.float64],
    shape: Sequence[int],
    *,
    fill: float = 0,
    nearest: bool = False,
) -> NDArray[Any]:
    """The volume's values at the voxels of another grid: (D, H, W) of ``shape``.

    Only the part of the volume that the grid covers is worked on.

    Args:
        volume: any.
        affine: of the other grid: index (d, h, w) to patient mm.
        shape: of the other grid.
        fill: value of what lies outside the volume.
        nearest: take the nearest voxel instead of interpolating, for labels.
    """
    matrix = np.linalg.solve(volume.affine, affine)
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    reached = corners @ linear.T + offset
    margin = np.ceil(4 * _blur(linear)) + 2
    low = np.clip(np.floor(reached.min(0)) - margin, 0, volume.shape).astype(int)
    high = np.clip(np.ceil(reached.max(0)) + margin + 1, low, volume.shape).astype(int)
    part = volume.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if not part.size:
        return np.full(tuple(shape), fill, volume.voxels.dtype if nearest else np.float32)
    return _sampled(part, linear, offset - low, shape, nearest, fill)


def _sampled(
    voxels: NDArray[Any],
    linear: NDArray[Any],
    offset: NDArray[Any],
    shape: Sequence[int],
    nearest: bool,
    fill: float | None = None,
) -> NDArray[Any]:
    """Values at ``linear @ index + offset`` for each index of a shape; outside, ``fill`` or the edge."""
    if nearest:
        return _nearest(voxels, linear, offset, shape, fill)
    from scipy import ndimage

    smooth = voxels.astype(np.float32)
    for axis, sigma in enumerate(_blur(linear)):
        if sigma > 0:
            smooth = ndimage.gaussian_filter1d(smooth, sigma, axis, mode="nearest")
    # grid-constant and not constant: the latter turns an edge voxel into fill where it is missed by a
    # rounding error.
    mode = "nearest" if fill is None else "grid-constant"
    sampled: NDArray[np.float32] = ndimage.affine_transform(
        smooth, linear, offset, tuple(shape), order=1, mode=mode, cval=fill or 0, prefilter=False
    )
    return sampled


def _nearest(
    voxels: NDArray[Any],
    linear: NDArray[Any],
    offset: NDArray[Any],
    shape: Sequence[int],
    fill: float | None,
) -> NDArray[Any]:
    """Nearest voxels, slice by slice; of two at the same distance always the one with the lower index."""
    limit = np.asarray(voxels.shape) - 1
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    in_slice = rows[..., None] * linear[:, 1] + columns[..., None] * linear[:, 2] + offset
    sampled = np.empty(tuple(shape), voxels.dtype)
    for depth in range(shape[0]):
        index = np.ceil(in_slice + depth * linear[:, 0] - 0.5 - 1e-6).astype(np.int64)
        inside = np.clip(index, 0, limit)
        sampled[depth] = voxels[inside[..., 0], inside[..., 1], inside[..., 2]]
        if fill is not None:
            sampled[depth][(inside != index).any(-1)] = fill
    return sampled


def _blur(linear: NDArray[Any]) -> NDArray[Any]:
    """Deviation, in voxels, of the Gaussian for each axis of the sampled volume; 0 where it becomes finer."""
    step = np.abs(linear).max(axis=1)
    deviation: NDArray[Any] = np.sqrt(np.maximum(step**2 - 1, 0)) / (2 * np.sqrt(2 * np.log(2)))
    return deviation
