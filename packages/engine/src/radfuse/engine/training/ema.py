"""Weights averaged over the steps of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_WARM_UP = 10


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential average of a network's weights; its batch norm statistics are the network's own.

    The first averages forget faster: what the weights were at random is soon of no interest.

    Args:
        network: to average.
        decay: share of the average that a step keeps; 0 for no average.
    """
    if not decay:
        return None

    def blend(averages: Any, currents: Any, count: Tensor | int) -> None:
        keep = min(decay, (1 + int(count)) / (_WARM_UP + int(count)))
        torch._foreach_lerp_(averages, currents, 1 - keep)

    return AveragedModel(network, multi_avg_fn=torch.no_grad()(blend))
