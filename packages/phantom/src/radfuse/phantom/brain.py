"""MR volumes of a brain with a tumour, without skull: four sequences and the segmentation, as in BraTS.

Coordinates are the patient's, in mm: x to the left, y to the back, z to the head, origin in the middle of the
brain. Volumes are (X, Y, Z) along them, as NIfTI files hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from radfuse.phantom.shapes import Picture, clouds, step

SEQUENCES = ("flair", "t1", "t1ce", "t2")
BACKGROUND, NECROSIS, OEDEMA, ENHANCING = 0, 1, 2, 4
"""Labels of BraTS up to 2020."""

_HALF_AXES = (66.0, 82.0, 62.0)
_FIELD = (148.0, 180.0, 140.0)
"""Extent of the volume along x, y, z, mm."""

_TISSUES = ("white", "grey", "fluid", "oedema", "necrosis", "enhancing")
_BRIGHTNESS = {
    "t1": (760.0, 500.0, 200.0, 470.0, 310.0, 500.0),
    "t1ce": (770.0, 520.0, 210.0, 480.0, 300.0, 1080.0),
    "t2": (320.0, 480.0, 950.0, 780.0, 820.0, 600.0),
    "flair": (400.0, 540.0, 130.0, 920.0, 400.0, 700.0),
}
"""Of each tissue in each sequence, in the order of `_TISSUES`."""


@dataclass(frozen=True)
class Space:
    """Where the voxels of a case are.

    Attributes:
        x, y, z: coordinates in mm, shaped to broadcast to (X, Y, Z).
        spacing_mm: along x, y, z.
    """

    x: Picture
    y: Picture
    z: Picture
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, longest: int, thicker: float) -> Space:
        """A space with `longest` voxels along y, slices thicker than their pixels by a factor."""
        pixel = round(_FIELD[1] / longest, 3)
        spacing = (pixel, pixel, round(pixel * thicker, 3))
        axes = []
        for at, (extent, step_mm) in enumerate(zip(_FIELD, spacing, strict=True)):
            count = round(extent / step_mm)
            places = ((np.arange(count) - (count - 1) / 2) * step_mm).astype(np.float32)
            axes.append(places.reshape([-1 if other == at else 1 for other in range(3)]))
        return cls(axes[0], axes[1], axes[2], spacing)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        return self.x.size, self.y.size, self.z.size

    @property
    def affine(self) -> NDArray[np.float64]:
        """From voxel index to NIfTI's RAS mm, (4, 4)."""
        first = (-float(self.x.flat[0]), -float(self.y.flat[0]), float(self.z.flat[0]))
        matrix = np.diag([-self.spacing_mm[0], -self.spacing_mm[1], self.spacing_mm[2], 1.0])
        matrix[:3, 3] = first
        return matrix


@dataclass(frozen=True)
class Brain:
    """A brain without its tumour.

    Attributes:
        inside: what belongs to the brain, (X, Y, Z).
        tissues: shares of white matter, grey matter and fluid, (3, X, Y, Z).
    """

    inside: NDArray[np.bool_]
    tissues: Picture


def anatomy(space: Space, rng: np.random.Generator) -> Brain:
    """Draw a brain: folded cortex, fissure, ventricles, cerebellum.

    Args:
        space: where the voxels are.
        rng: of the patient.
    """
    x, y, z = space.x, space.y, space.z
    cerebellum = np.sqrt((x / 50.0) ** 2 + ((y - 45.0) / 34.0) ** 2 + ((z + 44.0) / 24.0) ** 2)
    depth = _depth(space, rng)
    folds = clouds(rng, space.shape, 0.09)
    fissure = np.abs(x) - 1.5 - 2.0 * (np.abs(folds) < 0.3)
    shell = np.minimum(depth, np.where(z > 0, fissure + 2.0, 99.0))
    sulci = step(4.5 * np.abs(folds) + 0.55 * shell - 2.4, 0.8)
    ventricles = _ventricles(space, rng)
    fluid = np.maximum(np.maximum(1.0 - sulci, ventricles), 0.9 * (fissure < 0) * (z > 0))
    fluid = np.where((cerebellum < 0.98) & (ventricles < 0.5), 0.0, fluid)
    leaves = 0.5 + 0.5 * np.sin(z * np.float32(1.1) + 0.05 * y)
    white = np.where(cerebellum < 0.92, 0.25 + 0.5 * leaves, step(shell - 8.0 - 5.0 * folds, 1.0))
    white = white * (1.0 - fluid)
    tissues = np.stack([white, 1.0 - white - fluid, fluid]).astype(np.float32)
    return Brain(np.asarray((depth > 0) | (cerebellum < 1.0)), tissues)


def _depth(space: Space, rng: np.random.Generator) -> Picture:
    """Distance into the cerebrum, mm: a rounded box, flat underneath."""
    axes = zip((space.x, space.y, space.z), _HALF_AXES, strict=True)
    powers = [(np.abs(axis) / np.float32(half * rng.uniform(0.96, 1.04))) ** 2.3 for axis, half in axes]
    radius = (powers[0] + powers[1] + powers[2]) ** np.float32(1 / 2.3)
    floor = space.z + 42.0 + 0.10 * np.abs(space.y)
    return np.asarray(np.minimum((1.0 - radius) * 64.0, floor), np.float32)


