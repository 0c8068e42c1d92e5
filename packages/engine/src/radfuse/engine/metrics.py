"""Figures of merit: how well scores tell classes apart, how honest probabilities are, how regions overlap.

Rows whose truth is not known (NaN) take no part. Where a figure is not defined, as with one class
alone, it is NaN and never an error: a report then shows that there was nothing to measure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, recall_score, roc_auc_score

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ECE_BINS = 10


def known(truth: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that can be judged: truth is 0 or 1, and the score a number.

    Args:
        truth: (N,) 0, 1 or NaN.
        score: (N,) numbers or NaN.
    """
    true, given = np.asarray(truth, dtype=float), np.asarray(score, dtype=float)
    there = np.isfinite(true) & np.isfinite(given)
    return true[there].astype(np.int64), given[there]


def auroc(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the receiver operating characteristic; NaN unless both classes are there.

    Args:
        truth: (N,) 0, 1 or NaN.
        score: (N,) higher for positives.
    """
    true, given = known(truth, score)
    return float(roc_auc_score(true, given)) if _both(true) else float("nan")


def average_precision(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under precision over recall, in steps; NaN unless both classes are there."""
    true, given = known(truth, score)
    return float(average_precision_score(true, given)) if _both(true) else float("nan")


def sensitivity(truth: ArrayLike, probability: ArrayLike, threshold: float) -> float:
    """Share of the positives at or above the threshold; NaN without positives."""
    true, given = known(truth, probability)
    return float(recall_score(true, given >= threshold)) if true.any() else float("nan")


def specificity(truth: ArrayLike, probability: ArrayLike, threshold: float) -> float:
    """Share of the negatives below the threshold; NaN without negatives."""
    true, given = known(truth, probability)
    if true.all():
        return float("nan")
    return float(recall_score(true, given >= threshold, pos_label=0))


def f1(truth: ArrayLike, probability: ArrayLike, threshold: float) -> float:
    """Harmonic mean of precision and sensitivity at the threshold; NaN with nothing to find or found."""
    true, given = known(truth, probability)
    return float(f1_score(true, given >= threshold, zero_division=np.nan)) if true.size else float("nan")


def brier(truth: ArrayLike, probability: ArrayLike) -> float:
    """Mean squared distance of probability and truth; NaN without rows."""
    true, given = known(truth, probability)
    return float(brier_score_loss(true, given, pos_label=1)) if true.size else float("nan")


def expected_calibration_error(truth: ArrayLike, probability: ArrayLike, bins: int = ECE_BINS) -> float:
    """Distance of mean probability and share of positives, averaged over bins of equal width by their rows.

    Args:
        truth: (N,) 0, 1 or NaN.
        probability: (N,) of being positive.
        bins: how many between 0 and 1.

    Source:
        Naeini, Cooper, Hauskrecht: Obtaining well calibrated probabilities using Bayesian binning. AAAI 2015.
    """
    true, given = known(truth, probability)
    if not true.size:
        return float("nan")
    difference = np.bincount(bin_of(given, bins), weights=given - true, minlength=bins)
    return float(np.abs(difference).sum() / true.size)


def bin_of(probability: NDArray[np.float64], bins: int = ECE_BINS) -> NDArray[np.int64]:
    """The bin of equal width, from 0, that each probability is in; 1 is in the last."""
    return np.minimum((probability * bins).astype(np.int64), bins - 1)


def log_loss(truth: ArrayLike, logit: ArrayLike) -> float:
    """Mean cross-entropy of the truth under logits, in nats; NaN without rows."""
    true, given = known(truth, logit)
    return float(np.mean(np.logaddexp(0.0, given) - true * given)) if true.size else float("nan")


def classification(truth: ArrayLike, probability: ArrayLike, threshold: float) -> dict[str, float]:
    """Every figure of one label by name.

    Args:
        truth: (N,) 0, 1 or NaN.
        probability: (N,) calibrated.
        threshold: at or above it counts as positive.
    """
    return {
        "auroc": auroc(truth, probability),
        "average_precision": average_precision(truth, probability),
        "f1": f1(truth, probability, threshold),
        "sensitivity": sensitivity(truth, probability, threshold),
        "specificity": specificity(truth, probability, threshold),
        "brier": brier(truth, probability),
        "ece": expected_calibration_error(truth, probability),
    }


def dice_summary(dice: ArrayLike) -> dict[str, float]:
    """Where the Dice coefficients of one region lie.

    Args:
        dice: (N,) one a volume, 1 where truth and prediction are both empty (the BraTS convention); NaN ones
            take no part.
    """
    values = np.asarray(dice, dtype=float)
    values = values[np.isfinite(values)]
    if not values.size:
        return dict.fromkeys(("mean", "median", "lower_quartile", "upper_quartile"), float("nan"))
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {
        "mean": float(values.mean()),
        "median": float(middle),
        "lower_quartile": float(low),
        "upper_quartile": float(high),
    }


def _both(true: NDArray[Any]) -> bool:
    return bool(true.size) and bool(true.any()) and not bool(true.all())
