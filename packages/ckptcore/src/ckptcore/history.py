"""The history of a run as a small JSON file, for people and plots."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptcore import durable


def write_history(path: str | os.PathLike[str], history: Mapping[str, Sequence[float]]) -> Path:
    """Write what every epoch measured, whole or not at all.

    Args:
        path: the file.
        history: values by metric, one for each epoch. In the file all lists are equally long, as a table's
            columns are, and what was not measured or is not finite is null: JSON knows no NaN.

    Returns:
        The path.

    Raises:
        DiskFull: it does not fit; whatever was there is untouched.
    """
    target = Path(path)
    durable.write_text(target, _text(history))
    return target


def history_is(path: Path, history: Mapping[str, Sequence[float]]) -> bool:
    """Whether a file is there and tells exactly this history."""
    return path.is_file() and path.read_bytes() == _text(history).encode()


def _text(history: Mapping[str, Sequence[float]]) -> str:
    epochs = max(map(len, history.values()), default=0)
    columns = {name: _column(values, epochs) for name, values in history.items()}
    return json.dumps(columns, indent=2, allow_nan=False) + "\n"


def _column(values: Sequence[float], epochs: int) -> list[float | None]:
    told = [float(value) if math.isfinite(value) else None for value in values]
    return told + [None] * (epochs - len(told))
