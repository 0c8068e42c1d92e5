"""Comparing metric values: NaN and the infinities never count, and a tie is no improvement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Literal

Mode = Literal["min", "max"]


def finite_score(metrics: Mapping[str, float], metric: str) -> float | None:
    """The metric's value, or None when it is absent, not a number, NaN or infinite."""
    value: object = metrics.get(metric)
    if not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of floats
        return None
    return number if math.isfinite(number) else None


def improves(value: float, best: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Whether a value beats the best so far by more than ``min_delta``; anything beats None."""
    if best is None:
        return True
    return value > best + min_delta if mode == "max" else value < best - min_delta
