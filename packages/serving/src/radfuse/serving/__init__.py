"""Loads radfuse's exported models with onnxruntime and NumPy alone, and reads the images that they take.

Predictor("xray_onnx.onnx").predict({"image": "chest.dcm"})
"""

from __future__ import annotations

from radfuse.serving.card import Card
from radfuse.serving.errors import CardError, InputError, ModelError, ServingError, SpecError
from radfuse.serving.feature_predictor import FeaturePredictor
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.inputs import inputs_for
from radfuse.serving.prediction import Prediction
from radfuse.serving.predictor import Predictor

__all__ = [
    "Card",
    "CardError",
    "FeaturePredictor",
    "InputError",
    "ModelError",
    "Prediction",
    "Predictor",
    "ServingError",
    "SpecError",
    "UnreadableImage",
    "inputs_for",
]
