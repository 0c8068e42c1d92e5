"""Stages of a training: which layers learn when, and how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from radfuse.engine.errors import SettingsError, did_you_mean
from radfuse.engine.settings import Stage, TrainSettings
from radfuse.engine.training.schedules import Schedule, factor

_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Plan:
    """The stages of a training on a line of epochs and steps.

    Attributes:
        stages: in their order.
        groups: names of the network's layer groups, from input to output.
        schedule: the learning rate's way through each stage.
        steps_per_epoch: optimizer steps of an epoch.
    """

    stages: tuple[Stage, ...]
    groups: tuple[str, ...]
    schedule: Schedule
    steps_per_epoch: int

    def __post_init__(self) -> None:
        for number, stage in enumerate(self.stages):
            for name in (*stage.layers, *stage.learning_rates):
                if name not in self.groups:
                    raise SettingsError(
                        f"stage {stage.name!r} (number {number + 1}) names the layers {name!r}, which the "
                        f"network does not have{did_you_mean(name, self.groups)}"
                    )
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            raise SettingsError(f"expected stages with different names, got {names or 'none'}.")

    @classmethod
    def of(cls, settings: TrainSettings, groups: Sequence[str], steps_per_epoch: int) -> Plan:
        """The plan of a training's settings.

        Raises:
            SettingsError: a stage names layers that the network does not have, or two stages have one name.
        """
        return cls(settings.stages, tuple(groups), settings.schedule, steps_per_epoch)

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages)

    def at(self, epoch: int) -> tuple[int, Stage]:
        """Number, from 0, and stage of an epoch; the last stage for what comes after it."""
        for number, stage in enumerate(self.stages):
            if epoch < self.begin(number) + stage.epochs:
                return number, stage
        return len(self.stages) - 1, self.stages[-1]

    def begin(self, number: int) -> int:
        """The first epoch of a stage."""
        return sum(stage.epochs for stage in self.stages[:number])

    def ends_with(self, epoch: int) -> bool:
        """Whether an epoch is the last of its stage."""
        number, stage = self.at(epoch)
        return epoch + 1 == self.begin(number) + stage.epochs

    def learning(self, stage: Stage) -> tuple[str, ...]:
        """The layer groups that learn in a stage."""
        return tuple(name for name in self.groups if not stage.layers or name in stage.layers)

    def learning_rate(self, step: int, group: str) -> float:
        """The learning rate of a layer group at a global step; 0 where it does not learn."""
        number, stage = self.at(step // self.steps_per_epoch)
        if group not in self.learning(stage):
            return 0.0
        highest = stage.learning_rates.get(group, stage.learning_rate)
        inside = step - self.begin(number) * self.steps_per_epoch
        return highest * factor(self.schedule, inside, stage.epochs * self.steps_per_epoch)


def enter(stage: Stage, plan: Plan, groups: Mapping[str, Sequence[nn.Module]]) -> int:
    """Let the layers of a stage learn and no others.

    Args:
        stage: the stage that begins, or goes on.
        plan: the stages.
        groups: the network's layer groups.

    Returns:
        How many parameters learn.
    """
    learning = plan.learning(stage)
    count = 0
    for name, layers in groups.items():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.requires_grad_(name in learning)
                # A gradient that an earlier stage left would go on moving its parameter.
                parameter.grad = None
                count += parameter.numel() if name in learning else 0
    return count


def training_mode(
    network: nn.Module, groups: Mapping[str, Sequence[nn.Module]], learning: Sequence[str]
) -> None:
    """Set a network to training, but batch norms of layers that do not learn: their statistics must stay."""
    network.train()
    for name, layers in groups.items():
        if name in learning:
            continue
        for layer in layers:
            for part in layer.modules():
                if isinstance(part, _NORMS):
                    part.eval()


def parameter_groups(
    groups: Mapping[str, Sequence[nn.Module]], weight_decay: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Parameters for an optimizer, by layer group, without decay for biases and norms.

    Args:
        groups: the network's layer groups.
        weight_decay: of everything else.

    Returns:
        The optimizer's groups, each with the learning rate 1 for a schedule to multiply, and of each the name
        of its layer group.
    """
    made: list[dict[str, Any]] = []
    names: list[str] = []
    for name, layers in groups.items():
        parameters = list({id(p): p for layer in layers for p in layer.parameters()}.values())
        # Biases and the scales of norms are vectors, whatever the layer; shrinking them only slows learning.
        for decay, chosen in (
            (weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                made.append({"params": chosen, "lr": 1.0, "weight_decay": decay})
                names.append(name)
    return made, names


def check_groups(network: nn.Module, groups: Mapping[str, Sequence[nn.Module]]) -> None:
    """Refuse layer groups that do not share out the network.

    Raises:
        SettingsError: naming a parameter that is in no group, or in two.
    """
    owner: dict[int, str] = {}
    for name, layers in groups.items():
        for parameter in {id(p) for layer in layers for p in layer.parameters()}:
            if parameter in owner:
                raise SettingsError(
                    f"layer groups {owner[parameter]!r} and {name!r} share a parameter; expected one each."
                )
            owner[parameter] = name
    lost = [name for name, parameter in network.named_parameters() if id(parameter) not in owner]
    if lost:
        raise SettingsError(
            f"no layer group has the parameter {lost[0]!r} ({len(lost)} in all); expected all of them."
        )
