"""Intervals by resampling patients: how much a figure would move with other patients of the same kind.

Patients are drawn with replacement, each with all of its images, so images of one patient never pass for
independent evidence. All figures of one `Bootstrap` see the same resamples, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.stats import norm

from radfuse.engine.subgroups import FEWEST_PATIENTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radfuse.engine.weighted import Statistic

Method = Literal["percentile", "bca", "centred"]
_CHUNK_BYTES = 64 << 20
_MOST_LEFT_OUT = 200
_FEWEST_DEFINED = 0.5
"""Below this share of resamples that have the figure at all, there is no interval."""
_NO_WIDTH = 1e-12
"""Resamples that differ by no more than their rounding tell nothing of how far off a figure may be."""


@dataclass(frozen=True)
class Interval:
    """A figure and where it may lie.

    Attributes:
        value: of the patients at hand; NaN where it is not defined.
        low: lower end, NaN where the resamples say nothing of it (see `Bootstrap.interval`).
        high: upper end.
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """The numbers by name, with None for what is not defined, since JSON knows no NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}


class Bootstrap:
    """Resamples of patients, the same ones for every figure.

    Args:
        patients: (N,) whose each row is.
        resamples: how many times the patients are drawn.
        confidence: of the intervals: 0.95 leaves 2.5 % of the resamples on either side.
        method: percentiles of the resamples, or these corrected for bias and skewness ("bca"), which misses
            equally often on either side where few patients make a figure skewed.
        seed: of the draws; the same patients in another order of rows are drawn alike.

    Source:
        Efron, Tibshirani: An introduction to the bootstrap (1993), chapters 13 and 14; Field, Welsh:
        Bootstrapping clustered data, J. R. Statist. Soc. B 69 (2007), for drawing whole clusters.
    """

    def __init__(
        self,
        patients: Sequence[str],
        resamples: int = 1000,
        confidence: float = 0.95,
        method: Method = "bca",
        seed: int = 0,
    ) -> None:
        names, self._patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        self.patients = len(names)
        self._confidence = confidence
        self._method = method
        random = np.random.default_rng(seed)
        shares = np.full(max(self.patients, 1), 1 / max(self.patients, 1))
        counts = random.multinomial(self.patients, shares, size=resamples)
        self._counts = counts.astype(np.min_scalar_type(int(counts.max(initial=0))))

    def interval(self, statistic: Statistic, method: Method | None = None) -> Interval:
        """The figure of the rows at hand, and its interval.

        There is none from fewer than `FEWEST_PATIENTS`, where the figure hangs on one patient (an AUROC with
        one positive), where most resamples do not define it, and where all of them give the same: the
        percentiles would then be as close together as if a great many patients had been measured.

        Args:
            statistic: of `radfuse.engine.weighted`, over the same rows as the patients were given for.
            method: another one than the usual. "centred" moves the percentiles so that the resamples' median
                lies on the figure; for a figure that drawing with replacement shifts, such as a calibration
                error, whose noise the resamples have twice.
        """
        if not self.patients:
            return Interval(*[float("nan")] * 3)
        value = float(statistic(np.ones((1, len(self._patient_of))))[0])
        draws = self.draws(statistic)
        draws = draws[np.isfinite(draws)]
        nothing = Interval(value, float("nan"), float("nan"))
        if (
            not np.isfinite(value)
            or self.patients < FEWEST_PATIENTS
            or len(draws) < max(1.0, _FEWEST_DEFINED * len(self._counts))
        ):
            return nothing
        without = self._leaving_out(statistic)
        if without is None:
            return nothing
        tails = (1 - self._confidence) / 2, (1 + self._confidence) / 2
        method = method or self._method
        if method == "bca":
            tails = self._corrected(tails, value, draws, without)
        low, high = np.quantile(draws, tails) + (value - np.median(draws) if method == "centred" else 0.0)
        flat = high - low <= _NO_WIDTH * max(1.0, abs(value))
        return nothing if flat else Interval(value, float(low), float(high))

    def draws(self, statistic: Statistic) -> NDArray[np.float64]:
        """(R,) the figure in every resample."""
        return np.concatenate([statistic(weights) for weights in self._weights(self._counts)])

    def _weights(self, counts: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
        """Row weights of some resamples at a time, so that memory stays small."""
        rows = max(1, _CHUNK_BYTES // (8 * max(1, len(self._patient_of))))
        for start in range(0, len(counts), rows):
            yield counts[start : start + rows][:, self._patient_of].astype(np.float64)

    def _corrected(
        self,
        tails: tuple[float, float],
        value: float,
        draws: NDArray[np.float64],
        without: NDArray[np.float64],
    ) -> tuple[float, float]:
        """Tails moved for median bias and for how the figure's spread changes with it (Efron 1987)."""
        below = np.mean(draws < value) + np.mean(draws == value) / 2
        bias = norm.ppf(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
        deviation = without.mean() - without if without.size else without
        scale = 6 * (deviation**2).sum() ** 1.5
        acceleration = (deviation**3).sum() / scale if scale > 0 else 0.0
        shifted = bias + norm.ppf(tails)
        low, high = norm.cdf(bias + shifted / (1 - acceleration * shifted))
        return float(low), float(high)

    def _leaving_out(self, statistic: Statistic) -> NDArray[np.float64] | None:
        """The figure when one patient is left out, of very many patients an equal group of them.

        None where it hangs on one patient: without them it is not defined.
        """
        groups = min(self.patients, _MOST_LEFT_OUT)
        group_of = np.arange(self.patients) * groups // self.patients
        figures = self._without(group_of, np.arange(groups), statistic)
        # A group may hold all positives where none of its patients alone does.
        doubtful = np.flatnonzero(np.isin(group_of, np.flatnonzero(~np.isfinite(figures))))
        alone = self._without(np.arange(self.patients), doubtful, statistic)
        return figures[np.isfinite(figures)] if np.isfinite(alone).all() else None

    def _without(
        self, group_of: NDArray[Any], left_out: NDArray[Any], statistic: Statistic
    ) -> NDArray[np.float64]:
        """The figure without each of some groups of patients."""
        counts = (left_out[:, None] != group_of).astype(np.uint8)
        return np.concatenate([np.zeros(0), *(statistic(weights) for weights in self._weights(counts))])
