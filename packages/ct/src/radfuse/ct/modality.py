"""Lung nodules as a modality of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from radfuse.ct.settings import CtPrepareSettings, CtTrainSettings
from radfuse.engine.modality import Modality
from radfuse.engine.settings import PrepareSettings, TrainSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from radfuse.engine.training.tasks import Task


class CtModality(Modality):
    """Patches of chest CT about a nodule."""

    name: ClassVar[str] = "ct"
    title: ClassVar[str] = "CT lung nodule"
    model_name: ClassVar[str] = "3dcnn"
    prepare_settings: ClassVar[type[PrepareSettings]] = CtPrepareSettings
    train_settings: ClassVar[type[TrainSettings]] = CtTrainSettings

    def preprocessing(self, settings: CtPrepareSettings) -> dict[str, Any]:
        return {
            "kind": "ct_patch",
            "size": list(settings.size),
            "spacing_mm": None if settings.spacing_mm is None else list(settings.spacing_mm),
            "window_hu": None if settings.window_hu is None else list(settings.window_hu),
        }

    def task(self, prepare: CtPrepareSettings, labels: Sequence[str]) -> Task:
        from radfuse.engine.training.tasks import ClassificationTask

        return ClassificationTask(labels)

    def network(self, prepare: CtPrepareSettings, train: CtTrainSettings, outputs: int) -> nn.Module:
        from radfuse.ct.network import resnet18

        return resnet18(outputs, train.first_stride, train.dropout)

    def normalisation(self, prepare: CtPrepareSettings) -> nn.Module:
        from radfuse.ct.network import EIGHT_BIT, Scale

        return Scale(*(prepare.window_hu or EIGHT_BIT))

    def layer_groups(self, network: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        from radfuse.engine.training.resnets import layer_groups

        return layer_groups(network)

    def augment(
        self, image: Tensor, mask: Tensor | None, random: np.random.Generator, train: CtTrainSettings
    ) -> tuple[Tensor, Tensor | None]:
        from radfuse.ct.augmentation import augmented

        return augmented(image, random, train.shift_voxels), mask
