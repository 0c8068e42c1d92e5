"""The figures of `radfuse.engine.metrics` under many weightings of the same rows at once.

A bootstrap resample is a weighting: how often each row was drawn. So a thousand resamples are one matrix,
each figure is a few array operations on it, and nothing is copied or sorted again. Each figure equals
scikit-learn's with ``sample_weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from radfuse.engine import metrics

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Weights: TypeAlias = "NDArray[np.float64]"
"""(R, N): how much each of N rows counts in each of R weightings."""
Figures: TypeAlias = "NDArray[np.float64]"
"""(R,): NaN where a weighting leaves nothing to measure."""
Statistic: TypeAlias = "Callable[[Weights], Figures]"


def auroc(truth: ArrayLike, score: ArrayLike) -> Statistic:
    """The area under the ROC curve; rows whose truth or score is not known count nothing.

    Args:
        truth: (N,) 0, 1 or NaN.
        score: (N,) higher for positives.
    """
    ranked = _Ranked(truth, score)

    def statistic(weights: Weights) -> Figures:
        positive, negative = ranked.by_score(weights)
        below = negative.cumsum(axis=1) - negative
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return _ratio((positive * (below + negative / 2)).sum(axis=1), pairs)

    return statistic


def average_precision(truth: ArrayLike, score: ArrayLike) -> Statistic:
    """The area under precision over recall, in steps, as scikit-learn defines it."""
    ranked = _Ranked(truth, score)

    def statistic(weights: Weights) -> Figures:
        positive, negative = (part[:, ::-1] for part in ranked.by_score(weights))
        true = positive.cumsum(axis=1)
        called = true + negative.cumsum(axis=1)
        precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
        both = np.where(negative.sum(axis=1) > 0, true[:, -1], 0.0)
        return _ratio((positive * precision).sum(axis=1), both)

    return statistic


def sensitivity(truth: ArrayLike, probability: ArrayLike, threshold: float) -> Statistic:
    """The share of the positives at or above a threshold."""
    true, given, there = _rows(truth, probability)
    return _share((given >= threshold) & (true == 1), there & (true == 1))


def specificity(truth: ArrayLike, probability: ArrayLike, threshold: float) -> Statistic:
    """The share of the negatives below a threshold."""
    true, given, there = _rows(truth, probability)
    return _share((given < threshold) & (true == 0), there & (true == 0))


def f1(truth: ArrayLike, probability: ArrayLike, threshold: float) -> Statistic:
    """The harmonic mean of precision and sensitivity at a threshold; 0 where nothing is found."""
    true, given, there = _rows(truth, probability)
    called, positive = there & (given >= threshold), there & (true == 1)
    return _share(2.0 * (called & positive), called.astype(float) + positive)


def brier(truth: ArrayLike, probability: ArrayLike) -> Statistic:
    """The mean squared distance of probability and truth."""
    true, given, _ = _rows(truth, probability)
    return mean((given - true) ** 2)


def expected_calibration_error(
    truth: ArrayLike, probability: ArrayLike, bins: int = metrics.ECE_BINS
) -> Statistic:
    """The distance of probability and truth over bins of equal width."""
    true, given, there = _rows(truth, probability)
    members = np.zeros((len(true), bins))
    rows = np.flatnonzero(there)
    members[rows, metrics.bin_of(given[there], bins)] = (given - true)[there]
    counted = there.astype(float)

    def statistic(weights: Weights) -> Figures:
        return _ratio(np.abs(weights @ members).sum(axis=1), weights @ counted)

    return statistic


def mean(values: ArrayLike) -> Statistic:
    """The mean of the values that are known.

    Args:
        values: (N,) numbers or NaN.
    """
    given = np.asarray(values, dtype=float)
    there = np.isfinite(given)
    return _share(np.where(there, given, 0.0), there)


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of several figures: of those that are defined where every row counts once.

    A weighting that leaves one of these undefined has no mean, since that of the others is another quantity.
    """

    def statistic(weights: Weights) -> Figures:
        once = np.ones((1, weights.shape[1]))
        wanted = [one for one in statistics if np.isfinite(one(once)).all()]
        if not wanted:
            return np.full(len(weights), np.nan)
        figures: Figures = np.mean([one(weights) for one in wanted], axis=0)
        return figures

    return statistic


def difference(first: Statistic, second: Statistic) -> Statistic:
    """The first figure minus the second, of the same rows under the same weights."""
    return lambda weights: first(weights) - second(weights)


class _Ranked:
    """Rows by rising score, where equal scores are one step of the curve."""

    def __init__(self, truth: ArrayLike, score: ArrayLike) -> None:
        true, given, there = _rows(truth, score)
        rows = np.flatnonzero(there)
        self._order = rows[np.argsort(given[rows], kind="stable")]
        ranked = given[self._order]
        self._starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]][: len(ranked)])
        self._positive = true[self._order] == 1

    def by_score(self, weights: Weights) -> tuple[Weights, Weights]:
        """The weights of positives and of negatives at each different score, both (R, scores)."""
        if not self._order.size:
            empty = np.zeros((len(weights), 1))
            return empty, empty
        sorted_weights = weights[:, self._order]
        positive = np.where(self._positive, sorted_weights, 0.0)
        positive = np.add.reduceat(positive, self._starts, axis=1)
        return positive, np.add.reduceat(sorted_weights, self._starts, axis=1) - positive


def _rows(
    truth: ArrayLike, score: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    true, given = np.asarray(truth, dtype=float), np.asarray(score, dtype=float)
    return true, given, np.isfinite(true) & np.isfinite(given)


def _share(values: ArrayLike, counted: ArrayLike) -> Statistic:
    """The weighted mean of values over the rows that count; the others' values are zero."""
    above, below = np.asarray(values, dtype=float), np.asarray(counted, dtype=float)
    return lambda weights: _ratio(weights @ above, weights @ below)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> Figures:
    found: Figures = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return found
