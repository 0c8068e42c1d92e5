"""Chest radiographs as a modality of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from radfuse.engine.modality import Modality
from radfuse.engine.settings import PrepareSettings, TrainSettings
from radfuse.xray.settings import XrayPrepareSettings, XrayTrainSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from radfuse.engine.training.tasks import Task


class XrayModality(Modality):
    """Frontal chest radiographs, any number of findings."""

    name: ClassVar[str] = "xray"
    title: ClassVar[str] = "Chest radiograph"
    model_name: ClassVar[str] = "resnet50"
    prepare_settings: ClassVar[type[PrepareSettings]] = XrayPrepareSettings
    train_settings: ClassVar[type[TrainSettings]] = XrayTrainSettings

    def preprocessing(self, settings: XrayPrepareSettings) -> dict[str, Any]:
        return {"kind": "radiograph", "size": list(settings.size)}

    def task(self, prepare: XrayPrepareSettings, labels: Sequence[str]) -> Task:
        from radfuse.engine.training.tasks import ClassificationTask

        return ClassificationTask(labels)

    def network(self, prepare: XrayPrepareSettings, train: XrayTrainSettings, outputs: int) -> nn.Module:
        from radfuse.xray.network import resnet50

        return resnet50(outputs, train.dropout)

    def normalisation(self, prepare: XrayPrepareSettings) -> nn.Module:
        from radfuse.xray.network import Normalise

        return Normalise()

    def layer_groups(self, network: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        from radfuse.engine.training.resnets import layer_groups

        return layer_groups(network)

    def augment(
        self, image: Tensor, mask: Tensor | None, random: np.random.Generator, train: XrayTrainSettings
    ) -> tuple[Tensor, Tensor | None]:
        from radfuse.xray.augmentation import augmented

        return augmented(image, random), mask

    def translate_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of torchvision's or timm's ResNet-50 under our names."""
        from radfuse.xray.network import translate_weights

        return translate_weights(weights)
