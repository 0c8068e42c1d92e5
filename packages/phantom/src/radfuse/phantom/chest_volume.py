"""The chest CT without its nodules: chest wall, ribs, spine, lungs, heart, great vessels, airways.

Coordinates are the patient's, in mm: x to the left, y to the back, z to the head (DICOM's LPS), with the
origin in the middle of the chest at the height where the windpipe divides. Volumes are (D, H, W) in
Hounsfield units, D upwards along z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radfuse.phantom.shapes import Picture, clouds, ellipse, line, step

AIR, LUNG, FAT, MUSCLE, BLOOD, BONE, MARROW = -1000.0, -850.0, -95.0, 50.0, 130.0, 620.0, 190.0


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a series are, in mm."""

    x: Picture
    """(W,)"""
    y: Picture
    """(H,)"""
    z: Picture
    """(D,)"""

    @property
    def plane(self) -> tuple[Picture, Picture]:
        """Coordinates (x, y) of the pixels of a slice, each (H, W)."""
        x, y = np.meshgrid(self.x, self.y)
        return x, y

    def box(self, low: NDArray[np.floating], high: NDArray[np.floating]) -> tuple[slice, slice, slice]:
        """The voxels (D, H, W) between two points (x, y, z)."""
        ranges = [
            slice(int(np.searchsorted(axis, low[at])), int(np.searchsorted(axis, high[at], "right")))
            for at, axis in ((2, self.z), (1, self.y), (0, self.x))
        ]
        return ranges[0], ranges[1], ranges[2]


@dataclass(frozen=True)
class Chest:
    """What of the anatomy differs from patient to patient.

    Attributes:
        width, depth: half axes of the chest's inside, mm.
        fat: thickness of the fat under the skin, mm.
        heart: size of the heart relative to the usual one.
        phase: where along z the ribs begin, mm.
    """

    width: float
    depth: float
    fat: float
    heart: float
    phase: float

    @classmethod
    def of(cls, rng: np.random.Generator) -> Chest:
        """A chest drawn at random."""
        return cls(
            width=rng.uniform(122.0, 134.0),
            depth=rng.uniform(80.0, 90.0),
            fat=rng.uniform(7.0, 18.0),
            heart=rng.uniform(0.92, 1.08),
            phase=rng.uniform(0.0, 26.0),
        )

    def wall(self, x: Picture, y: Picture) -> Picture:
        """Distance into the chest from its inner wall, mm; negative in the wall."""
        return ellipse(x, y, (0.0, 0.0), (self.width, self.depth), power=2.3)

    def lungs(self, x: Picture, y: Picture, z: Picture) -> Picture:
        """About the distance into a lung, mm; the arrays broadcast against each other."""
        inside = self.wall(x, y) - 2.0 - np.clip(z - 20.0, 0.0, None) ** 2 / 120.0
        # Middle: narrow between the lungs in front, wide about the hila and where the spine stands.
        half_gap = 17.0 + 10.0 * np.exp(-(((y - 5.0) / 28.0) ** 2)) + 13.0 * step(y - 0.50 * self.depth, 3.0)
        middle = np.abs(x - 3.0) - half_gap
        heart = -self.heart_distance(x, y, z)
        dome = z + 78.0 - 26.0 * (1.0 - ((np.abs(x) - 65.0) / 62.0) ** 2 - (y / 85.0) ** 2)
        return np.asarray(np.minimum(np.minimum(inside, middle), np.minimum(heart, dome)), np.float32)

    def heart_distance(self, x: Picture, y: Picture, z: Picture) -> Picture:
        """About the distance into the heart, mm."""
        size = self.heart
        u = ((x - 24.0) * 0.8 + (y + 24.0) * 0.6) / (62.0 * size)
        v = ((y + 24.0) * 0.8 - (x - 24.0) * 0.6) / (44.0 * size)
        w = (z + 62.0) / (48.0 * size)
        return np.asarray((1.0 - np.sqrt(u * u + v * v + w * w)) * 46.0 * size, np.float32)


def draw(chest: Chest, grid: Grid, rng: np.random.Generator) -> Picture:
    """Draw a chest in Hounsfield units, (D, H, W).

    Args:
        chest: the patient's.
        grid: where the voxels are.
        rng: of the patient: vessels lie where they lay before.
    """
    x, y = grid.plane
    z = grid.z[:, None, None]
    volume = np.broadcast_to(_wall(chest, x, y), (grid.z.size, *x.shape)).copy()
    volume += _ribs(chest, x, y, z)
    heart = step(chest.heart_distance(x, y, z), 1.2)
    volume += (95.0 - volume) * heart * (chest.wall(x, y) > 0)
    _great_vessels(volume, grid)
    lung = step(chest.lungs(x, y, z), 1.0)
    mottled = 25.0 * clouds(rng, volume.shape, 0.06) + 35.0 * (y / 80.0)
    volume += (LUNG + mottled - volume) * lung
    _lung_vessels(volume, grid, lung, rng)
    _airways(volume, grid)
    return volume


