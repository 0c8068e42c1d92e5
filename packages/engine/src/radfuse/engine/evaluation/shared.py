"""What figures of all kinds share: columns as numbers, resamples, and figures by group of patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.engine import subgroups
from radfuse.engine.bootstrap import Bootstrap
from radfuse.engine.tables import PATIENT

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from radfuse.engine.weighted import Statistic

ECE = "ece"
Resampling = Callable[[Sequence[str]], Bootstrap]
"""Makes the resamples for whose each of some rows is."""


def floats(rows: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """(N,) a column as numbers, NaN where nothing is known."""
    return rows[column].to_numpy(dtype=np.float64, na_value=np.nan)


def interval(bootstrap: Bootstrap, figure: str, statistic: Statistic) -> dict[str, float | None]:
    """A figure and its interval by a method that suits it.

    Args:
        bootstrap: the resamples.
        figure: its name; "ece" is the one that resampling shifts.
        statistic: the figure.
    """
    if figure != ECE:
        return bootstrap.interval(statistic).as_dict()
    found = bootstrap.interval(statistic, "centred").as_dict()
    return {**found, "low": None if found["low"] is None else max(0.0, found["low"])}


def by_groups(
    rows: pd.DataFrame,
    column: str,
    figure: str,
    statistic_of: Callable[[pd.DataFrame], Statistic],
    resampling: Resampling,
) -> list[dict[str, Any]]:
    """A figure in each group of patients; groups that are too small are named and nothing else.

    Args:
        rows: of the test patients.
        column: whose values make the groups.
        figure: its name.
        statistic_of: the figure of some rows.
        resampling: makes the resamples for the patients of some rows.
    """
    shown: list[dict[str, Any]] = []
    for group in subgroups.groups_by(rows, column):
        if group.rows is None:
            shown.append({"group": group.name, "patients": None, figure: None, "hidden": subgroups.HIDDEN})
            continue
        inside = rows[group.rows]
        bootstrap = resampling(inside[PATIENT].tolist())
        interval = bootstrap.interval(statistic_of(inside)).as_dict()
        shown.append({"group": group.name, "patients": bootstrap.patients, figure: interval})
    return shown
