"""Ages, sexes and views as tables and DICOM headers write them, in one spelling."""

from __future__ import annotations

import math
import re

_OLDEST_YEARS = 120
_AGE_UNITS = {"Y": 1.0, "M": 12.0, "W": 52.1775, "D": 365.25}
_SEXES = {
    "f": "F",
    "female": "F",
    "w": "F",
    "woman": "F",
    "m": "M",
    "male": "M",
    "man": "M",
    "o": "O",
    "other": "O",
}


def age_years(text: str) -> float:
    """An age in years, NaN for what is none: ``58``, or ``058Y``, ``006M``, ``012W``, ``003D`` as in DICOM.

    Ages above 120 are taken for typing errors; ChestX-ray14 has some of 400 and more.

    Source:
        DICOM PS3.5 section 6.2, value representation AS.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", text.strip().upper())
    if found is None:
        return math.nan
    years = float(found[1]) / _AGE_UNITS[found[2] or "Y"]
    return years if years <= _OLDEST_YEARS else math.nan


def sex(text: str) -> str:
    """``F``, ``M``, ``O``, or empty for anything else."""
    return _SEXES.get(text.strip().lower(), "")


def view(text: str) -> str:
    """A view position in capitals: ``PA``."""
    return text.strip().upper()
