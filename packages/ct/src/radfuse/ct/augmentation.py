"""Random changes of a nodule's patch that leave it benign or malignant, as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np


def augmented(patch: Tensor, random: np.random.Generator, shift_voxels: int) -> Tensor:
    """A patch mirrored, turned about the body's axis in quarters, and moved a little.

    Args:
        patch: (1, D, H, W).
        random: of this sample in this epoch.
        shift_voxels: farthest move along each axis; what comes in from outside repeats the edge.

    Returns:
        (1, D, H, W); turned only where H and W are equal.
    """
    mirrored, quarters = random.random(3) < 0.5, int(random.integers(4))
    moves = random.integers(-shift_voxels, shift_voxels + 1, size=3)
    axes = [axis + 1 for axis in range(3) if mirrored[axis]]
    if axes:
        patch = torch.flip(patch, axes)
    if patch.shape[2] == patch.shape[3]:
        patch = torch.rot90(patch, quarters, (2, 3))
    if shift_voxels:
        depth, height, width = patch.shape[1:]
        padded = functional.pad(patch[None], (shift_voxels,) * 6, mode="replicate")[0]
        down, back, right = (shift_voxels + int(move) for move in moves)
        patch = padded[:, down : down + depth, back : back + height, right : right + width]
    return patch
