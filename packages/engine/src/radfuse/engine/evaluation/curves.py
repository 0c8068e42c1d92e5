"""Curves of the report as small tables: what `dvc plots` draws, and what the figures are drawn from.

No row tells of one patient: curves are read off at fixed places, and bins of few samples are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_curve

from radfuse.engine import metrics
from radfuse.engine.evaluation.shared import floats
from radfuse.engine.subgroups import FEWEST_PATIENTS
from radfuse.engine.tables import CALIBRATED, DICE, LABEL, columns
from radfuse.engine.tracking import FINISHED_AT

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_PLACES = 101
FALSE_POSITIVES = "false_positive_rate"
QUANTILE = "quantile"
MEAN = "mean"


def roc_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Sensitivity of each label at 101 false positive rates, and their mean.

    Args:
        rows: test rows of a classification table.
    """
    import pandas as pd

    at = np.linspace(0, 1, _PLACES)
    curves = {}
    for name in columns(rows, LABEL):
        truth, score = metrics.known(floats(rows, LABEL + name), floats(rows, CALIBRATED + name))
        if 0 < truth.sum() < len(truth):
            curves[name] = _roc_at(truth, score, at)
    mean = np.mean(list(curves.values()), axis=0) if curves else np.full(_PLACES, np.nan)
    return pd.DataFrame({FALSE_POSITIVES: at, MEAN: mean, **curves}).round(6)


def calibration_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean probability and share of positives in bins of equal width, over all labels together.

    Args:
        rows: test rows of a classification table.

    Returns:
        The columns predicted, observed and samples; bins of few samples are not among them.
    """
    import pandas as pd

    pairs = [
        metrics.known(floats(rows, LABEL + name), floats(rows, CALIBRATED + name))
        for name in columns(rows, LABEL)
    ]
    truth = np.concatenate([pair[0] for pair in pairs]) if pairs else np.zeros(0)
    probability = np.concatenate([pair[1] for pair in pairs]) if pairs else np.zeros(0)
    place = metrics.bin_of(probability)
    samples = np.bincount(place, minlength=metrics.ECE_BINS)
    many = np.maximum(samples, 1)
    table = pd.DataFrame(
        {
            "predicted": np.bincount(place, weights=probability, minlength=metrics.ECE_BINS) / many,
            "observed": np.bincount(place, weights=truth, minlength=metrics.ECE_BINS) / many,
            "samples": samples,
        }
    )
    return table[table["samples"] >= FEWEST_PATIENTS].round(6).reset_index(drop=True)


def dice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of the Dice coefficient of each region, every 5 %.

    Args:
        rows: test rows of a segmentation table.
    """
    import pandas as pd

    at = np.linspace(0, 1, 21)
    regions = {name: _quantiles(floats(rows, DICE + name), at) for name in columns(rows, DICE)}
    return pd.DataFrame({QUANTILE: at, **regions}).round(6)


def ensemble_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """Mean AUROC of each method with its interval and ceiling; no row where there is no ensemble.

    Args:
        report: what `ensemble_report` found.
    """
    import pandas as pd

    rows = [
        {"method": method, **_flat(one["auroc"]), "ceiling": one["ceiling"]}
        for method, one in report.get("mean", {}).items()
    ]
    return pd.DataFrame(rows, columns=["method", "mean_auroc", "low", "high", "ceiling"]).round(6)


def training_table(history: Mapping[str, Sequence[float | None]]) -> pd.DataFrame:
    """What every epoch of a training measured, epochs counted from 1 as in the names of checkpoints.

    Args:
        history: values by metric, one for each epoch.
    """
    import pandas as pd

    measured = {name: values for name, values in history.items() if name != FINISHED_AT}
    epochs = max(map(len, measured.values()), default=0)
    return pd.DataFrame({"epoch": range(1, epochs + 1), **measured})


def _flat(interval: Mapping[str, Any]) -> dict[str, Any]:
    return {"mean_auroc": interval["value"], "low": interval["low"], "high": interval["high"]}


def _roc_at(truth: Sequence[Any] | NDArray[Any], score: NDArray[Any], at: NDArray[Any]) -> NDArray[Any]:
    """Highest sensitivity at or below each false positive rate: steps, not lines between points."""
    alarms, found, _ = roc_curve(truth, score)
    last = np.searchsorted(alarms, at + 1e-12, side="right") - 1
    return np.asarray(found[last])


def _quantiles(values: NDArray[np.float64], at: NDArray[Any]) -> NDArray[Any]:
    known = values[np.isfinite(values)]
    return np.quantile(known, at) if known.size else np.full(len(at), np.nan)
