"""What ``prepare.mri`` and ``train.mri`` of params.yaml may say."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt, field_validator

from radfuse.engine.settings import PrepareSettings, Stage
from radfuse.engine.task_settings import SegmentationSettings, Size

_STEP = 16
"""A volume is halved four times; two voxels are the fewest that an instance norm can learn from."""


class MriPrepareSettings(PrepareSettings):
    """How the sequences of a case become an array.

    Attributes:
        sequences: channels of the network's input, by the names that the source has for them.
        spacing_mm: (D, H, W) of the voxels; null keeps those of the files.
        size: (D, H, W) voxels of every volume; null lets each keep its own.
        crop_to_brain: leave out what is zero around the head.
        regions: class indices by region, as they are reported; null for the nested regions of BraTS where the
            classes are BraTS's, else every class by itself.
    """

    sequences: tuple[str, ...] = ("t1", "t1ce", "t2", "flair")
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    crop_to_brain: bool = False
    regions: dict[str, tuple[PositiveInt, ...]] | None = None


class MriTrainSettings(SegmentationSettings):
    """How the network is trained.

    Attributes:
        stages: what learns when.
        batch_size: patches a step.
        class_weights: off, as the Dice part of the loss makes up for small regions already.
    """

    stages: tuple[Stage, ...] = (Stage(name="all", epochs=100, learning_rate=1e-3),)
    batch_size: PositiveInt = 2
    class_weights: bool = False

    @field_validator("patch_size")
    @classmethod
    def _can_be_halved_four_times(cls, value: Size) -> Size:
        if any(length % _STEP or length < 2 * _STEP for length in value):
            raise ValueError(
                f"expected multiples of {_STEP}, at least {2 * _STEP}, as a patch is halved four times, got "
                f"{list(value)}"
            )
        return value
