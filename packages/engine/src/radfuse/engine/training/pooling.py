"""One score a patient from the scores of several images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Pooling = Literal["mean", "max", "noisy_or"]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def pool_scores(scores: Floats, patients: Sequence[str], method: Pooling) -> tuple[list[str], Floats]:
    """Pool the scores of each patient's images.

    Args:
        scores: (images, labels) probabilities.
        patients: whose each image is.
        method: ``mean``; ``max``: the most suspicious image decides; ``noisy_or``: one minus the product of
            (1 - score), each image being independent evidence.

    Returns:
        The patients in sorted order, and their scores (patients, labels).

    Source: noisy-or: Pearl, Probabilistic Reasoning in Intelligent Systems, 1988, section 4.3.
    """
    names, members = _members(patients)
    pooled = [_pooled(scores[rows], method) for rows in members]
    return names, np.array(pooled).reshape(len(names), *scores.shape[1:])


def pool_labels(labels: Floats, patients: Sequence[str]) -> tuple[list[str], Floats]:
    """A patient has a finding when one of the images is known to show it.

    Args:
        labels: (images, labels) of 0, 1 or NaN for unknown.
        patients: whose each image is.

    Returns:
        The patients in sorted order, and their labels: NaN where no image's label is known.
    """
    names, members = _members(patients)
    known = np.where(np.isnan(labels), -1.0, labels)
    pooled = np.array([known[rows].max(axis=0) for rows in members]).reshape(len(names), *labels.shape[1:])
    return names, np.where(pooled < 0, np.nan, pooled)


def _members(patients: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    names = sorted(rows)
    return names, [rows[name] for name in names]


def _pooled(scores: Floats, method: Pooling) -> Floats:
    if method == "mean":
        return np.asarray(scores.mean(axis=0))
    if method == "max":
        return np.asarray(scores.max(axis=0))
    return np.asarray(1.0 - np.prod(1.0 - scores, axis=0))
