"""The tables of a cohort, made of the records of its patients."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radfuse.phantom.diseases import CT, DISEASES, FINDINGS, MRI, REGIONS, XRAY

CSV_FILES = {
    "patients": "patients.csv",
    XRAY: "xray/studies.csv",
    CT: "ct/series.csv",
    "nodules": "ct/nodules.csv",
    MRI: "mri/cases.csv",
}
PARQUET_FILES = {"truth": "truth.parquet", "truth_nodules": "truth_nodules.parquet"}

_IDS = ("original_patient_id", "accession_number")
_STUDY = ("path", "study_date", "age_years", "sex", "site", "scanner_model")
_DISEASES = tuple(f"disease:{disease.name}" for disease in DISEASES)
COLUMNS: dict[str, tuple[str, ...]] = {
    "patients": (
        *("original_patient_id", "patient_name", "birth_date", "sex", "age_years", "site"),
        *_DISEASES,
    ),
    XRAY: (*_IDS, *_STUDY, "view", *FINDINGS),
    CT: (*_IDS, *_STUDY, "slices"),
    "nodules": (*_IDS, "nodule", "x_mm", "y_mm", "z_mm", "diameter_mm", "malignant"),
    MRI: (*_IDS, "case", *_STUDY),
    "truth": (
        *_IDS,
        *("patient", "modality", "repeat"),
        *_DISEASES,
        *(f"expression:{disease.name}" for disease in DISEASES),
        *(f"severity:{name}" for name in FINDINGS),
        *(f"finding:{name}" for name in FINDINGS),
        *("nodules", "malignant_nodules"),
        *(f"volume_cm3:{name}" for name in REGIONS),
    ),
    "truth_nodules": (*_IDS, "nodule", "severity", "malignant", "diameter_mm", "spikes", "density"),
}
"""Of each table, in order. The truth has a row a study; what a modality does not have is empty there."""

Row = Mapping[str, Any]


def write(out: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    """Write all tables, each whole or not at all.

    Args:
        out: the cohort's folder.
        rows: of each table by its name, in the order of patients.
    """
    for name, path in CSV_FILES.items():
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS[name], lineterminator="\n")
        table.writeheader()
        table.writerows(rows[name])
        replace(out / path, text.getvalue().encode())
    for name, path in PARQUET_FILES.items():
        replace(out / path, _parquet(rows[name], COLUMNS[name]))


def _parquet(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    import pandas as pd

    frame = pd.DataFrame.from_records(list(rows), columns=list(columns))
    for name in columns:
        if name.startswith(("expression:", "severity", "finding:", "volume_cm3:", "malignant_", "nodules")):
            frame[name] = frame[name].astype("float64")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, engine="pyarrow")
    return buffer.getvalue()


def beside(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(f".{path.name}.new")


def replace(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there.

    Synced before: a folder whose stamp a power cut has emptied would be taken for somebody else's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = beside(path)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
