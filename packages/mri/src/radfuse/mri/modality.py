"""MR volumes as a modality of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from radfuse.engine.modality import Modality
from radfuse.engine.settings import PrepareSettings, TrainSettings
from radfuse.mri.settings import MriPrepareSettings, MriTrainSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from radfuse.engine.training.tasks import Task

BRATS_CLASSES = ("core", "oedema", "enhancing")
BRATS_REGIONS = {"whole_tumour": (1, 2, 3), "tumour_core": (1, 3), "enhancing_tumour": (3,)}
"""Nested regions over the class indices 1 necrotic core, 2 oedema, 3 enhancing tumour.

Source: Bakas et al., arXiv 1811.02629.
"""


class MriModality(Modality):
    """MR volumes of one or more sequences with structures to outline."""

    name: ClassVar[str] = "mri"
    title: ClassVar[str] = "MR segmentation"
    model_name: ClassVar[str] = "unet"
    prepare_settings: ClassVar[type[PrepareSettings]] = MriPrepareSettings
    train_settings: ClassVar[type[TrainSettings]] = MriTrainSettings

    def preprocessing(self, settings: MriPrepareSettings) -> dict[str, Any]:
        return {
            "kind": "mr_volume",
            "sequences": list(settings.sequences),
            "spacing_mm": None if settings.spacing_mm is None else list(settings.spacing_mm),
            "size": None if settings.size is None else list(settings.size),
            "crop_to_brain": settings.crop_to_brain,
        }

    def task(self, prepare: MriPrepareSettings, labels: Sequence[str]) -> Task:
        """Segmentation.

        Args:
            prepare: ``prepare.mri`` of params.yaml.
            labels: names of the classes, the background first.
        """
        from radfuse.engine.training.tasks import SegmentationTask

        regions: Mapping[str, Sequence[int]] | None = prepare.regions
        if regions is None and tuple(labels[1:]) == BRATS_CLASSES:
            regions = BRATS_REGIONS
        if regions is None:
            regions = {name: (index,) for index, name in enumerate(labels) if index}
        return SegmentationTask(labels, regions)

    def network(self, prepare: MriPrepareSettings, train: MriTrainSettings, outputs: int) -> nn.Module:
        from radfuse.mri.network import unet

        return unet(len(prepare.sequences), outputs, train.dropout)

    def normalisation(self, prepare: MriPrepareSettings) -> nn.Module:
        from torch import nn

        return nn.Identity()

    def layer_groups(self, network: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        from radfuse.mri.network import layer_groups

        return layer_groups(network)

    def augment(
        self, image: Tensor, mask: Tensor | None, random: np.random.Generator, train: MriTrainSettings
    ) -> tuple[Tensor, Tensor | None]:
        from radfuse.mri.augmentation import augmented

        return augmented(image, mask, random)
