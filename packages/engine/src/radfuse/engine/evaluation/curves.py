"""Curves of the report as small tables: what `dvc plots` draws, and what the figures are drawn from.

No row tells of one patient: curves are read off at fixed places, and curves and bins of fewer patients than a
group must have to be shown are left out. Columns of labels and regions have the prefixes of the prediction
table, so that none is taken for a column of another kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_curve

from radfuse.engine import metrics
from radfuse.engine.evaluation.shared import floats
from radfuse.engine.subgroups import FEWEST_PATIENTS
from radfuse.engine.tables import CALIBRATED, DICE, LABEL, PATIENT, columns
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

    Returns:
        The columns false_positive_rate, mean, and ``label:<name>`` of each label with enough positive and
        negative patients; no row where no label has.
    """
    import pandas as pd

    at = np.linspace(0, 1, _PLACES)
    curves = {}
    for name in columns(rows, LABEL):
        if _told_by_enough(rows, name):
            truth, score = metrics.known(floats(rows, LABEL + name), floats(rows, CALIBRATED + name))
            curves[LABEL + name] = _roc_at(truth, score, at)
    if not curves:
        return pd.DataFrame(columns=[FALSE_POSITIVES, MEAN], dtype=float)
    mean = np.mean(list(curves.values()), axis=0)
    return pd.DataFrame({FALSE_POSITIVES: at, MEAN: mean, **curves}).round(6)


def calibration_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean probability and share of positives in bins of equal width, over all labels together.

    Args:
        rows: test rows of a classification table.

    Returns:
        The columns predicted, observed and samples; bins of few patients are not among them.
    """
    import pandas as pd

    each = [
        pd.DataFrame(
            {
                PATIENT: rows[PATIENT].to_numpy(),
                "observed": floats(rows, LABEL + name),
                "predicted": floats(rows, CALIBRATED + name),
            }
        ).dropna()
        for name in columns(rows, LABEL)
    ]
    told = pd.concat(each, ignore_index=True)
    bins = told.groupby(metrics.bin_of(told["predicted"].to_numpy()))
    table = bins[["predicted", "observed"]].mean().assign(samples=bins.size())
    return table[bins[PATIENT].nunique() >= FEWEST_PATIENTS].round(6).reset_index(drop=True)


def dice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of the Dice coefficient of each region, every 5 %.

    Args:
        rows: test rows of a segmentation table.

    Returns:
        The columns quantile and ``dice:<name>``; the latter empty for a region of few patients.
    """
    import pandas as pd

    at = np.linspace(0, 1, 21)
    regions = {DICE + name: _quantiles(floats(rows, DICE + name), at) for name in drawn_regions(rows)}
    hidden = {DICE + name: np.nan for name in columns(rows, DICE)}
    return pd.DataFrame({QUANTILE: at, **hidden, **regions}).round(6)


def drawn_regions(rows: pd.DataFrame) -> list[str]:
    """The regions whose Dice is known of enough patients to be drawn.

    Args:
        rows: test rows of a segmentation table.
    """
    return [name for name in columns(rows, DICE) if _enough(rows, np.isfinite(floats(rows, DICE + name)))]


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
    return np.asarray(np.quantile(values[np.isfinite(values)], at))


def _told_by_enough(rows: pd.DataFrame, label: str) -> bool:
    """Whether enough patients are behind both axes of a label's ROC curve."""
    truth, scored = floats(rows, LABEL + label), np.isfinite(floats(rows, CALIBRATED + label))
    return all(_enough(rows, scored & (truth == value)) for value in (0, 1))


def _enough(rows: pd.DataFrame, counted: NDArray[np.bool_]) -> bool:
    return bool(rows.loc[counted, PATIENT].nunique() >= FEWEST_PATIENTS)
