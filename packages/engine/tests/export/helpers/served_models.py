"""Tiny ONNX models of the three kinds of images, with cards, as `radfuse predict` takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from radfuse.serving.card import Card

SEQUENCES = ("t1", "t1ce", "t2", "flair")
CLASSES = ("background", "core", "oedema", "enhancing")
REGIONS = {"whole_tumour": (1, 2, 3), "enhancing_tumour": (3,)}
XRAY: dict[str, Any] = {
    "modality": "xray",
    "name": "resnet50",
    "inputs": ("image",),
    "preprocessing": {"kind": "radiograph", "size": [32, 32]},
    "task": "classification",
    "labels": ("Mass", "Nodule", "Hernia"),
    "thresholds": {"Mass": 0.25},
}
CT: dict[str, Any] = {
    "modality": "ct",
    "name": "3dcnn",
    "version": "1.2.0",
    "inputs": ("image",),
    "preprocessing": {
        "kind": "ct_patch",
        "size": [16, 16, 16],
        "spacing_mm": [1, 1, 1],
        "window_hu": [-1000, 400],
    },
    "task": "classification",
    "labels": ("malignant",),
    "thresholds": {"malignant": 0.5},
}
MRI: dict[str, Any] = {
    "modality": "mri",
    "name": "unet",
    "inputs": SEQUENCES,
    "preprocessing": {
        "kind": "mr_volume",
        "sequences": list(SEQUENCES),
        "spacing_mm": None,
        "size": None,
        "crop_to_brain": True,
    },
    "task": "segmentation",
    "classes": CLASSES,
    "regions": REGIONS,
    "sliding_window": {"size": [64, 64, 64], "overlap": 0.0},
}


def xray_model(folder: Path) -> Path:
    """Three labels of a radiograph, 32 x 32."""
    return classifier(folder, XRAY, ("batch", 3, 32, 32), 1.0)


def ct_model(folder: Path) -> Path:
    """One label of a patch of 16 x 16 x 16 voxels of 1 mm: the brighter, the likelier."""
    return classifier(folder, CT, ("batch", 1, 16, 16, 16), 0.01)


def mri_model(folder: Path) -> Path:
    """Four classes from four sequences, each voxel by itself."""
    weight = np.random.default_rng(0).normal(size=(len(CLASSES), len(SEQUENCES), 1, 1, 1))
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["output"], axis=1),
    ]
    space = ("16*depth", "16*height", "16*width")
    return served(folder, MRI, nodes, weight, ("batch", 4, *space), ("batch", 4, *space))


def classifier(folder: Path, about: dict[str, Any], shape: Sequence[str | int], scale: float) -> Path:
    """Probabilities of the labels from the means of the channels."""
    labels = len(about["labels"])
    weight = np.random.default_rng(0).normal(scale=scale, size=(int(shape[1]), labels))
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    return served(folder, about, nodes, weight, shape, ("batch", labels))


def served(
    folder: Path,
    about: dict[str, Any],
    nodes: Sequence[onnx.NodeProto],
    weight: np.ndarray[Any, Any],
    takes: Sequence[str | int],
    gives: Sequence[str | int],
) -> Path:
    """Write a graph and its card."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", takes), ("output", gives))
    ]
    weights = [numpy_helper.from_array(weight.astype(np.float32), "weight")]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"{about['modality']}_onnx.onnx"
    path.write_bytes(model.SerializeToString())
    common: dict[str, Any] = {
        "version": "",
        "model_digest": "1" * 64,
        "split_digest": "2" * 64,
        "opset": 20,
        "digest_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "created": "2026-01-01T00:00:00+00:00",
    }
    Card(**{**common, **about}).write(path.with_suffix(".json"))
    return path
