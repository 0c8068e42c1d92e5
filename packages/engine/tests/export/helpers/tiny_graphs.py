"""Networks small enough to be exported in a second, of the kinds that the modalities have."""

from __future__ import annotations

import torch
from torch import nn

from radfuse.engine.export.graph import ExportGraph, Scaling


class ChannelNormalisation(nn.Module):
    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean) / 0.225


def classifier(labels: int = 3, seed: int = 0) -> ExportGraph:
    """(B, 3, H, W) to (B, labels), with the layers that act differently in training."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, labels),
    )  # fmt: skip
    network.get_submodule("1").running_mean.uniform_()  # type: ignore[union-attr, operator]
    temperatures = [1 + index / 2 for index in range(labels)]
    return ExportGraph(
        ChannelNormalisation(), network, Scaling(temperatures, [0.1] * labels), nn.Sigmoid()
    ).eval()


def segmenter(channels: int = 4, classes: int = 4, seed: int = 0) -> ExportGraph:
    """(B, C, D, H, W) to (B, classes, D, H, W), every size a multiple of 16."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv3d(channels, 4, 4, stride=4), nn.InstanceNorm3d(4), nn.PReLU(), nn.Conv3d(4, 8, 4, stride=4),
        nn.PReLU(), nn.ConvTranspose3d(8, 4, 4, stride=4), nn.PReLU(),
        nn.ConvTranspose3d(4, classes, 4, stride=4),
    )  # fmt: skip
    return ExportGraph(nn.Identity(), network, nn.Identity(), nn.Softmax(dim=1)).eval()
