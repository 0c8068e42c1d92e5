"""Patients in groups (by sex, age, view, scanner, site), and which groups are too small to be shown.

A figure of a handful of patients says little about the model and too much about the patients. The size of a
hidden group must not be found by subtraction either, so groups are hidden, the smallest first, until
those hidden hold enough patients together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from radfuse.engine.tables import PATIENT

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

FEWEST_PATIENTS = 5
AGE = "age"
"""The name of the age groups, made from the column ``age_years``."""
UNKNOWN = "unknown"
HIDDEN = f"fewer than {FEWEST_PATIENTS} patients, or next to such a group"
_AGE_STARTS = (0, 18, 40, 60, 75)


@dataclass(frozen=True)
class Group:
    """The rows of one group, or nothing but its name where it is hidden.

    Attributes:
        name: the value that its rows share.
        rows: (N,) whether each row is in it; None where it is too small to be shown.
    """

    name: str
    rows: NDArray[np.bool_] | None


def groups_by(frame: pd.DataFrame, column: str) -> list[Group]:
    """The groups of a column that tell something: at least two, each large enough to be shown or hidden.

    Args:
        frame: rows with patient_id; a patient may be in several groups, as with the view of its images.
        column: of the frame, or `AGE`.
    """
    values = _values(frame, column)
    if values is None or len(set(values)) < 2:
        return []
    given = np.asarray(values)
    names = sorted(set(values), key=_order)
    patients = {name: int(frame.loc[given == name, PATIENT].nunique()) for name in names}
    hidden = hidden_groups(patients)
    return [Group(name, None if name in hidden else given == name) for name in patients]


def hidden_groups(patients: Mapping[str, int]) -> set[str]:
    """The groups that are not shown: the small ones, and as many more as it takes to hide their sizes.

    Args:
        patients: how many each group has.
    """
    hidden = {name for name, count in patients.items() if count < FEWEST_PATIENTS}
    left = sorted(patients.keys() - hidden, key=lambda name: (patients[name], name))
    while hidden and left and sum(patients[name] for name in hidden) < FEWEST_PATIENTS:
        hidden.add(left.pop(0))
    return hidden


def age_group(years: float) -> str:
    """The group that an age is in: "18-39", "75+"."""
    if not np.isfinite(years):
        return UNKNOWN
    place = max(index for index, start in enumerate(_AGE_STARTS) if years >= start or index == 0)
    start = _AGE_STARTS[place]
    return f"{start}+" if place + 1 == len(_AGE_STARTS) else f"{start}-{_AGE_STARTS[place + 1] - 1}"


def _values(frame: pd.DataFrame, column: str) -> Sequence[str] | None:
    if column == AGE:
        return [age_group(float(years)) for years in frame["age_years"]] if "age_years" in frame else None
    if column not in frame:
        return None
    known = frame[column].notna() & (frame[column].astype(str) != "")
    return [str(value) if there else UNKNOWN for value, there in zip(frame[column], known, strict=True)]


def _order(name: str) -> tuple[bool, str]:
    return name == UNKNOWN, name
