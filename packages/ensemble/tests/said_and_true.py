"""Patients, what modalities say of them, and what they have, without any table."""

from __future__ import annotations

from typing import Any

import numpy as np

from radfuse.ensemble.features import Feature, Outputs
from radfuse.ensemble.settings import Recipe

FEATURES = [
    Feature("ct", "malignant", "logit", "max"),
    Feature("mri", "whole_tumour", "log_volume", "mean"),
    Feature("mri", "tumour_core", "log_volume", "mean"),
    Feature("xray", "Mass", "logit", "mean"),
    Feature("xray", "Edema", "logit", "mean"),
]
RECIPE = Recipe(parameters=600, epochs=8, strengths=(0.3,), folds=3)
SHIFT = 1.5


def patients(count: int, seed: int = 0, lacking: float = 0.25) -> tuple[Outputs, Any]:
    """Two diseases: the first in ct and xray, the second in mri and xray.

    Returns:
        What is said, and (P, 2) what is true.
    """
    random = np.random.default_rng(seed)
    truth = (random.random((count, 2)) < 0.35).astype(float)
    said = SHIFT * truth[:, [0, 1, 1, 0, 1]] + random.normal(size=(count, len(FEATURES)))
    mask = np.ones((count, 3))
    for row in np.flatnonzero(random.random(count) < lacking):
        mask[row, random.choice(3, random.integers(1, 3), replace=False)] = 0
    values = said * mask[:, [0, 1, 1, 2, 2]]
    names = [f"p{number:012x}" for number in range(count)]
    return Outputs(names, values, mask, FEATURES, ["ct", "mri", "xray"]), truth
