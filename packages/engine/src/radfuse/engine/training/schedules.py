"""The learning rate as a function of where in its stage a training is: nothing to carry or to lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from radfuse.engine.training.stages import Plan

Schedule = Literal["one_cycle", "cosine", "constant"]
_WARM_UP = 0.3
_FIRST = 1 / 25
_LAST = 1e-4


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """The part of the highest learning rate that a step has.

    Args:
        schedule: ``one_cycle``: from a 25th up to the highest in the first 30 % of the stage, and down to
            almost nothing; ``cosine``: down from the highest; ``constant``.
        step: of the stage, from 0.
        steps: in the stage.

    Source: one cycle: Smith and Topin, Super-Convergence, 2018; cosine: Loshchilov and Hutter, SGDR, 2017.
    """
    if schedule == "constant":
        return 1.0
    done = min(step / max(steps - 1, 1), 1.0)
    if schedule == "cosine":
        return _between(1.0, _LAST, done)
    if done < _WARM_UP:
        return _between(_FIRST, 1.0, done / _WARM_UP)
    return _between(1.0, _LAST, (done - _WARM_UP) / (1 - _WARM_UP))


def _between(first: float, last: float, done: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


class Rates:
    """Sets the learning rate of each parameter group of an optimizer by the global step.

    Args:
        optimizer: whose rates are set.
        groups: the layer group that each of its parameter groups belongs to.
        plan: the stages.
    """

    def __init__(self, optimizer: Optimizer, groups: Sequence[str], plan: Plan) -> None:
        self._optimizer = optimizer
        self._groups = tuple(groups)
        self._plan = plan
        self._step = 0

    def set(self, step: int) -> None:
        """Set the rates of a step, whatever came before."""
        self._step = step
        for group, rate in zip(self._optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    @property
    def rates(self) -> list[float]:
        """The rate of each parameter group at the step that was set last."""
        return [self._plan.learning_rate(self._step, name) for name in self._groups]

    def state_dict(self) -> dict[str, Any]:
        """As torch's schedulers have it."""
        return {"last_epoch": self._step, "_last_lr": self.rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the step; the rates follow from it and from the plan at hand."""
        self.set(int(state["last_epoch"]))
