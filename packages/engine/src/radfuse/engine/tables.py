"""Names of the columns that cohort, prediction and report tables share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

PATIENT = "patient_id"
STUDY = "study_id"
SAMPLE = "sample_id"
MODALITY = "modality"
SPLIT = "split"
SPLITS = ("train", "val", "calibration", "test")

LABEL = "label:"
"""A sample's true label: 0, 1, or NaN where it is not known."""
REFERENCE = "reference:"
"""A sample's score that needs no model, such as the size of a nodule; NaN where it is not known."""
DISEASE = "disease:"
"""A patient's true disease: 0, 1, or NaN."""
LOGIT = "logit:"
PROBABILITY = "probability:"
"""Sigmoid of the raw logit."""
CALIBRATED = "calibrated:"
"""Probability after calibration."""
VOLUME = "volume_mm3:"
"""Predicted volume of a region."""
TRUE_VOLUME = "true_volume_mm3:"
DICE = "dice:"


def columns(frame: pd.DataFrame, prefix: str) -> list[str]:
    """What follows the prefix in the names of the columns that have it, in the table's order."""
    return [str(name)[len(prefix) :] for name in frame.columns if str(name).startswith(prefix)]
