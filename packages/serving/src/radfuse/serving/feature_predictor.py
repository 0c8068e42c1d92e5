"""An answer from other models' answers: the ensemble."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from radfuse.serving.card import AVAILABLE, FEATURES
from radfuse.serving.errors import InputError, ModelError
from radfuse.serving.model import OnnxModel
from radfuse.serving.prediction import Prediction, of_labels


class FeaturePredictor:
    """A model for features: named numbers, of which some may be missing.

    A feature ``<modality>:<name>`` belongs to a modality; ``available:<modality>`` says with 1 or 0 whether
    the patient has it, and is filled in where it is not given. What is missing enters the graph as 0.

    Args:
        path: the ``.onnx`` file; its card lies beside it.
        threads: that one answer uses; 0 for as many as there are cores.

    Raises:
        CardError: the card is missing or none.
        ModelError: the file is missing, is not the one on the card, or does not fit it.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self._model = OnnxModel(path, threads)
        self.card = self._model.card
        if self.card.task != FEATURES:
            raise ModelError(f"{self._model.path.name}: takes images, no features; use Predictor")
        columns = len(self.card.inputs)
        if self._model.input_shape[1:] not in ((columns,), (None,)):
            taken = self._model.input_shape[1:]
            raise ModelError(
                f"{self._model.path.name}: takes input of shape {taken}, its card names {columns} features"
            )

    def predict(self, values: Mapping[str, float | None]) -> Prediction:
        """Answer for one patient.

        Args:
            values: by feature; None, NaN or absence mean that it is missing.

        Raises:
            InputError: a feature is unknown or infinite, none is given, or a modality is given in part.
            ModelError: the graph fails.
        """
        row = np.asarray([self._row(values)], np.float32)
        answer = self._model.run(row)
        labels = self.card.labels
        if answer.shape != (1, len(labels)):
            raise ModelError(f"{self._model.path.name}: answered {answer.shape} for {len(labels)} labels")
        return of_labels(self.card, dict(zip(labels, map(float, answer[0]), strict=True)))

    def _row(self, values: Mapping[str, float | None]) -> list[float]:
        """Values in the order of the graph's columns."""
        unknown = [name for name in values if name not in self.card.inputs]
        if unknown:
            raise InputError(f"features that the model does not know: {', '.join(unknown[:5])}")
        given = {
            name: float(value)
            for name, value in values.items()
            if value is not None and not math.isnan(value)
        }
        if any(math.isinf(value) for value in given.values()):
            raise InputError("a feature is infinite; leave it out where it is not known")
        measured = [name for name in given if not name.startswith(AVAILABLE)]
        if not measured:
            raise InputError("no feature is given; give those of at least one modality")
        for name in self.card.inputs:
            if name.startswith(AVAILABLE) and name not in given:
                given[name] = self._available(name.removeprefix(AVAILABLE), measured)
        return [given.get(name, 0.0) for name in self.card.inputs]

    def _available(self, modality: str, measured: list[str]) -> float:
        """1 where all features of a modality are given, 0 where none is."""
        own = [name for name in self.card.inputs if name.startswith(f"{modality}:")]
        missing = [name for name in own if name not in measured]
        if missing and len(missing) < len(own):
            raise InputError(f"{modality} is given in part; missing: {', '.join(missing[:5])}")
        return float(bool(own) and not missing)
