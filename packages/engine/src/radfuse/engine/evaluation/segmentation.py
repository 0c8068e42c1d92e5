"""Figures of a model that outlines regions: Dice, and how far off the volumes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.engine import metrics, weighted
from radfuse.engine.evaluation.shared import Resampling, by_groups, floats
from radfuse.engine.tables import DICE, PATIENT, TRUE_VOLUME, VOLUME, columns

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.bootstrap import Bootstrap

MM3_PER_ML = 1000.0


def segmentation_report(test: pd.DataFrame, groups: Sequence[str], resampling: Resampling) -> dict[str, Any]:
    """Every figure of a model on the test patients.

    Args:
        test: prediction rows of `test`, with what the cohort knows of them.
        groups: columns to show groups of.
        resampling: makes the resamples for the patients of some rows.
    """
    regions = columns(test, DICE)
    bootstrap = resampling(test[PATIENT].tolist())
    return {
        "task": "segmentation",
        "samples": len(test),
        "patients": bootstrap.patients,
        "regions": {name: _region(test, name, bootstrap) for name in regions},
        "mean": {
            "dice": bootstrap.interval(_mean_dice(test, regions)).as_dict(),
            "over": regions,
            "ceiling": None,
        },
        "subgroups": {
            column: by_groups(test, column, "dice", lambda rows: _mean_dice(rows, regions), resampling)
            for column in groups
        },
    }


def _region(rows: pd.DataFrame, name: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Dice and volumes of one region; volumes in ml, and an error below zero is a region drawn too small."""
    dice = floats(rows, DICE + name)
    error = (floats(rows, VOLUME + name) - floats(rows, TRUE_VOLUME + name)) / MM3_PER_ML
    return {
        "samples": int(np.isfinite(dice).sum()),
        "dice": bootstrap.interval(weighted.mean(dice)).as_dict(),
        "dice_quartiles": _plain(metrics.dice_summary(dice)),
        "volume_error_ml": bootstrap.interval(weighted.mean(error)).as_dict(),
        "absolute_volume_error_ml": bootstrap.interval(weighted.mean(np.abs(error))).as_dict(),
    }


def _mean_dice(rows: pd.DataFrame, regions: Sequence[str]) -> weighted.Statistic:
    return weighted.mean_of([weighted.mean(floats(rows, DICE + name)) for name in regions])


def _plain(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}
