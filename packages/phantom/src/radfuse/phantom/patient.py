"""One patient's files, put in place whole or not at all.

A patient is written into a folder of its own, then its folders are renamed to their places, and last its
*record* is: a JSON file with the patient's rows of every table, and size and SHA-256 of each file. Who has a
record is finished, as long as the files are those that it tells of: they are not synced to the disk, so a
power cut may leave one with its size and nothing but zeros.
"""

from __future__ import annotations

import hashlib
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


def complete(out: Path, settings: Settings, number: int) -> bool:
    """Write a patient who is not finished.

    Args:
        out: the cohort's folder.
        settings: of the cohort.
        number: of the patient.

    Returns:
        Whether anything was written.
    """
    if finished(out, number) is not None:
        return False
    write(out, settings, number)
    return True


def write(out: Path, settings: Settings, number: int) -> None:
    """Write a patient and the record, whatever there is of them.

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
    files = {
        path.relative_to(partial).as_posix(): {"size": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    _commit(out, partial, {"patient": number, "files": files, "rows": chart.rows})


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


def there(out: Path, number: int) -> Record | None:
    """The record of a patient whose files are all there with their sizes, or None; none of them is read."""
    try:
        record: Record = json.loads(record_path(out, number).read_text(encoding="utf-8"))
        whole = all((out / name).stat().st_size == file["size"] for name, file in record["files"].items())
    except (OSError, ValueError):
        return None
    return record if whole else None


def finished(out: Path, number: int) -> Record | None:
    """The record of a patient whose files are all there, byte for byte, or None."""
    record = there(out, number)
    if record is None:
        return None
    try:
        whole = all(_digest(out / name) == file["sha256"] for name, file in record["files"].items())
    except OSError:
        return None
    return record if whole else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
