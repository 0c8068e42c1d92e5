"""Random changes of a radiograph that leave its findings as they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np

ROTATION_DEGREES = 7.0
SHIFT = 0.05
SCALE = 0.08
CONTRAST = 0.15
BRIGHTNESS = 0.08


def augmented(image: Tensor, random: np.random.Generator) -> Tensor:
    """A radiograph turned, moved, scaled and brightened a little.

    Never mirrored, for the heart lies on the left.

    Args:
        image: (3, H, W), three times the same, 0..1.
        random: of this sample in this epoch.

    Returns:
        (3, H, W) in 0..1.
    """
    turn, right, down, scale, contrast, brightness = random.uniform(-1, 1, size=6)
    angle = math.radians(ROTATION_DEGREES * turn)
    size = 1 + SCALE * scale
    cosine, sine = math.cos(angle) / size, math.sin(angle) / size
    matrix = torch.tensor([[cosine, -sine, SHIFT * right], [sine, cosine, SHIFT * down]], dtype=torch.float32)
    grey = image[None, :1]
    grid = functional.affine_grid(matrix[None], list(grey.shape), align_corners=False)
    moved = functional.grid_sample(grey, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    middle = moved.mean()
    changed = (moved - middle) * (1 + CONTRAST * contrast) + middle + BRIGHTNESS * brightness
    found: Tensor = changed.clamp(0, 1).expand(image.shape)
    return found
