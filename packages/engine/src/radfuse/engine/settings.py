"""Settings that every modality has under ``prepare.<name>`` and ``train.<name>`` of params.yaml.

A modality's own settings are a subclass; whatever stands in params.yaml and in no class is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class Settings(BaseModel):
    """A block of params.yaml: unknown keys are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PrepareSettings(Settings):
    """How images of one modality become arrays; `Modality.preprocessing` makes the exact recipe of it."""


class Stage(Settings):
    """A stretch of the training in which some layers learn.

    Attributes:
        name: as in file names and reports.
        epochs: how many it lasts; the last stage ends with the training.
        layers: groups of `Modality.layer_groups` that learn; all of them when empty. Frozen batch norms stay
            in evaluation mode.
        learning_rate: the highest of its schedule, for every group that learns.
        learning_rates: for single groups, where another one is wanted.
    """

    name: str
    epochs: PositiveInt
    layers: tuple[str, ...] = ()
    learning_rate: PositiveFloat
    learning_rates: dict[str, PositiveFloat] = Field(default_factory=dict)


class TrainSettings(Settings):
    """How a network of one modality is trained; each of these numbers changes the result.

    Attributes:
        stages: what learns when.
        batch_size: samples a step.
        schedule: the learning rate's way through each stage.
        weight_decay: of AdamW.
        dropout: before the last layer, where the network has one.
        class_weights: weigh the rarer class up in the loss, by the training split's counts.
        early_stopping: end after this many epochs without a better metric; 0 never.
        ema_decay: average the weights over time, and validate and keep the average; 0 for none.
        clip_gradient: longest gradient of a step; 0 for no limit.
        augment: change training images at random.
        weights: a local file with weights to begin from; None for random ones. List it among the deps of
            dvc.yaml's training stage, so that its content is followed.
        continue_from: a checkpoint of ours to go on from, recorded as the parent.
        keep_last: periodic checkpoints that stay.
        save_every: epochs between them.
    """

    stages: tuple[Stage, ...]
    batch_size: PositiveInt = 16
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    class_weights: bool = True
    early_stopping: int = Field(default=0, ge=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    clip_gradient: float = Field(default=1.0, ge=0)
    augment: bool = True
    weights: Path | None = None
    continue_from: Path | None = None
    keep_last: PositiveInt = 3
    save_every: PositiveInt = 5

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages)
