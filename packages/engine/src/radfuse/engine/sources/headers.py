"""What the header of a DICOM file says of patient, study and scanner; pixels are not read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radfuse.engine.sources.attributes import age_years, sex, view
from radfuse.engine.sources.source import Attributes

_TAGS = (
    "PatientID", "StudyInstanceUID", "StudyDate", "PatientAge", "PatientBirthDate", "PatientSex",
    "ViewPosition", "ManufacturerModelName", "Rows",
)  # fmt: skip
_DAYS_A_YEAR = 365.25


@dataclass(frozen=True)
class Header:
    """Attributes:
    patient: PatientID (0010,0020), or empty.
    study: StudyInstanceUID (0020,000D), or empty.
    attributes: age, sex, view and scanner model, where the header has them.
    image: whether it has Rows (0028,0010), as reports and directories have not.
    """

    patient: str
    study: str
    attributes: Attributes
    image: bool


def read_header(path: Path) -> Header | None:
    """The header of a DICOM file; None where it is none, or is damaged, which `prepare` will say in full."""
    import pydicom

    from radfuse.serving.images.silence import silenced

    if not is_dicom(path):
        return None
    try:
        with silenced():
            # A file without preamble was told from its first element, so it may be parsed by force.
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
            return _header(dataset)
    # Damaged headers raise whatever the damaged bytes lead to: KeyError, struct.error, RecursionError and
    # more.
    except Exception:
        return None


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with or without preamble."""
    from radfuse.serving.images.errors import UnreadableImage
    from radfuse.serving.images.formats import Format, format_of

    try:
        return format_of(path) is Format.DICOM
    except UnreadableImage:
        return False


def _header(dataset: Any) -> Header:
    return Header(
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        attributes=Attributes(
            age_years=_age(dataset),
            sex=sex(_text(dataset, "PatientSex")),
            view=view(_text(dataset, "ViewPosition")),
            scanner_model=_text(dataset, "ManufacturerModelName"),
        ),
        image=dataset.get("Rows") is not None,
    )


def _age(dataset: Any) -> float:
    """PatientAge (0010,1010); where it is missing, from the dates of birth and study."""
    years = age_years(_text(dataset, "PatientAge"))
    if not math.isnan(years):
        return years
    from pydicom.valuerep import DA

    born, studied = DA(_text(dataset, "PatientBirthDate")), DA(_text(dataset, "StudyDate"))
    if born is None or studied is None or studied < born:
        return math.nan
    return age_years(str(math.floor((studied - born).days / _DAYS_A_YEAR)))


def _text(dataset: Any, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()
