"""A modality that nothing of the engine knows: tiny pictures with two labels."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from radfuse.engine.modality import Modality
from radfuse.engine.settings import PrepareSettings, Stage
from radfuse.engine.task_settings import ClassificationSettings
from radfuse.engine.training.tasks import ClassificationTask


class ToyPrepareSettings(PrepareSettings):
    size: int = 8


class ToyTrainSettings(ClassificationSettings):
    stages: tuple[Stage, ...] = (Stage(name="all", epochs=2, learning_rate=1e-2),)
    batch_size: int = 4
    dropout: float = 0.3


class ToyModality(Modality):
    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy"
    model_name: ClassVar[str] = "tiny"
    prepare_settings = ToyPrepareSettings
    train_settings = ToyTrainSettings

    def preprocessing(self, settings: ToyPrepareSettings) -> dict[str, Any]:
        return {"kind": "radiograph", "size": [settings.size, settings.size]}

    def task(self, prepare: ToyPrepareSettings, labels: Sequence[str]) -> ClassificationTask:
        return ClassificationTask(labels)

    def network(self, prepare: ToyPrepareSettings, train: ToyTrainSettings, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(train.dropout), nn.Linear(8, outputs)
            ),
        )

    def normalisation(self, prepare: ToyPrepareSettings) -> nn.Module:
        return nn.Identity()

    def layer_groups(self, network: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        return dict(zip(("stem", "body", "head"), ([layer] for layer in network), strict=True))

    def augment(self, image: Tensor, mask: Tensor | None, random: Any, train: ToyTrainSettings) -> Any:
        noise = torch.from_numpy(random.normal(0, 0.02, size=image.shape).astype("float32"))
        return image + noise, mask


MODALITY = ToyModality()
