"""A classification and a segmentation, small enough to be exported in seconds, and a model besides them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from radfuse.engine.errors import MissingStage
from radfuse.engine.modality import Modality
from radfuse.engine.places import Places
from radfuse.engine.settings import PrepareSettings, Stage
from radfuse.engine.task_settings import ClassificationSettings, SegmentationSettings
from radfuse.engine.training.tasks import ClassificationTask, SegmentationTask

STAGES = (Stage(name="all", epochs=1, learning_rate=1e-3),)
FEATURES = ("film:Mass", "scan:lesion", "available:film", "available:scan")


class FilmSettings(ClassificationSettings):
    stages: tuple[Stage, ...] = STAGES
    dropout: float = 0.4


class ScanSettings(SegmentationSettings):
    stages: tuple[Stage, ...] = STAGES
    patch_size: tuple[int, int, int] = (32, 32, 32)


class Shift(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (image - 0.4) / 0.3


class Film(Modality):
    name: ClassVar[str] = "film"
    title: ClassVar[str] = "Film"
    model_name: ClassVar[str] = "filmnet"
    prepare_settings = PrepareSettings
    train_settings = FilmSettings

    def preprocessing(self, settings: Any) -> dict[str, Any]:
        return {"kind": "radiograph", "size": [32, 32]}

    def task(self, prepare: Any, labels: Sequence[str]) -> ClassificationTask:
        return ClassificationTask(labels)

    def network(self, prepare: Any, train: Any, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Dropout(train.dropout), nn.Linear(16, outputs),
        )  # fmt: skip

    def normalisation(self, prepare: Any) -> nn.Module:
        return Shift()

    def layer_groups(self, network: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        return {"all": [network]}


class Scan(Modality):
    name: ClassVar[str] = "scan"
    title: ClassVar[str] = "Scan"
    model_name: ClassVar[str] = "scannet"
    prepare_settings = PrepareSettings
    train_settings = ScanSettings

    def preprocessing(self, settings: Any) -> dict[str, Any]:
        names = ["t1", "t2"]
        return {
            "kind": "mr_volume",
            "sequences": names,
            "spacing_mm": None,
            "size": None,
            "crop_to_brain": False,
        }

    def task(self, prepare: Any, labels: Sequence[str]) -> SegmentationTask:
        return SegmentationTask(labels, {"lesion": (1, 2)})

    def network(self, prepare: Any, train: Any, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(2, 4, 4, stride=4),
            nn.InstanceNorm3d(4),
            nn.PReLU(),
            nn.ConvTranspose3d(4, outputs, 4, stride=4),
        )

    def normalisation(self, prepare: Any) -> nn.Module:
        return nn.Identity()

    def layer_groups(self, network: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        return {"all": [network]}


class Fusion(nn.Module):
    """With a part whose name torch's own graph modules use."""

    def __init__(self) -> None:
        super().__init__()
        self.meta = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.meta(features))


@dataclass(frozen=True)
class Described:
    module: nn.Module
    example: Tensor
    card: dict[str, Any]


def fusion(places: Places) -> Described | None:
    """What the pipeline's ``fusion.txt`` says: ``ready``, ``none``, or it is not there."""
    told = places.root / "fusion.txt"
    if not told.is_file():
        raise MissingStage("expected fusion.txt, which is not there; write it first.")
    if told.read_text() == "none":
        return None
    torch.manual_seed(0)
    card = {
        "modality": "fusion", "name": "fusion", "version": "", "model_digest": "3" * 64,
        "split_digest": "5" * 64, "inputs": FEATURES, "preprocessing": {"kind": "features"},
        "task": "features", "labels": ("pneumonia",),
    }  # fmt: skip
    return Described(Fusion().eval(), torch.rand(5, 4), card)


FILM, SCAN = Film(), Scan()