def _wall(chest: Chest, x: Picture, y: Picture) -> Picture:
    """One slice of everything that is alike at every height, HU, (H, W)."""
    wall = chest.wall(x, y)
    skin = ellipse(
        x, y, (0.0, 2.0), (chest.width + 22.0 + chest.fat, chest.depth + 24.0 + chest.fat), power=2.4
    )
    slice_hu = AIR + (FAT - AIR) * step(skin, 1.0)
    slice_hu += (MUSCLE - slice_hu) * step(skin - chest.fat, 1.2)
    slice_hu += (-25.0 - slice_hu) * step(wall, 1.0)
    for side in (-1.0, 1.0):
        blade = line(x, y, (58.0 * side, chest.depth + 6.0), (112.0 * side, chest.depth - 26.0), 4.0)
        slice_hu += (420.0 - slice_hu) * step(blade, 0.8)
    sternum = ellipse(x, y, (0.0, -chest.depth - 7.0), (19.0, 6.0))
    slice_hu += (MARROW + 90.0 - slice_hu) * step(sternum, 0.8)
    body = ellipse(x, y, (0.0, 0.66 * chest.depth), (18.0, 15.0))
    slice_hu += (BONE - 180.0 - slice_hu) * step(body, 0.8)
    slice_hu += (MARROW - slice_hu) * step(body - 3.0, 0.8)
    for end in ((-26.0, 26.0), (26.0, 26.0), (0.0, 42.0)):
        process = line(x, y, (0.0, 0.66 * chest.depth + 18.0), (end[0], 0.66 * chest.depth + end[1]), 5.0)
        slice_hu += (430.0 - slice_hu) * step(process, 0.8)
    canal = ellipse(x, y, (0.0, 0.66 * chest.depth + 22.0), (9.0, 8.0))
    slice_hu += (30.0 - slice_hu) * step(canal, 0.8)
    return np.asarray(slice_hu, np.float32)


def _ribs(chest: Chest, x: Picture, y: Picture, z: Picture) -> Picture:
    """Ribs run around the wall and sink towards the front, so each slice cuts several."""
    shell = step(5.5 - np.abs(chest.wall(x, y) + 7.5), 0.9) * step(np.abs(x) - 16.0, 2.0)
    sinking = 0.42 * (chest.depth - y)
    along = np.mod(z + sinking + chest.phase, np.float32(26.0)) - 13.0
    rib = step(6.0 - np.abs(along), 1.2)
    marrow = step(2.5 - np.abs(chest.wall(x, y) + 7.5), 0.8)
    return np.asarray((BONE - 330.0 * marrow - MUSCLE) * shell * rib, np.float32)


def _great_vessels(volume: Picture, grid: Grid) -> None:
    """Both parts of the aorta, the pulmonary trunk, the superior vena cava."""
    for start, end, radius in (
        ((22.0, 40.0, -150.0), (22.0, 36.0, 35.0), 12.5),
        ((-8.0, -22.0, -35.0), (-10.0, -16.0, 40.0), 15.5),
        ((22.0, 36.0, 37.0), (-10.0, -16.0, 41.0), 13.0),
        ((16.0, -26.0, -30.0), (24.0, -8.0, -4.0), 13.0),
        ((24.0, -6.0, -6.0), (-30.0, 8.0, -10.0), 10.0),
        ((-27.0, -10.0, -60.0), (-27.0, -8.0, 90.0), 8.5),
    ):
        _tube(volume, grid, start, end, (radius, radius), BLOOD)


def _lung_vessels(volume: Picture, grid: Grid, lung: Picture, rng: np.random.Generator) -> None:
    """Two generations of vessels from each hilum."""
    for side in (-1.0, 1.0):
        for _ in range(15):
            root = np.array([side * 30.0, rng.uniform(0.0, 22.0), rng.uniform(-28.0, 6.0)])
            heading = np.array([side * rng.uniform(0.35, 1.0), rng.normal(0.0, 0.65), rng.normal(0.0, 0.75)])
            fork = root + heading / np.linalg.norm(heading) * rng.uniform(28.0, 52.0)
            _tube(volume, grid, root, fork, (3.6, 2.2), 60.0, lung)
            for _ in range(2):
                turned = heading + rng.normal(0.0, 0.45, 3)
                tip = fork + turned / np.linalg.norm(turned) * rng.uniform(20.0, 38.0)
                _tube(volume, grid, fork, tip, (2.1, 0.8), 40.0, lung)


def _airways(volume: Picture, grid: Grid) -> None:
    for start, end, radius in (
        ((0.0, 14.0, 2.0), (0.0, 4.0, 150.0), 8.5),
        ((0.0, 14.0, 2.0), (-36.0, 16.0, -22.0), 6.0),
        ((0.0, 14.0, 2.0), (40.0, 16.0, -28.0), 5.5),
    ):
        _tube(volume, grid, start, end, (radius + 1.8, radius + 1.8), MUSCLE)
        _tube(volume, grid, start, end, (radius, radius), AIR)


def _tube(
    volume: Picture,
    grid: Grid,
    start: tuple[float, float, float] | NDArray[np.float64],
    end: tuple[float, float, float] | NDArray[np.float64],
    radii: tuple[float, float],
    hu: float,
    within: Picture | None = None,
) -> None:
    """Fill a tube from one point (x, y, z) to another with a value; its radius changes on the way."""
    first, last = np.asarray(start, float), np.asarray(end, float)
    margin = max(radii) + 3.0
    box = grid.box(np.minimum(first, last) - margin, np.maximum(first, last) + margin)
    dx = grid.x[box[2]][None, None, :] - np.float32(first[0])
    dy = grid.y[box[1]][None, :, None] - np.float32(first[1])
    dz = grid.z[box[0]][:, None, None] - np.float32(first[2])
    way = (last - first).astype(np.float32)
    place = np.clip((dx * way[0] + dy * way[1] + dz * way[2]) / np.float32(way @ way), 0.0, 1.0)
    away = np.sqrt((dx - place * way[0]) ** 2 + (dy - place * way[1]) ** 2 + (dz - place * way[2]) ** 2)
    filled = step(radii[0] + (radii[1] - radii[0]) * place - away, 0.6)
    if within is not None:
        filled = filled * within[box]
    volume[box] += (np.float32(hu) - volume[box]) * filled
