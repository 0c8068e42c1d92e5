"""What a model answers about one patient's images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radfuse.serving.card import Card
    from radfuse.serving.images.volume import Volume


@dataclass(frozen=True)
class Prediction:
    """An answer, with which model gave it.

    Attributes:
        modality: of the model.
        name: of the model.
        version: of the model; empty where it was not promoted.
        model_digest: of its weights.
        probabilities: calibrated, by label; empty for a segmentation.
        thresholds: by label, where there is one.
        label_map: (D, H, W) class of each voxel on the original file's grid; None for a classification.
        classes: names of the label map's values.
        volumes_mm3: by region; empty for a classification.
    """

    modality: str
    name: str
    version: str
    model_digest: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    label_map: Volume | None = None
    classes: tuple[str, ...] = ()
    volumes_mm3: Mapping[str, float] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the probabilities."""
        return tuple(self.probabilities)

    @property
    def decisions(self) -> dict[str, bool]:
        """By label that has a threshold: whether the probability reaches it."""
        return {label: self.probabilities[label] >= threshold for label, threshold in self.thresholds.items()}

    def as_json(self) -> dict[str, Any]:
        """For people and programs; the label map itself stays out."""
        model = {
            "modality": self.modality,
            "name": self.name,
            "version": self.version,
            "model_digest": self.model_digest,
        }
        if self.label_map is not None:
            return {"model": model, "classes": list(self.classes), "volumes_mm3": dict(self.volumes_mm3)}
        decided = self.decisions
        labels = {
            label: {
                "probability": probability,
                "threshold": self.thresholds.get(label),
                "positive": decided.get(label),
            }
            for label, probability in self.probabilities.items()
        }
        return {"model": model, "labels": labels}


def of_labels(card: Card, probabilities: Mapping[str, float]) -> Prediction:
    """The answer of a classification."""
    return Prediction(
        card.modality,
        card.name,
        card.version,
        card.model_digest,
        probabilities=probabilities,
        thresholds=card.thresholds,
    )


def of_regions(card: Card, label_map: Volume, volumes_mm3: Mapping[str, float]) -> Prediction:
    """The answer of a segmentation."""
    return Prediction(
        card.modality,
        card.name,
        card.version,
        card.model_digest,
        label_map=label_map,
        classes=card.classes,
        volumes_mm3=volumes_mm3,
    )
