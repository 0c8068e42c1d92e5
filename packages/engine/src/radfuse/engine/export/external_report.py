"""Figures of a model on an external source: those of the report, but for what needs the pipeline's cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.engine import weighted
from radfuse.engine.bootstrap import Bootstrap
from radfuse.engine.evaluation.classification import Judged
from radfuse.engine.evaluation.segmentation import segmentation_report
from radfuse.engine.evaluation.shared import floats
from radfuse.engine.tables import CALIBRATED, LABEL, PATIENT, TRUE_VOLUME, columns
from radfuse.serving.card import SEGMENTATION

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.blocks import EvaluateSettings
    from radfuse.serving import Card

_UNTOLD = 0.5
"""Threshold of a label for which the card has none."""


def external_report(frame: pd.DataFrame, card: Card, settings: EvaluateSettings) -> dict[str, Any]:
    """Figures with intervals over patients; labels that the source does not know are left out.

    Args:
        frame: one row an answered sample.
        card: of the model; its thresholds are used, none is chosen here.
        settings: resamples and confidence.
    """

    @lru_cache(maxsize=8)
    def made(patients: tuple[str, ...]) -> Bootstrap:
        return Bootstrap(patients, settings.bootstrap, settings.confidence)

    if card.task == SEGMENTATION:
        known = [TRUE_VOLUME + name for name in columns(frame, TRUE_VOLUME)]
        with_truth = frame[frame[known].notna().all(axis=1)]
        if with_truth.empty:
            return {"task": card.task, "samples": 0}
        return segmentation_report(with_truth, settings.subgroups, lambda patients: made(tuple(patients)))
    return _classification(frame, card.labels, card.thresholds, made(tuple(frame[PATIENT])))


def _classification(
    frame: pd.DataFrame, labels: Sequence[str], thresholds: Mapping[str, float], bootstrap: Bootstrap
) -> dict[str, Any]:
    told = [name for name in labels if np.isfinite(floats(frame, LABEL + name)).any()]
    judged = {
        name: Judged.of(
            floats(frame, LABEL + name), floats(frame, CALIBRATED + name), thresholds.get(name, _UNTOLD)
        )
        for name in told
    }
    by_label = {name: _label(frame, name, one, bootstrap, thresholds) for name, one in judged.items()}
    over = [name for name in told if by_label[name]["auroc"]["value"] is not None]
    areas = [judged[name].statistics["auroc"] for name in over]
    return {
        "task": "classification",
        "samples": len(frame),
        "patients": bootstrap.patients,
        "labels": by_label,
        "mean": {
            "auroc": bootstrap.interval(weighted.mean_of(areas)).as_dict() if areas else None,
            "over": over,
        },
    }


def _label(
    frame: pd.DataFrame, name: str, judged: Judged, bootstrap: Bootstrap, thresholds: Mapping[str, float]
) -> dict[str, Any]:
    truth = floats(frame, LABEL + name)
    return {
        "samples": int(np.isfinite(truth).sum()),
        "positives": int((truth == 1).sum()),
        "threshold": thresholds.get(name, _UNTOLD),
        **{figure: bootstrap.interval(one).as_dict() for figure, one in judged.statistics.items()},
    }
