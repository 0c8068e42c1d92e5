"""One patient's files, put in place whole or not at all.

A patient is written into a folder of its own, then its folders are renamed to their places, and last its
*record* is: a JSON file with the patient's rows of every table and the sizes of its files. Who has a record
is finished.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from radfuse.phantom import examinations
from radfuse.phantom.chart import Chart
from radfuse.phantom.diseases import CT, MRI, XRAY
from radfuse.phantom.settings import Settings

RECORDS = ".records"
PARTIAL = ".partial"

Record = dict[str, Any]

_EXAMINE = {XRAY: examinations.radiograph, CT: examinations.ct_series, MRI: examinations.mr_case}


def write(out: Path, settings: Settings, number: int) -> None:
    """Write a patient who has no record, and the record.

    Args:
        out: the cohort's folder.
        settings: of the cohort.
        number: of the patient.
    """
    partial = out / PARTIAL / str(number)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    chart = Chart(settings, number, partial)
    studies = [(modality, study) for modality in _EXAMINE for study in chart.studies(modality)]
    chart.add_patient(min(study.day for _, study in studies))
    for modality, study in studies:
        _EXAMINE[modality](chart, study)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
    _commit(out, partial, {"patient": number, "files": sizes, "rows": chart.rows})


def _commit(out: Path, partial: Path, record: Record) -> None:
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    (partial / "record.json").write_text(text, encoding="utf-8")
    for unit in units(record):
        target = out / unit
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        os.rename(partial / unit, target)
    os.rename(partial / "record.json", record_path(out, record["patient"]))
    shutil.rmtree(partial)


def units(record: Record) -> list[str]:
    """The folders, two names deep, that hold a patient's files and nobody else's."""
    return sorted({"/".join(name.split("/")[:2]) for name in record["files"]})


def record_path(out: Path, number: int) -> Path:
    """Where a patient's record is."""
    return out / RECORDS / f"{number}.json"


def finished(out: Path, number: int) -> Record | None:
    """The record of a patient whose files are all there with their sizes, or None."""
    try:
        record: Record = json.loads(record_path(out, number).read_text(encoding="utf-8"))
        whole = all((out / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError):
        return None
    return record if whole else None
