"""Training states of real size: the tensors of two networks and their AdamW moments, without the networks."""

from __future__ import annotations

from typing import Any

import torch

Shape = tuple[int, ...]


def resnet50_shapes(classes: int = 14) -> list[Shape]:
    """A ResNet-50 as torchvision has it, with one linear layer on top: 161 tensors, 23.5 M elements."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, channels, 1, 1), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            shapes += [(4 * width, width, 1, 1), (4 * width,), (4 * width,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (classes, 2048), (classes,)]


def unet3d_shapes() -> list[Shape]:
    """Parameters of a residual 3D U-Net with 32 to 512 channels, 4 in and 4 out: 19.2 M elements."""
    widths = (32, 64, 128, 256, 512)
    shapes: list[Shape] = []
    before = 4
    for width in widths:
        shapes += [(width, before, 3, 3, 3), (width,), (width, width, 3, 3, 3), (width,)]
        # The shortcut: strided like the unit, but for the deepest one, which keeps its size.
        shapes += [(width, before, 1, 1, 1) if width == 512 else (width, before, 3, 3, 3), (width,)]
        before = width
    for deep, width in ((768, 128), (256, 64), (128, 32), (64, 4)):
        shapes += [(deep, width, 3, 3, 3), (width,), (width, width, 3, 3, 3), (width,)]
    return shapes


def training_state(shapes: list[Shape], device: str = "cpu") -> dict[str, Any]:
    """Model and AdamW state for parameters of these shapes, in float32."""
    with torch.device(device):
        return _made(shapes)


def _made(shapes: list[Shape]) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "epoch": 1,
        "model_state_dict": {f"layer{i}.weight": torch.randn(shape) for i, shape in enumerate(shapes)},
        "optimizer_state_dict": {
            "state": {
                i: {"step": torch.tensor(1.0), "exp_avg": torch.randn(shape), "exp_avg_sq": torch.rand(shape)}
                for i, shape in enumerate(shapes)
            },
            "param_groups": [{"lr": 1e-3, "weight_decay": 0.01, "params": list(range(len(shapes)))}],
        },
        "history": {"train_loss": [0.5] * 30, "val_auc": [0.8] * 30},
    }


STATES = {"ResNet-50 + AdamW": resnet50_shapes, "3D U-Net + AdamW": unet3d_shapes}


def tensors_of(state: Any) -> list[torch.Tensor]:
    """Every tensor of a nested state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in tensors_of(value)]
    return []
