"""Layers that compute the same as torch's own, with gradients of the same bits every time on a GPU too.

On CUDA torch adds up the gradients of some layers in whatever order its threads come
(``torch.use_deterministic_algorithms``, torch documentation); among ours those of 3D max pooling, of adaptive
average pooling, and of the cross entropy of every voxel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Mean(nn.Module):
    """The mean over all of an image: (B, C, ...) to (B, C, 1, ...), as adaptive average pooling to 1."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, ...) to (B, C, 1, ...)."""
        return image.mean(dim=tuple(range(2, image.ndim)), keepdim=True)


class SeparateMaxPool3d(nn.Module):
    """3D max pooling as one over each slice, then one over depth; of equal values the same one wins.

    Args:
        pool: whose kernel, stride, padding and dilation it takes over.
    """

    def __init__(self, pool: nn.MaxPool3d) -> None:
        super().__init__()
        self._kernel, self._stride = _three(pool.kernel_size), _three(pool.stride)
        self._padding, self._dilation = _three(pool.padding), _three(pool.dilation)
        self._ceil = pool.ceil_mode

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, C, D', H', W')."""
        batch, channels, depth, *_ = image.shape
        slices = self._pool(image.flatten(1, 2), slice(1, 3))
        height, width = slices.shape[2:]
        columns = slices.reshape(batch, channels, depth, height * width)
        return self._pool(columns, slice(0, 1)).reshape(batch, channels, -1, height, width)

    def _pool(self, image: Tensor, axes: slice) -> Tensor:
        kernel, stride = self._kernel[axes], self._stride[axes]
        padding, dilation = self._padding[axes], self._dilation[axes]
        if len(kernel) == 1:
            kernel, stride, padding, dilation = (*kernel, 1), (*stride, 1), (*padding, 0), (*dilation, 1)
        return functional.max_pool2d(image, kernel, stride, padding, dilation, ceil_mode=self._ceil)


class SeparateCrossEntropy(nn.Module):
    """Mean cross entropy of class indices, from products and sums alone.

    Args:
        entropy: whose class weights it takes over.
    """

    def __init__(self, entropy: nn.CrossEntropyLoss) -> None:
        super().__init__()
        self.weight: Tensor | None
        self.register_buffer("weight", entropy.weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B, classes, ...) logits and (B, ...) class indices to a scalar."""
        shape = (1, -1, *[1] * (target.ndim - 1))
        classes = torch.arange(logits.shape[1], device=target.device).view(shape)
        wanted = (target[:, None] == classes).to(torch.float32)
        if self.weight is not None:
            wanted = wanted * self.weight.view(shape)
        return -(wanted * torch.log_softmax(logits.float(), 1)).sum() / wanted.sum()


def replace_layers(network: nn.Module) -> list[str]:
    """Replace the layers whose gradients on CUDA differ from run to run; none of them has weights.

    Layers that cannot be replaced stay: torch then stops the first step with an error that names them.

    Args:
        network: or a loss of several parts; is changed.

    Returns:
        Names of the layers that were replaced.
    """
    replaced = []
    for name, layer in list(network.named_modules()):
        other = _equal(layer)
        if other is not None and name:
            above, _, last = name.rpartition(".")
            setattr(network.get_submodule(above), last, other)
            replaced.append(name)
    return replaced


def _equal(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, nn.MaxPool3d) and not layer.return_indices:
        return SeparateMaxPool3d(layer)
    if isinstance(layer, nn.CrossEntropyLoss) and layer.reduction == "mean" and not layer.label_smoothing:
        return SeparateCrossEntropy(layer)
    adaptive = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    if isinstance(layer, adaptive) and torch.tensor(layer.output_size).eq(1).all():
        return Mean()
    return None


def _three(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)
