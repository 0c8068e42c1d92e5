"""Probabilities that mean what they say: temperature or Platt scaling of each label's logits, and thresholds.

Fitted on patients that neither training nor the choice of the checkpoint has seen. What is told of the effect
(expected calibration error, Brier score) is cross-fitted: each patient's probability comes from a calibration
that was fitted on other patients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import roc_curve

from ckptcore import durable
from radfuse.engine import metrics
from radfuse.engine.counts import FEW_POSITIVES
from radfuse.engine.errors import MissingStage, StaleError
from radfuse.engine.folds import FOLDS, folds_of
from radfuse.engine.tables import CALIBRATED, LABEL, LOGIT, PATIENT, SPLIT
from radfuse.engine.training.thresholds import best_threshold

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Method = Literal["none", "temperature", "platt"]

FEWEST: Mapping[Method, int] = {"none": 0, "temperature": 5, "platt": 10}
"""Fewest patients of either class for a method. Among those allowed, the one with the lowest cross-fitted
log-loss is taken, and the simpler one when equal."""
_BOUNDS = {"temperature": (math.log(0.05), math.log(20.0)), "bias": (-10.0, 10.0)}


@dataclass(frozen=True)
class LabelCalibration:
    """How the logits of one label become probabilities: sigmoid(logit / temperature + bias).

    Attributes:
        method: what was fitted; "none" leaves the logits as they are, "temperature" has no bias.
        threshold: of the calibrated probability, where F1 is best.
        youden_threshold: where sensitivity plus specificity is best.
        positives: patients with the label among those it was fitted on.
        patients: all whose label is known.
        ece_before: expected calibration error of the raw probabilities.
        ece_after: the same after calibration, cross-fitted.
        brier_before: mean squared error of the raw probabilities.
        brier_after: the same after calibration, cross-fitted.
    """

    temperature: float = 1.0
    bias: float = 0.0
    threshold: float = 0.5
    method: Method = "none"
    positives: int = 0
    patients: int = 0
    youden_threshold: float = 0.5
    ece_before: float = math.nan
    ece_after: float = math.nan
    brier_before: float = math.nan
    brier_after: float = math.nan

    def logits(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated logits."""
        return raw / self.temperature + self.bias

    def probabilities(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probabilities."""
        found: NDArray[np.float64] = expit(self.logits(raw))
        return found


_CROSS_FITTED = " (cross-fitted)"
_SUMMARIES = ("ece_before", "ece_after", "brier_before", "brier_after")


@dataclass(frozen=True)
class Calibration:
    """The calibrations of a model's labels.

    Attributes:
        labels: by name.
        fitted_on: which patients: "calibration", or "val+calibration (cross-fitted)".
    """

    labels: Mapping[str, LabelCalibration]
    fitted_on: str = "nothing"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose patients it was fitted on."""
        return tuple(self.fitted_on.removesuffix(_CROSS_FITTED).split("+"))

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The table with a column of calibrated probabilities for each label.

        Args:
            frame: a prediction table with the labels' logits.
        """
        found = {
            CALIBRATED + name: one.probabilities(_floats(frame, LOGIT + name))
            for name, one in self.labels.items()
        }
        return frame.assign(**found)

    def as_dict(self) -> dict[str, Any]:
        """As calibration.json has it; what is not defined is null."""
        labels = {name: _without_nan(asdict(one)) for name, one in self.labels.items()}
        means = {key: _mean([getattr(one, key) for one in self.labels.values()]) for key in _SUMMARIES}
        return {"labels": labels, "fitted_on": self.fitted_on, **_without_nan(means)}

    def write(self, path: Path) -> None:
        """Write calibration.json."""
        durable.make_folder(path.parent)
        durable.write_text(path, json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n")


def read(path: Path) -> Calibration:
    """Read calibration.json.

    Raises:
        MissingStage: there is none.
        StaleError: it has another form.
    """
    if not path.is_file():
        raise MissingStage(f"expected {path.name} beside the predictions; run `radfuse predict-split` first.")
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StaleError(
            f"{path.name} is no calibration of this version ({error}); run `radfuse predict-split` again."
        ) from error


def from_dict(given: Mapping[str, Any]) -> Calibration:
    """A calibration as calibration.json has it."""
    known = [field.name for field in fields(LabelCalibration)]
    labels = {
        name: LabelCalibration(**_with_nan({key: one[key] for key in known if key in one}))
        for name, one in given["labels"].items()
    }
    return Calibration(labels, given["fitted_on"])


def fit(
    frame: pd.DataFrame,
    labels: Sequence[str],
    splits: Sequence[str] | None = None,
    folds: int = FOLDS,
) -> Calibration:
    """Calibrate each label on the patients held out for it.

    Args:
        frame: a prediction table: patient_id, split, and ``label:`` and ``logit:`` columns.
        labels: which ones.
        splits: where to fit; by default `calibration`, and with fewer than ten positive patients of a label
            in it `val` and `calibration` together.
        folds: of the cross-fitting over patients.
    """
    wanted = tuple(splits) if splits is not None else _splits_for(frame, labels)
    rows = frame[frame[SPLIT].isin(wanted)]
    fold_of = folds_of(rows[PATIENT].tolist(), folds)
    found = {name: _fit_label(rows, name, fold_of) for name in labels}
    return Calibration(found, "+".join(wanted) + (_CROSS_FITTED if len(wanted) > 1 else ""))


def positive_patients(frame: pd.DataFrame, label: str) -> int:
    """How many patients have the label in at least one row."""
    return int(frame.loc[frame[LABEL + label] == 1, PATIENT].nunique())


def _splits_for(frame: pd.DataFrame, labels: Sequence[str]) -> tuple[str, ...]:
    own = frame[frame[SPLIT] == "calibration"]
    enough = all(positive_patients(own, name) >= FEW_POSITIVES for name in labels)
    return ("calibration",) if enough else ("val", "calibration")


def _fit_label(rows: pd.DataFrame, name: str, fold_of: NDArray[np.int64]) -> LabelCalibration:
    truth, raw = _floats(rows, LABEL + name), _floats(rows, LOGIT + name)
    there = np.isfinite(truth) & np.isfinite(raw)
    known = rows[there]
    truth, raw, fold_of = truth[there], raw[there], fold_of[there]
    positives = positive_patients(known, name)
    counted = {"positives": positives, "patients": int(known[PATIENT].nunique())}
    fewest = min(positives, int(known.loc[truth == 0, PATIENT].nunique()))
    crossed = {
        method: _cross_fitted(truth, raw, fold_of, method)
        for method, least in FEWEST.items()
        if fewest >= least
    }
    method = min(crossed, key=lambda one: (metrics.log_loss(truth, crossed[one]), list(FEWEST).index(one)))
    temperature, bias = _scaling(truth, raw, method)
    before, after = expit(raw), expit(crossed[method])
    final = expit(raw / temperature + bias)
    return LabelCalibration(
        temperature,
        bias,
        best_threshold(final, truth),
        method,
        **counted,
        youden_threshold=_youden(final, truth),
        ece_before=metrics.expected_calibration_error(truth, before),
        ece_after=metrics.expected_calibration_error(truth, after),
        brier_before=metrics.brier(truth, before),
        brier_after=metrics.brier(truth, after),
    )


def _cross_fitted(
    truth: NDArray[np.float64], raw: NDArray[np.float64], fold_of: NDArray[np.int64], method: Method
) -> NDArray[np.float64]:
    """(N,) logits, each calibrated without its own fold."""
    found = np.empty_like(raw)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        temperature, bias = _scaling(truth[~inside], raw[~inside], method)
        found[inside] = raw[inside] / temperature + bias
    return found


def _scaling(truth: NDArray[np.float64], raw: NDArray[np.float64], method: Method) -> tuple[float, float]:
    """Temperature and bias of least cross-entropy; the temperature stays positive, so ranks never turn round.

    Source:
        Guo et al.: On calibration of modern neural networks (ICML 2017) for temperature; Platt: Probabilistic
        outputs for support vector machines (1999) for scaling with a bias and for the targets short of 0 and
        1, which keep the scale finite where the classes are separated.
    """
    positives, negatives = float((truth == 1).sum()), float((truth == 0).sum())
    if method == "none" or not positives or not negatives:
        return 1.0, 0.0
    target = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scaled = raw * math.exp(-at[0])
        logit = scaled + (at[1] if len(at) > 1 else 0.0)
        wrong = expit(logit) - target
        slopes = [-np.mean(wrong * scaled), np.mean(wrong)]
        return float(np.mean(np.logaddexp(0.0, logit) - target * logit)), np.array(slopes[: len(at)])

    names = ["temperature"] if method == "temperature" else ["temperature", "bias"]
    best = minimize(
        loss, np.zeros(len(names)), jac=True, method="L-BFGS-B", bounds=[_BOUNDS[name] for name in names]
    )
    return math.exp(best.x[0]), float(best.x[1]) if method == "platt" else 0.0


def _youden(probability: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """The threshold of the highest sensitivity plus specificity; 0.5 where only one class is known."""
    if not (truth == 1).any() or not (truth == 0).any():
        return 0.5
    alarms, found, thresholds = roc_curve(truth, probability)
    # The first threshold is infinite: nothing is called positive there.
    return float(thresholds[1:][np.argmax((found - alarms)[1:])])


def _floats(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return frame[column].to_numpy(dtype=np.float64)


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if math.isfinite(value)]
    return sum(there) / len(there) if there else math.nan


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in values.items()}


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
