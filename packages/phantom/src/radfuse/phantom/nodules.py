"""Nodules of the lung: small, round and smooth, or the more severe the larger, denser and more spiculated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radfuse.phantom.chest_volume import LUNG, Chest, Grid
from radfuse.phantom.shapes import Picture, step

SPIKES = 16
FINER = 4
"""How much finer than the slices a nodule is drawn along z: thick slices blur it as a scanner's do."""


@dataclass(frozen=True)
class Nodule:
    """One nodule.

    Attributes:
        centre: (x, y, z), mm in patient coordinates.
        diameter_mm: without its spikes.
        spikes: their length over the radius.
        density: of its tissue, from 0 (like lung) to 1 (like muscle).
        directions: unit vectors of the spikes, (SPIKES, 3).
    """

    centre: tuple[float, float, float]
    diameter_mm: float
    spikes: float
    density: float
    directions: Picture


def nodule(severity: float, centre: Sequence[float], rng: np.random.Generator) -> Nodule:
    """The nodule of a severity: each of its features follows it, with a little scatter of its own."""
    strong = strength(severity)
    directions = rng.normal(size=(SPIKES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Nodule(
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        diameter_mm=float(diameter(severity) * np.exp(rng.normal(0.0, 0.03))),
        spikes=max(0.0, 0.95 * strong + float(rng.normal(0.0, 0.03))),
        density=0.62 + 0.42 * strong + float(rng.normal(0.0, 0.02)),
        directions=directions.astype(np.float32),
    )


def strength(severity: float) -> float:
    """Visible strength, 0 to 1, of a severity; steepest where the sick and the healthy overlap."""
    return float(1.0 / (1.0 + np.exp(-(severity - 0.7) / 0.9)))


def diameter(severity: float) -> float:
    """Typical diameter, mm, of a nodule of that severity."""
    return float(9.0 * (27.0 / 9.0) ** strength(severity))


def places(
    chest: Chest, severities: Sequence[float], heights_mm: tuple[float, float], rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Centres in the lungs, clear of walls and of each other, as (x, y, z) in mm.

    Args:
        chest: the patient's.
        severities: one a nodule; the larger the nodule, the more room it gets.
        heights_mm: lowest and highest z.
        rng: of the patient, not of the series: nodules stay where they are.
    """
    x, y, z = np.meshgrid(
        np.arange(-128.0, 129.0, 4.0), np.arange(-88.0, 89.0, 4.0), np.arange(*heights_mm, 4.0), indexing="ij"
    )
    room = chest.lungs(x.astype(np.float32), y.astype(np.float32), z.astype(np.float32)).ravel()
    points = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    taken: list[tuple[float, float, float]] = []
    for severity in severities:
        wanted = 0.5 * diameter(severity) * (1.0 + 0.5 * strength(severity)) + 6.0
        apart = [np.linalg.norm(points - other, axis=1) > 46.0 for other in taken]
        free = np.flatnonzero(np.all([room > wanted, *apart], axis=0))
        if free.size == 0:
            free = np.argsort(room)[-50:]
        point = points[rng.choice(free)] + rng.uniform(-1.5, 1.5, 3)
        taken.append((round(float(point[0]), 2), round(float(point[1]), 2), round(float(point[2]), 2)))
    return taken


def draw(volume: Picture, grid: Grid, nodule: Nodule, rng: np.random.Generator) -> None:
    """Put a nodule into a volume in Hounsfield units, (D, H, W)."""
    centre = np.asarray(nodule.centre)
    radius = 0.5 * nodule.diameter_mm
    reach = radius * (1.1 + nodule.spikes) + 3.0
    box = grid.box(centre - reach, centre + reach)
    z = grid.z[box[0]]
    thick = float(grid.z[1] - grid.z[0])
    finer = (z[:, None] + thick * (np.arange(FINER) + 0.5 - FINER / 2) / FINER).ravel()
    filled = _filled(
        grid.x[box[2]][None, None, :] - np.float32(centre[0]),
        grid.y[box[1]][None, :, None] - np.float32(centre[1]),
        (finer - centre[2]).astype(np.float32)[:, None, None],
        nodule,
    )
    filled = filled.reshape(z.size, FINER, *filled.shape[1:]).mean(axis=1)
    tissue = LUNG + (60.0 - LUNG) * nodule.density
    uneven = 18.0 * rng.standard_normal(filled.shape, dtype=np.float32)
    patch = volume[box]
    volume[box] = patch + np.clip(np.float32(tissue) + uneven - patch, 0.0, None) * filled


def _filled(dx: Picture, dy: Picture, dz: Picture, nodule: Nodule) -> Picture:
    """Share of each voxel that the nodule fills: a ball, and cones along the directions of its spikes."""
    radius = np.float32(0.5 * nodule.diameter_mm)
    away = np.sqrt(dx * dx + dy * dy + dz * dz) + np.float32(1e-3)
    edge = np.full(away.shape, radius)
    for spike in nodule.directions:
        cosine = (dx * spike[0] + dy * spike[1] + dz * spike[2]) / away
        edge += radius * np.float32(nodule.spikes) * np.exp(np.float32(50.0) * (cosine - 1.0))
    return step(np.minimum(edge, radius * np.float32(1.0 + nodule.spikes)) - away, 0.5)
