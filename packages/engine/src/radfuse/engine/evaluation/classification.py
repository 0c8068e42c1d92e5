"""Figures of a model that tells labels: by image, by patient, by group of patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.engine import metrics, weighted
from radfuse.engine.evaluation.shared import ECE, Resampling, by_groups, floats, interval
from radfuse.engine.tables import CALIBRATED, LABEL, PATIENT, PROBABILITY, REFERENCE, columns
from radfuse.engine.training.pooling import Pooling, pool_labels, pool_scores
from radfuse.engine.training.thresholds import best_threshold

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from radfuse.engine.bootstrap import Bootstrap
    from radfuse.engine.calibration import Calibration
    from radfuse.engine.ceilings import Ceilings
    from radfuse.engine.weighted import Statistic

POOLINGS: tuple[Pooling, ...] = ("mean", "max", "noisy_or")
FIGURES = ("auroc", "average_precision", "f1", "sensitivity", "specificity", "brier", "ece")


@dataclass(frozen=True)
class Judged:
    """The figures of one label, each under any weighting of the rows."""

    statistics: Mapping[str, Statistic]

    @classmethod
    def of(cls, truth: NDArray[Any], probability: NDArray[Any], threshold: float) -> Judged:
        """The figures by name.

        Args:
            truth: (N,) 0, 1 or NaN.
            probability: (N,) calibrated.
            threshold: chosen on other patients.
        """
        return cls(
            {
                "auroc": weighted.auroc(truth, probability),
                "average_precision": weighted.average_precision(truth, probability),
                "f1": weighted.f1(truth, probability, threshold),
                "sensitivity": weighted.sensitivity(truth, probability, threshold),
                "specificity": weighted.specificity(truth, probability, threshold),
                "brier": weighted.brier(truth, probability),
                "ece": weighted.expected_calibration_error(truth, probability),
            }
        )


def classification_report(
    test: pd.DataFrame,
    held_out: pd.DataFrame,
    calibration: Calibration,
    ceilings: Ceilings,
    groups: Sequence[str],
    resampling: Resampling,
) -> dict[str, Any]:
    """Every figure of a model on the test patients.

    Args:
        test: prediction rows of `test`, with what the cohort knows of them.
        held_out: prediction rows of the patients that the calibration was fitted on.
        calibration: whose thresholds are used.
        ceilings: of the labels.
        groups: columns to show groups of.
        resampling: makes the resamples for the patients of some rows.
    """
    labels = columns(test, LABEL)
    bootstrap = resampling(test[PATIENT].tolist())
    judged = {name: _judged(test, name, calibration) for name in labels}
    by_label = {name: _label(test, name, judged[name], bootstrap, calibration, ceilings) for name in labels}
    told = [name for name in labels if by_label[name]["auroc"]["value"] is not None]
    means = {
        figure: interval(
            bootstrap, figure, weighted.mean_of([judged[name].statistics[figure] for name in told or labels])
        )
        for figure in FIGURES
    }
    return {
        "task": "classification",
        "samples": len(test),
        "patients": bootstrap.patients,
        "labels": by_label,
        "mean": {**means, "over": told, "ceiling": ceilings.mean_label(told)},
        "patient_level": {how: _pooled(test, held_out, labels, how, resampling) for how in POOLINGS},
        "subgroups": {
            column: by_groups(test, column, "auroc", _mean_auroc(labels), resampling) for column in groups
        },
        "references": _references(test, labels, judged, bootstrap),
    }


def _judged(rows: pd.DataFrame, name: str, calibration: Calibration) -> Judged:
    threshold = calibration.labels[name].threshold if name in calibration.labels else 0.5
    return Judged.of(floats(rows, LABEL + name), floats(rows, CALIBRATED + name), threshold)


def _label(
    rows: pd.DataFrame,
    name: str,
    judged: Judged,
    bootstrap: Bootstrap,
    calibration: Calibration,
    ceilings: Ceilings,
) -> dict[str, Any]:
    truth = floats(rows, LABEL + name)
    fitted = calibration.labels.get(name)
    raw = floats(rows, PROBABILITY + name)
    threshold = fitted.threshold if fitted else 0.5
    # The figures are scikit-learn's; the resamples' are the same computed for all of them at once.
    values = metrics.classification(truth, floats(rows, CALIBRATED + name), threshold)
    figures = judged.statistics.items()
    return {
        "samples": int(np.isfinite(truth).sum()),
        "positives": int((truth == 1).sum()),
        "threshold": threshold,
        "method": fitted.method if fitted else "none",
        **{name: {**interval(bootstrap, name, one), "value": _plain(values[name])} for name, one in figures},
        "uncalibrated": {
            "brier": interval(bootstrap, "brier", weighted.brier(truth, raw)),
            ECE: interval(bootstrap, ECE, weighted.expected_calibration_error(truth, raw)),
        },
        "ceiling": ceilings.label(name),
    }


def _pooled(
    test: pd.DataFrame, held_out: pd.DataFrame, labels: Sequence[str], how: Pooling, resampling: Resampling
) -> dict[str, Any]:
    """Figures of one score a patient; thresholds are chosen on the pooled scores of the held-out patients."""
    patients, scores, truth = _pool(test, labels, how)
    _, held_scores, held_truth = _pool(held_out, labels, how)
    thresholds = [best_threshold(held_scores[:, at], held_truth[:, at]) for at in range(len(labels))]
    judged = [Judged.of(truth[:, at], scores[:, at], thresholds[at]) for at in range(len(labels))]
    bootstrap = resampling(patients)
    defined = [
        one for one in judged if np.isfinite(one.statistics["auroc"](np.ones((1, len(patients))))).all()
    ]
    return {
        "patients": len(patients),
        "thresholds": dict(zip(labels, thresholds, strict=True)),
        "mean": {
            figure: bootstrap.interval(
                weighted.mean_of([one.statistics[figure] for one in defined or judged])
            ).as_dict()
            for figure in ("auroc", "f1", "sensitivity", "specificity")
        },
    }


def _pool(
    rows: pd.DataFrame, labels: Sequence[str], how: Pooling
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    patients = rows[PATIENT].tolist()
    scores = rows[[CALIBRATED + name for name in labels]].to_numpy(dtype=float)
    names, pooled = pool_scores(scores, patients, how)
    _, truth = pool_labels(rows[[LABEL + name for name in labels]].to_numpy(dtype=float), patients)
    return names, pooled, truth


def _mean_auroc(labels: Sequence[str]) -> Callable[[pd.DataFrame], Statistic]:
    """The mean over the labels that have both classes in the rows at hand."""

    def statistic(rows: pd.DataFrame) -> Statistic:
        return weighted.mean_of(
            [weighted.auroc(floats(rows, LABEL + name), floats(rows, CALIBRATED + name)) for name in labels]
        )

    return statistic


def _references(
    rows: pd.DataFrame, labels: Sequence[str], judged: Mapping[str, Judged], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Each reference score of the cohort against the model, on the same rows of the same patients."""
    found: dict[str, Any] = {}
    for name in columns(rows, REFERENCE):
        score = floats(rows, REFERENCE + name)
        if not np.isfinite(score).any():
            continue  # It is told of another modality's images.
        for label in labels:
            # Where the reference is not known, neither is judged.
            truth = np.where(np.isfinite(score), floats(rows, LABEL + label), np.nan)
            reference = weighted.auroc(truth, score)
            model = weighted.auroc(truth, floats(rows, CALIBRATED + label))
            found.setdefault(name, {})[label] = {
                "reference": bootstrap.interval(reference).as_dict(),
                "model": bootstrap.interval(model).as_dict(),
                "difference": bootstrap.interval(weighted.difference(model, reference)).as_dict(),
            }
    return found


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
