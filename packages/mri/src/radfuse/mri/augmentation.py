"""Random changes of an MR volume and of its segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

CONTRAST = 0.1
BRIGHTNESS = 0.1


def augmented(
    image: Tensor, mask: Tensor | None, random: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """A volume mirrored along any axes, and each sequence brighter or richer in contrast.

    Args:
        image: (C, D, H, W), z-scored, 0 outside the head.
        mask: (D, H, W) class indices.
        random: of this sample in this epoch.
    """
    mirrored = random.random(3) < 0.5
    changes = random.uniform(-1, 1, size=(2, len(image)))
    axes = [axis for axis in range(3) if mirrored[axis]]
    if axes:
        image = torch.flip(image, [axis + 1 for axis in axes])
        mask = None if mask is None else torch.flip(mask, axes)
    scale, shift = (torch.tensor(one, dtype=torch.float32).view(-1, 1, 1, 1) for one in changes)
    # What is outside the head stays exactly 0: that is how the network tells it.
    changed = torch.where(image != 0, image * (1 + CONTRAST * scale) + BRIGHTNESS * shift, image)
    return changed, mask
