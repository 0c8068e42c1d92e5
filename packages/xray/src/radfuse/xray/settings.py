"""What ``prepare.xray`` and ``train.xray`` of params.yaml may say."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from radfuse.engine.settings import PrepareSettings, Stage
from radfuse.engine.task_settings import ClassificationSettings


class XrayPrepareSettings(PrepareSettings):
    """How a radiograph becomes an array.

    Attributes:
        size: (H, W) pixels; the picture keeps its proportions, with black beside it.
    """

    size: tuple[PositiveInt, PositiveInt] = (224, 224)


class XrayTrainSettings(ClassificationSettings):
    """How the network is trained; the defaults are for a full data set and weights of ImageNet.

    Attributes:
        stages: what learns when.
        dropout: in the head, before the last layer.
    """

    stages: tuple[Stage, ...] = (
        Stage(name="head", epochs=2, layers=("head",), learning_rate=1e-3),
        Stage(name="all", epochs=10, learning_rate=1e-4),
    )
    dropout: float = Field(default=0.4, ge=0, lt=1)
