"""Soft-edged shapes and textures that the pictures of all modalities are made of.

Pictures are float32 arrays. A *distance* is positive inside a shape, and in the units of the grid it is
computed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Picture = NDArray[np.float32]


def step(distance: NDArray[np.floating[Any]], softness: float) -> Picture:
    """From 0 well outside (distance < 0) to 1 well inside, over about four times the softness."""
    return np.asarray(
        0.5 * (1.0 + np.tanh(distance.astype(np.float32, copy=False) * np.float32(0.5 / softness))),
        np.float32,
    )


def ellipse(
    x: Picture,
    y: Picture,
    centre: Sequence[float],
    axes: Sequence[float],
    angle: float = 0.0,
    power: float = 2.0,
) -> Picture:
    """About the distance to the edge of an ellipse, or with a higher power of a rounder rectangle.

    Args:
        x: coordinates of the pixels.
        y: coordinates of the pixels.
        centre: (x, y).
        axes: half axes (along x, along y) before turning.
        angle: radians, from x towards y.
        power: 2 for an ellipse.
    """
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = np.abs(dx * cosine + dy * sine) / np.float32(axes[0])
    v = np.abs(dy * cosine - dx * sine) / np.float32(axes[1])
    if power == 2.0:
        radius = np.sqrt(u * u + v * v)
    else:
        radius = (u ** np.float32(power) + v ** np.float32(power)) ** np.float32(1.0 / power)
    return np.asarray((1.0 - radius) * np.float32(min(axes[0], axes[1])), np.float32)


def line(x: Picture, y: Picture, start: Sequence[float], end: Sequence[float], half_width: float) -> Picture:
    """Distance to the edge of a thick line with round ends."""
    # Python's own floats: NumPy's would turn the picture into one of float64.
    along_x, along_y = float(end[0] - start[0]), float(end[1] - start[1])
    from_x, from_y = x - float(start[0]), y - float(start[1])
    place = (from_x * along_x + from_y * along_y) / (along_x**2 + along_y**2)
    place = np.clip(place, 0.0, 1.0)
    away = np.sqrt((from_x - place * along_x) ** 2 + (from_y - place * along_y) ** 2)
    return np.asarray(half_width - away, np.float32)


def clouds(rng: np.random.Generator, shape: Sequence[int], grain: float) -> Picture:
    """Smooth noise, mean 0 and deviation 1.

    Args:
        rng: where it comes from.
        shape: of the picture or volume.
        grain: size of a blot as a share of the picture; the noise does not depend on how many pixels there
            are.
    """
    cells = [max(4, round(2.0 / grain)) for _ in shape]
    coarse = ndimage.gaussian_filter(rng.standard_normal(cells).astype(np.float32), 0.8, mode="reflect")
    coarse = (coarse - coarse.mean()) / coarse.std()
    return resize(coarse, shape)


def resize(picture: Picture, shape: Sequence[int]) -> Picture:
    """Linear interpolation to another number of pixels; the corners keep their values."""
    for axis, (old, new) in enumerate(zip(picture.shape, shape, strict=True)):
        place = np.linspace(0.0, old - 1.0, new)
        low = np.minimum(place.astype(np.intp), max(old - 2, 0))
        high = np.minimum(low + 1, old - 1)
        share = (place - low).astype(np.float32)
        share = share.reshape([-1 if other == axis else 1 for other in range(picture.ndim)])
        picture = picture.take(low, axis) * (1.0 - share) + picture.take(high, axis) * share
    return np.asarray(picture, np.float32)
