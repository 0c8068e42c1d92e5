"""The 3D ResNet-18 and the scaling of its input."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from radfuse.engine.training.resnets import begin_as_identity

EIGHT_BIT = (0.0, 255.0)


def resnet18(outputs: int, first_stride: int, dropout: float) -> nn.Module:
    """A ResNet-18 of three-dimensional convolutions: 33.16 million parameters.

    Args:
        outputs: labels.
        first_stride: of the first convolution, along every axis.
        dropout: before the last layer; 0 for none.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; in three dimensions: Chen et
        al., Med3D, arXiv 1904.00625.
    """
    from monai.networks.nets import resnet18 as monai_resnet18

    network = monai_resnet18(
        spatial_dims=3, n_input_channels=1, num_classes=outputs, conv1_t_stride=first_stride
    )
    if dropout:
        network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    begin_as_identity(network, "bn2")
    return cast(nn.Module, network)


class Scale(nn.Module):
    """Values of a window to -1..1.

    Args:
        low: value that becomes -1.
        high: value that becomes 1.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self._middle = (low + high) / 2
        self._half = (high - low) / 2

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, D, H, W) to the same shape."""
        return (image - self._middle) / self._half
