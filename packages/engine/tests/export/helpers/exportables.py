"""Tiny models with all that stands on their cards."""

from __future__ import annotations

from typing import Any

import torch
from tiny_graphs import classifier

from radfuse.engine.export.exportable import Exportable

FILES = {"onnx": "xray_onnx.onnx", "torchscript": "xray_torchscript.pt"}
LABELS = ("Mass", "Nodule", "Hernia")
CARD: dict[str, Any] = {
    "modality": "xray", "name": "resnet50", "version": "", "model_digest": "1" * 64, "split_digest": "2" * 64,
    "inputs": ("image",), "preprocessing": {"kind": "radiograph", "size": [32, 32]}, "task": "classification",
    "labels": LABELS,
    "calibration": {
        name: {"method": "platt", "temperature": 1 + place / 2, "bias": 0.1}
        for place, name in enumerate(LABELS)
    },
    "thresholds": {"Mass": 0.25},
}  # fmt: skip


def samples(count: int = 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.rand(3, 32, 32, generator=random) for _ in range(count)]


def exportable(**changes: Any) -> Exportable:
    """A classifier of three labels over (3, 32, 32)."""
    parts = {"name": "xray", "files": FILES, "graph": classifier(), "samples": samples(), "card": CARD}
    return Exportable(**{**parts, **changes})
