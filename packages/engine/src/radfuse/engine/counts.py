"""How many patients and positives each split has, and whether they are enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from radfuse.engine.blocks import SplitSettings
from radfuse.engine.errors import RadfuseError
from radfuse.engine.tables import DISEASE, LABEL, MODALITY, PATIENT, SPLIT, SPLITS, columns

if TYPE_CHECKING:
    import pandas as pd

DISEASES = "diseases"
"""Where counts of patient-level diseases stand, beside the modalities."""
FEW_POSITIVES = 10
"""With fewer in ``calibration``, a temperature says little: ``val`` and ``calibration`` are used together."""

_NOT_TOLD = "has no label with both positives and negatives, without which nothing can be trained"

Counts = dict[str, dict[str, dict[str, Any]]]


class TooFewPatients(RadfuseError):
    """A split has fewer patients, or patients with a label, than the minimum."""


def labels_of(cohort: pd.DataFrame, modality: str) -> list[str]:
    """Labels that a modality has: those that at least one of its samples knows."""
    known = cohort.loc[cohort[MODALITY] == modality]
    return [name for name in columns(known, LABEL) if known[LABEL + name].notna().any()]


def count(cohort: pd.DataFrame, patients: pd.DataFrame) -> Counts:
    """Counts by modality (and `DISEASES`) and split.

    Args:
        cohort: one row a sample.
        patients: one row a patient.

    Returns:
        ``{"xray": {"train": {"patients": 3, "samples": 4, "positives": {"Mass": 1}, "negatives": {"Mass":
        2}}, ...}, ...}``; positives are patients with at least one positive sample, negatives those with at
        least one negative.
    """
    found: Counts = {}
    for modality in sorted(cohort[MODALITY].unique()):
        rows = cohort.loc[cohort[MODALITY] == modality]
        labels = {name: LABEL + name for name in labels_of(cohort, modality)}
        found[modality] = {name: _of_split(rows.loc[rows[SPLIT] == name], labels) for name in SPLITS}
    diseases = {name: DISEASE + name for name in columns(patients, DISEASE)}
    if diseases:
        found[DISEASES] = {
            name: _of_split(patients.loc[patients[SPLIT] == name], diseases) for name in SPLITS
        }
    return found


def _of_split(rows: pd.DataFrame, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "patients": int(rows[PATIENT].nunique()),
        "samples": len(rows),
        **{
            what: {
                name: int(rows.loc[rows[column] == value, PATIENT].nunique())
                for name, column in labels.items()
            }
            for what, value in (("positives", 1), ("negatives", 0))
        },
    }


def few_positives(counts: Counts) -> dict[str, list[str]]:
    """Labels with fewer than `FEW_POSITIVES` patients in ``calibration``, by modality, if any."""
    few = {
        name: [
            label for label, number in splits["calibration"]["positives"].items() if number < FEW_POSITIVES
        ]
        for name, splits in counts.items()
    }
    return {name: labels for name, labels in few.items() if labels}


def check(counts: Counts, settings: SplitSettings) -> None:
    """Compare counts with the minimums of params.yaml.

    Where few positives merge ``val`` and ``calibration``, the two are counted together; but training chooses
    its checkpoint on ``val`` alone, which must have positives and negatives of one label at least.

    Raises:
        TooFewPatients: some are missed; each is named with its number.
    """
    troubles = []
    merged = few_positives(counts)
    for name, splits in counts.items():
        for split, found in splits.items():
            wanted = getattr(settings.minimum_patients, split)
            if name != DISEASES and found["patients"] < wanted:
                number = found["patients"]
                troubles.append(f"{name}: {split} has {number} patients, split.minimum_patients {wanted}")
        for label in splits["train"]["positives"]:
            for group in _groups(label in merged.get(name, [])):
                number = sum(splits[split]["positives"][label] for split in group)
                if number < settings.minimum_positives:
                    troubles.append(f"{name}: {'+'.join(group)} has {number} patients with {label}")
        if name != DISEASES and settings.minimum_positives:
            untold = [split for split in ("train", "val") if not _told(splits[split])]
            troubles += [f"{name}: {split} {_NOT_TOLD}" for split in untold]
    if troubles:
        shown = "\n  ".join(troubles[:20])
        more = f"\n  ... and {len(troubles) - 20} more" if len(troubles) > 20 else ""
        raise TooFewPatients(
            "splits are smaller than their minimums "
            f"(split.minimum_positives {settings.minimum_positives}):\n"
            f"  {shown}{more}\n"
            "Add patients, try another split.seed, fix a stratified assignment with split.lock, leave the "
            "label out, or lower the minimum; a figure without positives is not defined and shown as such."
        )


def _told(found: Mapping[str, Any]) -> bool:
    """Whether training has something to learn, or to choose a checkpoint by; without labels it need not."""
    labels = found["positives"]
    return not labels or any(labels[name] and found["negatives"][name] for name in labels)


def _groups(merged: bool) -> tuple[tuple[str, ...], ...]:
    return (("train",), ("val", "calibration"), ("test",)) if merged else tuple((name,) for name in SPLITS)
