"""The chest radiograph without its findings: body, lungs, heart, diaphragm, ribs, vessels.

Coordinates: x from -1 to 1 over the width (the patient's left side is at positive x, as films are hung), y
    downwards
from about -1.1 to 1.1. A film holds *attenuation*; the picture is 1 - exp(-attenuation), dense bright.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radfuse.phantom.shapes import Picture, clouds, ellipse, line, step


@dataclass(frozen=True)
class Build:
    """What of the anatomy differs from patient to patient, diseases included.

    Attributes:
        heart: width of the heart over that of the chest.
        lucency: how black the lungs are, 0 to 1.
        flattening: of the diaphragm, 0 (domes) to 1 (flat and low).
        left_rise: how far the left half of the diaphragm stands up.
        markings: strength of the vessels in the lungs.
        breasts: strength of their shadows.
        fat: how much tissue lies over everything.
    """

    heart: float = 0.47
    lucency: float = 0.3
    flattening: float = 0.0
    left_rise: float = 0.0
    markings: float = 1.0
    breasts: float = 0.0
    fat: float = 0.5


@dataclass
class Film:
    """A radiograph that is being drawn.

    Attributes:
        x, y: coordinates of the pixels, (H, W).
        right, left: lung fields from 0 to 1, (H, W); the patient's right lung is at negative x.
        attenuation: drawn so far, (H, W).
        domes: y of the top of the diaphragm (right, left).
    """

    x: Picture
    y: Picture
    right: Picture
    left: Picture
    attenuation: Picture
    domes: tuple[float, float]

    @property
    def lungs(self) -> Picture:
        """Both lung fields."""
        return self.right + self.left


def coordinates(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Picture, Picture]:
    """Pixel coordinates (x, y) of a patient who stands a little shifted, turned and nearer or farther."""
    turn, scale = rng.normal(0.0, 0.02), rng.normal(1.02, 0.025)
    shift_x, shift_y = rng.normal(0.0, 0.025, 2)
    rows = np.linspace(-1.1, 1.1, shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1.0, 1.0, shape[1], dtype=np.float32)[None, :]
    x = scale * (columns * np.cos(turn) + rows * np.sin(turn)) + shift_x
    y = scale * (rows * np.cos(turn) - columns * np.sin(turn)) + shift_y
    return np.asarray(x, np.float32), np.asarray(y, np.float32)


def draw(shape: tuple[int, int], build: Build, rng: np.random.Generator) -> Film:
    """Draw a chest.

    Args:
        shape: (H, W) in pixels.
        build: the patient's.
        rng: of this exposure; what does not matter differs by it.
    """
    x, y = coordinates(shape, rng)
    domes = (0.60 + 0.20 * build.flattening, 0.66 + 0.16 * build.flattening - 0.30 * build.left_rise)
    right = _lung(x, y, -1.0, domes[0], build.flattening)
    left = _lung(x, y, 1.0, domes[1], build.flattening)
    body = _body(x, y)
    lungs = right + left
    air = 0.72 + 0.34 * build.lucency
    attenuation = body * (0.95 + 0.25 * build.fat) * (1.0 - air * lungs)
    attenuation += 0.55 * body * step(y - _dome_line(x, domes, build.flattening), 0.02) * (1 - lungs)
    film = Film(x, y, right, left, np.asarray(attenuation, np.float32), domes)
    _middle(film, build)
    _bones(film, rng)
    _vessels(film, build.markings, rng)
    _soft_parts(film, build)
    film.attenuation *= 1.0 + 0.03 * clouds(rng, shape, 0.5)
    return film


def _body(x: Picture, y: Picture) -> Picture:
    trunk = ellipse(x, y, (0.0, 0.55), (1.02, 1.75), power=3.5)
    neck = ellipse(x, y, (0.0, -1.1), (0.30, 0.65), power=3.0)
    shoulders = ellipse(x, y, (0.0, -0.20), (1.30, 0.78), power=2.6)
    return step(np.maximum(np.maximum(trunk, neck), shoulders), 0.02)


def _dome_line(x: Picture, domes: tuple[float, float], flattening: float) -> Picture:
    centre = np.where(x < 0, np.float32(domes[0]), np.float32(domes[1]))
    curvature = np.float32(1.15 - 0.95 * flattening)
    return np.asarray(centre + curvature * (np.abs(x) - 0.40) ** 2, np.float32)


def _lung(x: Picture, y: Picture, side: float, dome: float, flattening: float) -> Picture:
    """One lung field: a rounded box, narrow at the apex, cut by the diaphragm."""
    outward = x * np.float32(side)
    # Wider towards the base: the box is drawn in coordinates that shrink upwards.
    width = 0.335 + 0.06 * np.tanh(1.6 * (y + 0.25))
    centre = 0.455 + 0.035 * np.tanh(1.6 * (y + 0.25))
    across = (outward - centre) / width
    down = (y - 0.10) / 0.98
    box = 1.0 - (np.abs(across) ** 2.8 + np.abs(down) ** 2.8) ** np.float32(1 / 2.8)
    above = _dome_line(outward, (dome, dome), flattening) - y
    return step(np.minimum(0.33 * box, above).astype(np.float32), 0.012)


def _middle(film: Film, build: Build) -> None:
    """Mediastinum, aortic arch, heart, trachea, spine."""
    x, y = film.x, film.y
    band = step(0.15 + 0.03 * y - np.abs(x), 0.02) * step(y + 1.05, 0.05)
    knob = step(ellipse(x, y, (0.13, -0.33), (0.11, 0.12)), 0.02)
    half = 0.80 * build.heart
    heart = step(
        ellipse(x, y, (0.30 * half + 0.02, film.domes[1] - 0.24), (half, 0.86 * half), 0.45, 2.2), 0.02
    )
    within = np.maximum(np.maximum(band, knob), heart)
    film.attenuation += 0.42 * within * film.lungs + 0.25 * band + 0.32 * heart
    trachea = step(line(x, y, (0.0, -1.1), (0.01, -0.28), 0.045), 0.012)
    film.attenuation -= 0.45 * trachea * (film.lungs < 0.5)
    spine = step(0.075 - np.abs(x), 0.015)
    discs = 0.5 + 0.5 * np.sin(y * np.float32(2 * np.pi / 0.155))
    film.attenuation += spine * (0.10 + 0.10 * np.sqrt(discs))


def _bones(film: Film, rng: np.random.Generator) -> None:
    """Ribs, back ones strong and front ones faint, and collar bones."""
    outward = np.abs(film.x)
    inside = step(0.90 - outward - 0.25 * (film.y < -0.6) * (-film.y - 0.6), 0.02)
    spacing = rng.normal(0.178, 0.004)
    start = -0.80 + rng.normal(0.0, 0.015)
    sag = np.asarray(0.85 * (outward - 0.42) ** 2, np.float32)
    for number in range(9):
        back = film.y - (start + spacing * number + sag - 0.05)
        front = film.y - (start + 0.13 + spacing * number + 0.62 * (0.9 - outward))
        strength = 0.095 if number < 8 else 0.05
        film.attenuation += strength * _rib(back, 0.036) * inside * (outward > 0.06)
        film.attenuation += 0.35 * strength * _rib(front, 0.045) * inside * step(outward - 0.38, 0.05)
    for side in (-1.0, 1.0):
        bone = line(film.x, film.y, (0.14 * side, -0.66), (0.80 * side, -0.84), 0.038)
        film.attenuation += 0.16 * step(bone, 0.012)


def _rib(away: NDArray[np.floating[Any]], half_width: float) -> Picture:
    """A rib seen from the side: its two hard edges are brighter than its middle."""
    inside = step(half_width - np.abs(away), 0.008)
    rim = np.exp(-(((np.abs(away) - 0.8 * half_width) / 0.010) ** 2))
    return np.asarray(0.7 * inside + 0.6 * rim, np.float32)


def _vessels(film: Film, markings: float, rng: np.random.Generator) -> None:
    """Hila, and vessels that leave them, thinner and fainter outwards."""
    added = np.zeros_like(film.attenuation)
    for side in (-1.0, 1.0):
        hilum = (0.19 * side, -0.03 * side)
        blot = ellipse(film.x, film.y, hilum, (0.075, 0.13), -0.3 * side)
        np.maximum(added, 0.26 * step(blot, 0.025), out=added)
        for angle in (np.linspace(-1.35, 1.35, 9) + rng.normal(0.0, 0.08, 9)).tolist():
            root = (hilum[0] + 0.03 * side, hilum[1] + 0.07 * math.sin(angle))
            reach = rng.uniform(0.30, 0.55)
            tip = (root[0] + side * reach * math.cos(angle), root[1] + 1.2 * reach * math.sin(angle))
            # Sagging outwards, as vessels do: a straight line in bent coordinates.
            bent = film.y - 0.25 * rng.normal() * (film.x - root[0]) ** 2
            away = line(film.x, bent, root, tip, 0.0)
            gone = np.sqrt((film.x - root[0]) ** 2 + (film.y - root[1]) ** 2) / reach
            fading = np.clip(1.0 - gone, 0.0, 1.0)
            np.maximum(added, 0.17 * np.exp(-((away / (0.008 + 0.018 * fading)) ** 2)) * fading, out=added)
    film.attenuation += markings * added * film.lungs


def _soft_parts(film: Film, build: Build) -> None:
    for side in (-1.0, 1.0):
        breast = ellipse(film.x, film.y, (0.50 * side, 0.42), (0.34, 0.30))
        film.attenuation += 0.14 * build.breasts * step(breast, 0.03)
    bubble = ellipse(film.x, film.y, (0.36, film.domes[1] + 0.17), (0.13, 0.07))
    film.attenuation -= 0.45 * step(bubble, 0.02)
