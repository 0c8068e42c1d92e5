"""What is exported: one module from an image as the preprocessing leaves it to calibrated probabilities.

A program that runs an export needs no formula of ours: normalisation, calibration and activation are inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from radfuse.engine.errors import RadfuseError

if TYPE_CHECKING:
    from torch import Tensor

INPUT = "input"
OUTPUT = "output"


class StillTraining(RadfuseError):
    """A graph was to be exported with layers in training mode."""


class ExportGraph(nn.Module):
    """Normalisation, network, calibration and activation, one after the other.

    Args:
        normalisation: (B, C, ...) as the preprocessing leaves it, to what the network was trained on.
        network: to logits, (B, labels) or (B, classes, ...).
        calibration: logits to calibrated logits.
        activation: to probabilities.
    """

    def __init__(
        self, normalisation: nn.Module, network: nn.Module, calibration: nn.Module, activation: nn.Module
    ) -> None:
        super().__init__()
        self.normalisation = normalisation
        self.network = network
        self.calibration = calibration
        self.activation = activation

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalisation(image))
        probabilities: Tensor = self.activation(self.calibration(logits))
        return probabilities


class Scaling(nn.Module):
    """Calibrated logits of each label: ``logit / temperature + bias``.

    Args:
        temperatures: one for each label, above 0.
        biases: one for each label.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (temperature); Platt 1999 (bias).
    """

    temperature: Tensor
    bias: Tensor

    def __init__(self, temperatures: Sequence[float], biases: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(list(temperatures), dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(list(biases), dtype=torch.float32))

    def forward(self, logits: Tensor) -> Tensor:
        """(B, labels) to (B, labels)."""
        return logits / self.temperature + self.bias


def require_evaluation(graph: nn.Module) -> None:
    """Refuse a graph whose dropout or batch norms would be exported as they act in training.

    Raises:
        StillTraining: naming the layers.
    """
    training = [name or "the graph itself" for name, layer in graph.named_modules() if layer.training]
    if training:
        more = f" and {len(training) - 3} more" if len(training) > 3 else ""
        raise StillTraining(
            "expected a graph in evaluation mode, got layers in training mode: "
            f"{', '.join(training[:3])}{more}. Call .eval() on the whole graph before the export."
        )
