"""Folds of patients for cross-fitting: what is said of a patient is fitted on other patients alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDS = 5


def folds_of(patients: Sequence[str], count: int = FOLDS, seed: int = 0) -> NDArray[np.int64]:
    """The fold, from 0, of each row: all rows of a patient in one, folds equal to within one patient.

    Labels play no part, so a patient's own label never moves it or anybody else.

    Args:
        patients: (N,) whose each row is; patients may repeat.
        count: how many folds.
        seed: of the order in which patients are dealt out.
    """
    names, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    drawn = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    place = np.empty(len(names), dtype=np.int64)
    place[sorted(range(len(names)), key=drawn.__getitem__)] = np.arange(len(names))
    found: NDArray[np.int64] = (place % max(1, count))[patient_of]
    return found
