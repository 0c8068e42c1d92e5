"""A network over a volume that is larger than its window, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP = 16
"""Spatial sizes that a U-Net with four halvings takes are multiples of this."""
_SIGMA = 0.125
"""Width of the weights, as a part of the window."""
_SMALLEST_WEIGHT = 1e-3
_SMALLEST_PROBABILITY = 1e-30

Network = Callable[["NDArray[np.float32]"], "NDArray[np.float32]"]
"""(1, C, *window) to probabilities (1, classes, *window)."""


def label_map(
    volume: NDArray[np.generic], network: Network, window: Sequence[int], overlap: float
) -> NDArray[np.uint8]:
    """The most probable class of each voxel.

    Windows overlap and are weighted by a Gaussian about their middle, where a network sees most around a
    voxel. It is the logarithms of probabilities that are averaged: for the choice of a class that is the same
    as averaging logits, as training does when it validates.

    Only one window and the sums of the answers (classes + 1 numbers a voxel) are in memory beside the volume.

    Args:
        volume: (C, D, H, W) as the network takes it; any floating type.
        network: answers for one window.
        window: (D, H, W); a smaller volume is filled up with zeros on both sides.
        overlap: of neighbouring windows, 0 to below 1.

    Returns:
        (D, H, W).
    """
    size = volume.shape[1:]
    before = [max(length - has, 0) // 2 for length, has in zip(window, size, strict=True)]
    whole = [max(length, has) for length, has in zip(window, size, strict=True)]
    margins = [(b, n - b - has) for b, n, has in zip(before, whole, size, strict=True)]
    filled = np.pad(volume, [(0, 0), *margins]) if any(map(any, margins)) else volume
    weights = gaussian(window)
    sums: NDArray[np.float32] | None = None
    for box in windows(whole, window, overlap):
        part = np.ascontiguousarray(filled[(slice(None), *box)], np.float32)
        answer = network(part[None])[0]
        if sums is None:
            sums = np.zeros((len(answer), *whole), np.float32)
        # The sum of the weights is the same for every class, so the largest sum needs no division by it.
        sums[(slice(None), *box)] += np.log(np.maximum(answer, _SMALLEST_PROBABILITY)) * weights
    if sums is None:
        raise ValueError("a volume without voxels has no windows")
    inner = tuple(slice(b, b + has) for b, has in zip(before, size, strict=True))
    most: NDArray[np.uint8] = sums[(slice(None), *inner)].argmax(axis=0).astype(np.uint8)
    return most


def windows(size: Sequence[int], window: Sequence[int], overlap: float) -> Iterator[tuple[slice, ...]]:
    """Boxes that cover a volume, row by row.

    Args:
        size: (D, H, W) of the volume, nowhere less than the window.
        window: (D, H, W).
        overlap: of neighbours; the last ones of a row overlap more.
    """
    starts = []
    for length, extent in zip(size, window, strict=True):
        step = max(1, int(extent * (1 - overlap))) if length > extent else extent
        starts.append(
            sorted({min(start, length - extent) for start in range(0, length - extent + step, step)})
        )
    for corner in product(*starts):
        yield tuple(slice(start, start + extent) for start, extent in zip(corner, window, strict=True))


def gaussian(window: Sequence[int]) -> NDArray[np.float32]:
    """Weights of a window's voxels: 1 in the middle, nowhere 0."""
    weights = np.ones((1,) * len(window))
    for axis, length in enumerate(window):
        place = np.arange(length) - (length - 1) / 2
        along = np.exp(-(place**2) / (2 * (_SIGMA * length) ** 2))
        weights = weights * along.reshape([-1 if other == axis else 1 for other in range(len(window))])
    return np.maximum(weights, _SMALLEST_WEIGHT).astype(np.float32)


def rounded_up(lengths: Sequence[int], step: int = STEP) -> tuple[int, ...]:
    """Each length, or the next multiple of the step."""
    return tuple(-(-length // step) * step for length in lengths)
