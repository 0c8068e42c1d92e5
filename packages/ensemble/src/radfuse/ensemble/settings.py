"""The block ``ensemble`` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from radfuse.engine.settings import Settings

Pooling = Literal["mean", "max", "count"]


def _pooling() -> dict[str, tuple[Pooling, ...]]:
    """The most suspicious of a patient's nodules counts, and how many there are."""
    return {"ct": ("max", "mean", "count")}


class EnsembleSettings(Settings):
    """How the modalities become one answer; each of these numbers changes the result.

    Attributes:
        splits: patients to fit on; None for `calibration`, with `val` where it is small.
        merge_below: `calibration` is small with fewer positive patients of any disease.
        minimum_patients: fewest patients with two modalities or more; with fewer there is no ensemble.
        minimum_positives: fewest patients with a disease, and without it; else the disease is left out.
        folds: of the cross-fitting over patients.
        pooling: how the answers about a patient's images become the patient's, by modality: any of mean, max
            and count; the mean where nothing is said.
        strengths: to choose from for each modality's head, as scikit-learn's C: the smaller, the stronger the
            regularisation.
        weight_decay: pull of the average's weights towards equal ones.
        parameters: about how many the meta-learner has; its width follows.
        epochs: of the meta-learner, each one step on all patients.
        learning_rate: of the meta-learner, the highest of its cosine.
        residual_decay: pull of the meta-learner towards the weighted average.
        modality_dropout: how often a modality that is there is hidden from the meta-learner in training.
    """

    splits: tuple[Literal["val", "calibration"], ...] | None = None
    merge_below: PositiveInt = 30
    minimum_patients: PositiveInt = 30
    minimum_positives: PositiveInt = 5
    folds: int = Field(default=5, ge=2)
    pooling: dict[str, tuple[Pooling, ...]] = Field(default_factory=_pooling)
    strengths: tuple[PositiveFloat, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    weight_decay: PositiveFloat = 1.0
    parameters: PositiveInt = 50_000
    epochs: PositiveInt = 100
    learning_rate: PositiveFloat = 0.003
    residual_decay: PositiveFloat = 0.3
    modality_dropout: float = Field(default=0.3, ge=0, lt=1)


class Recipe(EnsembleSettings):
    """The settings with the seed of the pipeline: everything but the data that changes a number.

    Attributes:
        seed: of folds, first weights and hidden modalities.
    """

    seed: int = 0
