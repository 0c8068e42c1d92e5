"""What the header of a DICOM file says of patient, study and scanner; pixels are not read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radfuse.engine.sources.attributes import age_years, sex, view
from radfuse.engine.sources.source import Attributes

if TYPE_CHECKING:
    from radfuse.serving.images.errors import UnreadableImage

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
    """The header of a DICOM file; None where it is none, or is damaged, which `prepare` will say in full.

    Raises:
        UnreadableImage: the file cannot be read at all, so that nobody knows whose it is.
    """
    import pydicom

    from radfuse.serving.images.errors import UnreadableImage, guarded

    if not is_dicom(path):
        return None
    try:
        with guarded(path, "the DICOM header cannot be read"):
            # A file without preamble was told from its first element, so it may be parsed by force.
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
            return _header(dataset)
    # Damaged headers raise whatever the damaged bytes lead to: KeyError, struct.error, RecursionError and
    # more.
    except UnreadableImage as error:
        if _out_of_reach(error):
            raise
        return None


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with or without preamble.

    Raises:
        UnreadableImage: the file cannot be read at all.
    """
    from radfuse.serving.images.errors import UnreadableImage
    from radfuse.serving.images.formats import Format, format_of

    try:
        return format_of(path) is Format.DICOM
    except UnreadableImage as error:
        if _out_of_reach(error):
            raise
        return False


def _out_of_reach(error: UnreadableImage) -> bool:
    """Whether the machine is at fault (permission, network, disk, memory) and not what the file holds."""
    return isinstance(error.__cause__, (OSError, MemoryError)) or not os.access(error.path, os.R_OK)


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
