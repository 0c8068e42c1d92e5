"""What the ensemble is made from: patients, their diseases, and whether there is enough of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from radfuse.engine.tables import DISEASE, PATIENT, SPLIT, columns
from radfuse.ensemble.features import Outputs, features_of, outputs_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from radfuse.engine.agreement import Table
    from radfuse.ensemble.settings import EnsembleSettings

HELD_OUT = ("val", "calibration")
TEST = "test"


class NotApplicable(Exception):
    """There is nothing to fuse, and why; no error: the rest of the pipeline goes on without an ensemble."""


@dataclass(frozen=True)
class Material:
    """What the modalities say of the patients whom no network has learnt from, and what these have.

    Attributes:
        outputs: of the patients of `val`, `calibration` and `test`.
        split: (P,) of each patient.
        diseases: names, of those that can be told.
        truth: (P, D) 0, 1 or NaN.
        splits: those that are fitted on.
        left_out: diseases that cannot be told, and why.
    """

    outputs: Outputs
    split: NDArray[np.str_]
    diseases: Sequence[str]
    truth: NDArray[np.float64]
    splits: Sequence[str]
    left_out: Mapping[str, str]

    @property
    def fits(self) -> NDArray[np.bool_]:
        """(P,) whether a patient is fitted on."""
        return np.isin(self.split, self.splits)

    @property
    def fitted_on(self) -> str:
        """The splits in words, as `radfuse.engine.calibration` has them."""
        return "+".join(self.splits) + " (cross-fitted)"


def gather(tables: Mapping[str, Table], patients: pd.DataFrame, settings: EnsembleSettings) -> Material:
    """What there is to fit on and to answer for; patients of `train` take no part.

    Args:
        tables: predictions by modality.
        patients: one row a patient, with ``disease:`` columns.
        settings: which splits, and how few patients are too few.

    Raises:
        NotApplicable: saying why nothing can be fused.
    """
    if len(tables) < 2:
        raise NotApplicable(f"there is one modality alone ({', '.join(tables)}), and nothing to fuse it with")
    known = _truth(patients)
    outputs = outputs_of(tables, features_of(tables, settings.pooling))
    own = patients.set_index(patients[PATIENT].astype(str)).reindex(list(outputs.patients))
    split = own[SPLIT].to_numpy(dtype=str, na_value="")
    among = np.isin(split, [*HELD_OUT, TEST])
    truth = own[[DISEASE + name for name in known]].to_numpy(dtype=np.float64, na_value=np.nan)
    outputs, split, truth = outputs.rows(among), split[among], truth[among]
    splits = settings.splits or _splits(split, truth, settings)
    inside = np.isin(split, splits)
    _check_overlap(outputs, inside, settings)
    kept, left_out = _tellable(known, truth[inside], settings)
    diseases = [known[at] for at in kept]
    return Material(outputs, split, diseases, truth[:, kept], sorted(splits, key=HELD_OUT.index), left_out)


def _truth(patients: pd.DataFrame) -> list[str]:
    names = [name for name in columns(patients, DISEASE) if patients[DISEASE + name].notna().any()]
    if not names:
        raise NotApplicable("the cohort tells no disease of whole patients")
    return names


def _splits(
    split: NDArray[np.str_], truth: NDArray[np.float64], settings: EnsembleSettings
) -> tuple[str, ...]:
    positives = (truth[split == "calibration"] == 1).sum(axis=0)
    return ("calibration",) if (positives >= settings.merge_below).all() else HELD_OUT


def _check_overlap(outputs: Outputs, inside: NDArray[np.bool_], settings: EnsembleSettings) -> None:
    several = int((outputs.mask[inside].sum(axis=1) >= 2).sum())
    if several < settings.minimum_patients:
        raise NotApplicable(
            f"{several} of the {int(inside.sum())} patients to fit on have two modalities or more, and "
            f"ensemble.minimum_patients asks for {settings.minimum_patients}"
        )


def _tellable(
    names: Sequence[str], truth: NDArray[np.float64], settings: EnsembleSettings
) -> tuple[list[int], dict[str, str]]:
    """The diseases with enough patients of either kind, and why the others are left out."""
    kept, left_out = [], {}
    for at, name in enumerate(names):
        positives, negatives = int((truth[:, at] == 1).sum()), int((truth[:, at] == 0).sum())
        if min(positives, negatives) >= settings.minimum_positives:
            kept.append(at)
        else:
            fewer, what = min((positives, "have"), (negatives, "do not have"))
            left_out[name] = (
                f"{fewer} of the patients to fit on {what} it, and "
                f"ensemble.minimum_positives asks for {settings.minimum_positives}"
            )
    if not kept:
        raise NotApplicable("; ".join(f"{name}: {why}" for name, why in left_out.items()))
    return kept, left_out
