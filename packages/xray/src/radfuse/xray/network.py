"""The ResNet-50, from the head that it is given to the names that other programs have for its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from radfuse.engine.training.resnets import begin_as_identity

FEATURES = 2048
HIDDEN = 512
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's pictures by channel, as every network trained on them expects its input."""


def resnet50(outputs: int, dropout: float) -> nn.Module:
    """A ResNet-50 whose last layer is a head 2048-512-outputs.

    It is torchvision's network: the first convolution halves the image, and downsampling has no bias, so that
    weights of ImageNet fit. 24,557,633 parameters with one output, 1,049,601 of them in the head.

    Args:
        outputs: labels.
        dropout: between the two layers of the head.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, with the stride in the 3x3
        convolution; norms that begin at zero: Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677.
    """
    from monai.networks.nets import resnet50 as monai_resnet50

    network = monai_resnet50(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, bias_downsample=False)
    network.fc = nn.Sequential(
        nn.Linear(FEATURES, HIDDEN), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(HIDDEN, outputs)
    )
    begin_as_identity(network, "bn3")
    return cast(nn.Module, network)


def translate_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's or timm's ResNet-50 under our names.

    Both name the trunk as we do; some files put a prefix before every name. Their last layer tells the
    classes of
    ImageNet: it keeps the name ``fc.weight``, which nothing of ours has.

    Args:
        weights: by the other program's names.
    """
    prefixes = ("module.", "model.", "backbone.", "encoder.", "resnet.")
    found = dict(weights)
    while found and (
        prefix := next((p for p in prefixes if all(name.startswith(p) for name in found)), None)
    ):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


class Normalise(nn.Module):
    """Grey values 0..1 in three channels to what a network trained on ImageNet expects."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        import torch

        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to the same shape."""
        return (image - self.mean) / self.deviation
