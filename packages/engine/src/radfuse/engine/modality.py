"""What a modality is: the one object that a package registers to be trained, predicted and exported.

A package names its object under the entry-point group ``radfuse.modalities``; nothing of the engine changes
when a modality comes or goes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from radfuse.engine.errors import UnknownModality

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from radfuse.engine.settings import PrepareSettings, TrainSettings
    from radfuse.engine.training.tasks import Task

GROUP = "radfuse.modalities"


class Modality(ABC):
    """A kind of image with its network.

    Attributes:
        name: as in commands, params.yaml and folders: ``xray``.
        title: as in reports: ``Chest radiograph``.
        model_name: the first part of its checkpoints' names in ``saved_models``: ``resnet50``.
        prepare_settings: what ``prepare.<name>`` of params.yaml may say.
        train_settings: what ``train.<name>`` of params.yaml may say.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    model_name: ClassVar[str]
    prepare_settings: ClassVar[type[PrepareSettings]]
    train_settings: ClassVar[type[TrainSettings]]

    @abstractmethod
    def preprocessing(self, settings: Any) -> dict[str, Any]:
        """How a file becomes an input of the network, as `radfuse.serving.preprocess` carries it out.

        Args:
            settings: ``prepare.<name>`` of params.yaml.
        """

    @abstractmethod
    def task(self, prepare: Any, labels: Sequence[str]) -> Task:
        """What is learnt: classification or segmentation.

        Args:
            prepare: ``prepare.<name>`` of params.yaml.
            labels: the labels that the cohort has for this modality.
        """

    @abstractmethod
    def network(self, prepare: Any, train: Any, outputs: int) -> nn.Module:
        """The network, from normalised input to logits, with fresh weights from the current random state.

        Args:
            prepare: ``prepare.<name>`` of params.yaml.
            train: ``train.<name>`` of params.yaml.
            outputs: channels of its output.
        """

    @abstractmethod
    def normalisation(self, prepare: Any) -> nn.Module:
        """From the exported graph's input (B, C, ...) to the network's; it has no parameters that learn."""

    @abstractmethod
    def layer_groups(self, network: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        """Parts of the network by the names that a stage of params.yaml may list, from input to output."""

    def augment(
        self, image: Tensor, mask: Tensor | None, random: np.random.Generator, train: Any
    ) -> tuple[Tensor, Tensor | None]:
        """A training sample changed at random; as it is by default.

        Args:
            image: (C, ...) as the graph takes it.
            mask: (...) class indices, for segmentation.
            random: drawn from by this sample in this epoch alone.
            train: ``train.<name>`` of params.yaml.
        """
        return image, mask


@cache
def modalities() -> dict[str, Modality]:
    """Every installed modality by name."""
    found = {point.name: point.load() for point in entry_points(group=GROUP)}
    return {name: found[name] for name in sorted(found)}


def modality(name: str) -> Modality:
    """The modality of that name.

    Raises:
        UnknownModality: none of that name is installed.
    """
    known = modalities()
    if name not in known:
        raise UnknownModality(name, list(known))
    return known[name]