def _ventricles(space: Space, rng: np.random.Generator) -> Picture:
    width = rng.uniform(0.8, 1.3)
    drawn = np.zeros(space.shape, np.float32)
    for side in (-1.0, 1.0):
        bow = space.x * side - 9.0 - 0.006 * (space.y - 5.0) ** 2
        body = (bow / (6.5 * width)) ** 2 + ((space.y - 2.0) / 38.0) ** 2
        body = body + ((space.z - 8.0 + 0.004 * space.y**2) / 9.0) ** 2
        np.maximum(drawn, step((1.0 - np.sqrt(body)) * 7.0, 0.8), out=drawn)
    third = np.sqrt((space.x / 2.5) ** 2 + (space.y / 14.0) ** 2 + ((space.z + 8.0) / 11.0) ** 2)
    return np.maximum(drawn, step((1.0 - third) * 3.0, 0.8))


def tumour(
    space: Space, brain: Brain, volumes_cm3: Mapping[str, float], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The segmentation, (X, Y, Z), with the labels of BraTS.

    Each region takes the voxels nearest to a centre of its own, by a distance that is bent at random, until
    it has its volume: so the volumes are exact to one voxel, whatever the shape. The core lies off the middle
    of the oedema and the necrosis off the middle of the core, so that the enhancing rim is thick on one side.

    Args:
        space: where the voxels are.
        brain: what the tumour may fill.
        volumes_cm3: of the three nested regions.
        rng: of the patient.
    """
    voxel_cm3 = float(np.prod(space.spacing_mm)) / 1000.0
    side = rng.choice([-1.0, 1.0])
    centre = np.array([side * rng.uniform(26.0, 36.0), rng.uniform(-26.0, 22.0), rng.uniform(-4.0, 20.0)])
    free = brain.inside & (brain.tissues[2] < 0.6)
    labels = np.zeros(space.shape, np.uint8)
    necrosis_cm3 = volumes_cm3["tumour_core"] - volumes_cm3["enhancing_tumour"]
    for label, volume, rough in (
        (OEDEMA, volumes_cm3["whole_tumour"], 0.22),
        (ENHANCING, volumes_cm3["tumour_core"], 0.14),
        (NECROSIS, necrosis_cm3, 0.10),
    ):
        away = _bent_distance(space, centre, rough, rng)
        count = min(max(1, round(volume / voxel_cm3)), int(free.sum()))
        places = np.flatnonzero(free)
        nearest = places[np.argsort(away.ravel()[places], kind="stable")[:count]]
        free = np.zeros(space.shape, bool)
        free.ravel()[nearest] = True
        labels[free] = label
        heading = rng.normal(size=3)
        radius = (volume * 1000.0 * 3 / (4 * np.pi)) ** (1 / 3)
        centre = centre + 0.30 * radius * heading / np.linalg.norm(heading)
    return labels


def _bent_distance(
    space: Space, centre: NDArray[np.float64], rough: float, rng: np.random.Generator
) -> Picture:
    stretch = np.exp(rng.normal(0.0, 0.12, 3))
    squares = [
        ((axis - np.float32(centre[at])) * np.float32(stretch[at])) ** 2
        for at, axis in enumerate((space.x, space.y, space.z))
    ]
    distance = np.sqrt(squares[0] + squares[1] + squares[2])
    bent = 1.0 + rough * clouds(rng, space.shape, 0.16)
    return np.asarray(distance * np.clip(bent, 0.4, 1.8), np.float32)


def sequences(
    brain: Brain, labels: NDArray[np.uint8], rng: np.random.Generator, noise: float = 0.045
) -> dict[str, NDArray[np.int16]]:
    """The four sequences, (X, Y, Z) each: tissue contrast, a bias field, noise; 0 outside the brain.

    Args:
        brain: the anatomy.
        labels: the tumour.
        rng: of this examination.
        noise: deviation over the brightness of white matter.
    """
    parts = [_smooth(labels == label) for label in (OEDEMA, NECROSIS, ENHANCING)]
    healthy = np.clip(1.0 - parts[0] - parts[1] - parts[2], 0.0, 1.0)
    shares = [*(brain.tissues * healthy), *parts]
    volumes = {}
    for name in SEQUENCES:
        clean = sum(share * np.float32(level) for share, level in zip(shares, _BRIGHTNESS[name], strict=True))
        texture = 1.0 + 0.05 * clouds(rng, labels.shape, 0.05)
        bias = 1.0 + 0.06 * clouds(rng, labels.shape, 0.6)
        grain = rng.standard_normal(labels.shape, dtype=np.float32) * np.float32(noise * 700.0)
        gain = rng.uniform(0.7, 1.4)
        volume = np.clip(gain * (clean * texture * bias + grain), 1.0, 32_000.0)
        volumes[name] = np.where(brain.inside, volume, 0.0).round().astype(np.int16)
    return volumes


def _smooth(region: NDArray[np.bool_]) -> Picture:
    """Share of each voxel that a region fills, blurred as by the scanner."""
    return np.asarray(ndimage.gaussian_filter(region.astype(np.float32), 0.55), np.float32)
