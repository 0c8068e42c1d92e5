"""The best that anyone could reach, where that is known: a phantom's generating model tells it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "ceilings.json"
AVAILABLE = "available"
"""Patients as they come, some without one or two modalities."""
ALL = "all"
"""Patients who have every modality."""


@dataclass(frozen=True)
class Ceilings:
    """Best possible AUROC; None wherever nobody knows.

    Attributes:
        labels: of image labels, by name.
        diseases: of patients' diseases by name, then by evidence: a modality alone, `ALL`, `AVAILABLE`.
    """

    labels: Mapping[str, float] = field(default_factory=dict)
    diseases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def label(self, name: str) -> float | None:
        """Of an image label."""
        return self.labels.get(name)

    def disease(self, name: str, evidence: str) -> float | None:
        """Of a disease, from one modality, `ALL` or `AVAILABLE`."""
        return self.diseases.get(name, {}).get(evidence)

    def mean_label(self, names: Iterable[str]) -> float | None:
        """The mean over labels, if every one has a ceiling."""
        return _mean([self.label(name) for name in names])

    def mean_disease(self, names: Iterable[str], evidence: str) -> float | None:
        """The mean over diseases, if every one has a ceiling."""
        return _mean([self.disease(name, evidence) for name in names])


def read(folders: Iterable[Path]) -> Ceilings:
    """The ceilings of a cohort.

    Args:
        folders: of its sources. Only a cohort of one source has the ceilings of that source: those of a
            mixture are others.
    """
    given = list(dict.fromkeys(folders))
    if len(given) != 1 or not (given[0] / FILE).is_file():
        return Ceilings()
    return from_dict(json.loads((given[0] / FILE).read_text(encoding="utf-8")))


def from_dict(found: Mapping[str, Any]) -> Ceilings:
    """The ceilings in a phantom's ``ceilings.json``."""
    labels = dict(found.get("findings", {}))
    if found.get("malignancy") is not None:
        labels["malignant"] = found["malignancy"]
    diseases = {
        name: {**one["single"], ALL: one[ALL], AVAILABLE: one[AVAILABLE]}
        for name, one in found.get("diseases", {}).items()
    }
    return Ceilings(labels, diseases)


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there and len(there) == len(values) else None
