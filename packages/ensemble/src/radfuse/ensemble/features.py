"""What the modalities say of each patient, as one row of numbers: the ensemble's input.

A classifier gives its raw logits, a segmenter the logarithms of its regions' volumes. Where a patient has
several images of a modality, their answers are pooled; where there is none, the numbers are 0 and the mask
says so. Nothing here reads a truth: Dice and true volumes are never features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from radfuse.engine.errors import StaleError
from radfuse.engine.evaluation.ensemble import AVAILABLE
from radfuse.engine.tables import LOGIT, PATIENT, VOLUME, columns

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from radfuse.engine.agreement import Table

Kind = Literal["logit", "log_volume", "log_count"]
_POOLED: tuple[Literal["mean"], Literal["max"]] = ("mean", "max")
MM3_PER_ML = 1000.0
SMALLEST_ML = 0.1
"""Added to every volume before its logarithm, so that an empty region has one."""


@dataclass(frozen=True)
class Feature:
    """One number that a modality says of a patient.

    Attributes:
        modality: its name.
        output: label or region.
        kind: "logit": raw, as the network gives it before calibration; "log_volume": log(ml + 0.1);
            "log_count": log(1 + images).
        pooling: how the images of a patient become one number.
    """

    modality: str
    output: str
    kind: Kind
    pooling: Literal["mean", "max", "count"]

    @property
    def name(self) -> str:
        """As in files: ``ct:malignant:max``."""
        return f"{self.modality}:{self.output}:{self.pooling}"

    def as_dict(self) -> dict[str, str]:
        """As JSON has it."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Outputs:
    """What is said of some patients.

    Attributes:
        patients: (P,) ids, sorted.
        values: (P, F) features, 0 where the patient lacks the modality.
        mask: (P, M) 1 where the patient has it, else 0.
        features: of the columns of `values`.
        modalities: of the columns of `mask`, sorted.
    """

    patients: Sequence[str]
    values: NDArray[np.float64]
    mask: NDArray[np.float64]
    features: Sequence[Feature]
    modalities: Sequence[str]

    @property
    def owner(self) -> NDArray[np.int64]:
        """(F,) the column of `mask` that says whether a feature is there."""
        return np.array([list(self.modalities).index(one.modality) for one in self.features], dtype=np.int64)

    @property
    def inputs(self) -> NDArray[np.float64]:
        """(P, F + M) features and mask, as the network takes them."""
        return np.concatenate([self.values, self.mask], axis=1)

    def rows(self, chosen: NDArray[Any]) -> Outputs:
        """Some of the patients.

        Args:
            chosen: (P,) booleans or indices.
        """
        names = np.asarray(self.patients)[chosen].tolist()
        return Outputs(names, self.values[chosen], self.mask[chosen], self.features, self.modalities)


def features_of(tables: Mapping[str, Table], pooling: Mapping[str, Sequence[str]]) -> list[Feature]:
    """The features that prediction tables give, modality by modality.

    Args:
        tables: by modality.
        pooling: of several images of a patient, by modality; the mean where nothing is said.
    """
    found: list[Feature] = []
    for modality in sorted(tables):
        frame = tables[modality].frame
        ways = pooling.get(modality, ("mean",))
        kind: Kind = "log_volume" if tables[modality].segments else "logit"
        outputs = columns(frame, VOLUME if tables[modality].segments else LOGIT)
        found += [
            Feature(modality, output, kind, how) for output in outputs for how in _POOLED if how in ways
        ]
        if "count" in ways:
            found.append(Feature(modality, "images", "log_count", "count"))
    return found


def feature_names(features: Sequence[Feature]) -> list[str]:
    """The names of the network's inputs: every feature, then ``available:<modality>`` for each modality.

    Args:
        features: in their order.
    """
    modalities = sorted({one.modality for one in features})
    return [one.name for one in features] + [AVAILABLE + name for name in modalities]


def outputs_of(tables: Mapping[str, Table], features: Sequence[Feature]) -> Outputs:
    """What is said of every patient in any of the tables.

    Args:
        tables: by modality.
        features: to take from them.

    Raises:
        StaleError: a prediction is no finite number.
    """
    modalities = sorted(tables)
    patients = sorted({str(name) for table in tables.values() for name in table.frame[PATIENT]})
    place = {name: index for index, name in enumerate(patients)}
    values, mask = np.zeros((len(patients), len(features))), np.zeros((len(patients), len(modalities)))
    for at, feature in enumerate(features):
        pooled = _pooled(tables[feature.modality].frame, feature)
        rows = [place[str(name)] for name in pooled.index]
        values[rows, at] = pooled.to_numpy(dtype=np.float64)
        mask[rows, modalities.index(feature.modality)] = 1.0
    return Outputs(patients, values, mask, features, modalities)


def _pooled(frame: pd.DataFrame, feature: Feature) -> pd.Series[float]:
    """One number a patient, by patient id."""
    grouped = _said(frame, feature).groupby(frame[PATIENT].astype(str))
    if feature.kind == "log_count":
        return grouped.size().map(math.log1p)
    return grouped.max() if feature.pooling == "max" else grouped.mean()


def _said(frame: pd.DataFrame, feature: Feature) -> pd.Series[float]:
    """(rows,) what a feature is pooled from."""
    if feature.kind == "log_count":
        return frame[PATIENT].notna().astype(float)
    column = (LOGIT if feature.kind == "logit" else VOLUME) + feature.output
    said = frame[column].astype(float)
    if not np.isfinite(said).all():
        raise StaleError(
            f"expected finite numbers in the column {column!r} of the predictions of {feature.modality}, got "
            f"{int((~np.isfinite(said)).sum())} that are not; "
            f"run `radfuse predict-split {feature.modality}` again."
        )
    return (said / MM3_PER_ML + SMALLEST_ML).map(math.log) if feature.kind == "log_volume" else said
