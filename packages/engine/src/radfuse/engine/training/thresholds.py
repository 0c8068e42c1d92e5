"""The threshold that turns a score into a decision, and how good the decisions are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Decisions:
    """How well a threshold tells positives from negatives. A share of nothing is NaN.

    Attributes:
        threshold: a score at or above it is called positive.
        f1: harmonic mean of precision and sensitivity; 0 when no positive was found.
        sensitivity: share of the positives that are called so.
        specificity: share of the negatives that are called so.
        accuracy: share of all that are called right.
        separation: mean score of the positives minus mean score of the negatives.
    """

    threshold: float
    f1: float
    sensitivity: float
    specificity: float
    accuracy: float
    separation: float


def decide(scores: Floats, labels: Floats, threshold: float) -> Decisions:
    """Judge a threshold.

    Args:
        scores: (samples,) probabilities.
        labels: (samples,) 0 or 1; samples with NaN are left out.
        threshold: a score at or above it is called positive.
    """
    known = ~np.isnan(labels)
    scores, positive = scores[known], labels[known] > 0.5
    called = scores >= threshold
    hits, misses = int(np.sum(called & positive)), int(np.sum(~called & positive))
    alarms, passes = int(np.sum(called & ~positive)), int(np.sum(~called & ~positive))
    return Decisions(
        threshold=float(threshold),
        f1=_share(2 * hits, 2 * hits + misses + alarms),
        sensitivity=_share(hits, hits + misses),
        specificity=_share(passes, passes + alarms),
        accuracy=_share(hits + passes, len(scores)),
        separation=_mean(scores[positive]) - _mean(scores[~positive]),
    )


def best_threshold(scores: Floats, labels: Floats) -> float:
    """The threshold with the highest F1; of several the highest one.

    It lies midway between two neighbouring scores, so that rounding does not change a decision.

    Args:
        scores: (samples,) probabilities.
        labels: (samples,) 0 or 1; samples with NaN are left out.

    Returns:
        The threshold; 0.5 where only one class is known, as nothing can be chosen then.
    """
    known = ~np.isnan(labels)
    scores, positive = scores[known], labels[known] > 0.5
    if not positive.any() or positive.all():
        return 0.5
    falling = np.argsort(-scores, kind="stable")
    ordered, hits = scores[falling], np.cumsum(positive[falling])
    called = np.arange(1, len(ordered) + 1)
    f1 = 2 * hits / (called + positive.sum())
    # Equal scores fall on the same side of any threshold: only the last of them may be the end of the called.
    ends = np.append(ordered[1:] != ordered[:-1], True)
    best = int(np.argmax(np.where(ends, f1, -1.0)))
    below = ordered[best + 1] if best + 1 < len(ordered) else 0.0
    return _midway(float(below), float(ordered[best]))


def _midway(low: float, high: float) -> float:
    middle = low + (high - low) / 2
    # Two neighbouring floats have none between them; the upper one then still tells them apart.
    return middle if low < middle <= high else high


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
