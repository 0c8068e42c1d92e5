"""What a training, a prediction and an export need to know of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from radfuse.engine.modality import Modality
    from radfuse.engine.prepared import Prepared

BACKGROUND = "background"


@dataclass(frozen=True)
class Validated:
    """What the validation of one epoch found.

    Attributes:
        metrics: numbers of the history, ``val_loss`` and the task's own metric among them.
        details: the same and more by label or region, for the checkpoint's ``val_metrics``.
        thresholds: best threshold by label, for raw probabilities; empty for segmentation.
    """

    metrics: Mapping[str, float]
    details: Mapping[str, Any]
    thresholds: Mapping[str, float] = field(default_factory=dict)


class Validation(Protocol):
    """Gathers the answers to the validation split, batch after batch."""

    def add(self, logits: Tensor, target: Tensor, rows: pd.DataFrame, loss: float) -> None:
        """Take in one batch.

        Args:
            logits: (B, outputs, ...) of the network.
            target: as `Task.target` gives it, stacked.
            rows: the batch's rows of the prepared table.
            loss: mean loss of the batch.
        """

    def result(self) -> Validated:
        """What was found over all batches."""


class Task(Protocol):
    """What is learnt, and how it is judged.

    Attributes:
        kind: ``classification`` or ``segmentation``.
        names: the labels, or the classes with the background first.
        outputs: channels of the network's output.
        metric: what decides which checkpoint is best; higher is better.
    """

    kind: Literal["classification", "segmentation"]
    metric: str

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, or the classes with the background first."""

    @property
    def outputs(self) -> int:
        """Channels of the network's output."""

    def describe(self) -> dict[str, Any]:
        """Kind and names, as plain values for a checkpoint or a card."""

    def check(self, training: pd.DataFrame, validation: pd.DataFrame) -> None:
        """Refuse splits that nothing can be learnt or judged from.

        Raises:
            SettingsError: saying what is missing.
        """

    def repeats(self, settings: Any) -> int:
        """How often an epoch takes each sample: as many different patches are cut from a volume."""

    def example(
        self, prepared: Prepared, row: pd.Series[Any], random: np.random.Generator | None, settings: Any
    ) -> tuple[np.ndarray[Any, Any], Tensor]:
        """An array, or the part of it to train on, and what is to be learnt from it.

        Args:
            prepared: the arrays.
            row: of the sample.
            random: chooses the part; None for the whole array.
            settings: of the training.
        """

    def target_is_mask(self) -> bool:
        """Whether the target lies on the image's grid, so that it is augmented with it."""

    def class_weights(self, prepared: Prepared, training: pd.DataFrame) -> Tensor:
        """Weights of the loss that lift what is rare in the training split."""

    def loss(self, weights: Tensor | None) -> nn.Module:
        """A module of (logits, target) to the mean loss of the batch.

        Args:
            weights: from `class_weights`; None for none.
        """

    def infer(self, network: nn.Module, image: Tensor, settings: Any) -> Tensor:
        """Logits for whole images, in windows where they are large.

        Args:
            network: from normalised input to logits, in evaluation mode.
            image: (B, C, ...) normalised.
            settings: of the training.
        """

    def validation(self, settings: Any) -> Validation:
        """A fresh gatherer for one epoch."""

    def activation(self) -> nn.Module:
        """From logits to uncalibrated probabilities, as the last part of a graph."""

    def answers(self, logits: Tensor, target: Tensor, rows: pd.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
        """The prediction table's columns for one batch, all but the ids and the calibrated probabilities."""

    def picture(
        self, path: Path, image: Tensor, target: Tensor, logits: Tensor, rows: pd.DataFrame, title: str
    ) -> None:
        """Draw some samples of a batch with what was predicted of them.

        Args:
            path: the PNG to make.
            image: (B, C, ...) as the graph takes it.
            target: as `example` gives it, stacked.
            logits: of the network.
            rows: the batch's rows of the prepared table.
            title: of the picture.
        """


def task_of(modality: Modality, prepare: Any, prepared: Prepared) -> Task:
    """The task of a modality for the samples at hand.

    Args:
        modality: whose.
        prepare: ``prepare.<modality>`` of params.yaml.
        prepared: its arrays. Where they have segmentations, the names of the classes take the labels' place,
            the background first.
    """
    classes: Mapping[int, str] = prepared.classes
    if not classes:
        return modality.task(prepare, prepared.labels)
    return modality.task(
        prepare, [BACKGROUND, *(classes.get(i, f"class {i}") for i in range(1, max(classes) + 1))]
    )
