"""Settings of the two tasks; a module of its own, so that to check params.yaml does not import torch."""

from __future__ import annotations

from pydantic import Field, PositiveInt, field_validator

from radfuse.engine.settings import TrainSettings
from radfuse.engine.training.pooling import Pooling

Size = tuple[PositiveInt, PositiveInt, PositiveInt]


class ClassificationSettings(TrainSettings):
    """How a classifier is trained.

    Attributes:
        pooling: how the scores of a patient's images become one, before thresholds and F1.
    """

    pooling: Pooling = "mean"

    @field_validator("batch_size")
    @classmethod
    def _is_enough_for_batch_norms(cls, value: int) -> int:
        if value < 2:
            raise ValueError(f"expected at least 2, as no batch norm can learn from one sample, got {value}")
        return value


class SegmentationSettings(TrainSettings):
    """How a segmentation network is trained.

    Attributes:
        patch_size: (D, H, W) voxels that a training step sees of a volume, and the window that goes over
            whole volumes; a volume that is smaller is padded with zeros.
        patches_per_volume: patches of each volume in an epoch.
        foreground: share of the patches that are centred on a voxel of a region; the others lie anywhere.
        overlap: of neighbouring windows.
        windows_at_once: windows in one pass of the network; costs memory.
    """

    patch_size: Size = (96, 96, 96)
    patches_per_volume: PositiveInt = 1
    foreground: float = Field(default=0.67, ge=0, le=1)
    overlap: float = Field(default=0.25, ge=0, lt=1)
    windows_at_once: PositiveInt = 1
