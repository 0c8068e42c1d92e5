"""What ``prepare.ct`` and ``train.ct`` of params.yaml may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from radfuse.engine.settings import PrepareSettings, Stage
from radfuse.engine.task_settings import ClassificationSettings


class CtPrepareSettings(PrepareSettings):
    """How a nodule becomes an array.

    Attributes:
        size: (D, H, W) voxels of the patch about the nodule.
        spacing_mm: (D, H, W) of the patch's voxels; null keeps those of the file.
        window_hu: Hounsfield units that the network sees; null for files that hold 8-bit values instead.
    """

    size: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 64, 64)
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = (1.0, 1.0, 1.0)
    window_hu: tuple[float, float] | None = (-1000.0, 400.0)


class CtTrainSettings(ClassificationSettings):
    """How the network is trained.

    Attributes:
        stages: what learns when.
        first_stride: of the first convolution. 1 sees every voxel, and a nodule of 5 mm has few; 2 is four
            times as fast and enough for small patches.
        pooling: a patient is as suspicious as the most suspicious nodule.
        shift_voxels: how far a training patch is moved at most, as no point is marked exactly.
    """

    stages: tuple[Stage, ...] = (Stage(name="all", epochs=40, learning_rate=3e-4),)
    first_stride: Literal[1, 2] = 1
    pooling: Literal["mean", "max", "noisy_or"] = "max"
    shift_voxels: int = Field(default=3, ge=0)
