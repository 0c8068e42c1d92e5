"""Reading a radiograph from DICOM, PNG or JPEG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.images.dicom import decode, frames_of, modality_of, number, open_dicom, text
from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.formats import Format, format_of
from radfuse.serving.images.intensity import displayed, modality_values
from radfuse.serving.images.picture import luminance, read_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

PROJECTIONS = frozenset({"", "CR", "DX", "DR", "RG", "RF", "XA", "OT", "SC"})
"""Modality (0008,0060) of what may be a radiograph: projections, captures, files that do not say."""

_TEXTS = (
    "Modality",
    "ViewPosition",
    "BodyPartExamined",
    "Manufacturer",
    "ManufacturerModelName",
    "PatientSex",
)
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}


@dataclass(frozen=True)
class Radiograph:
    """A projection image.

    Attributes:
        pixels: (height, width) float32 in 0..1; dense bone is bright, air dark, whatever the file's
            convention.
        attributes: what the file says that identifies nobody, by DICOM keyword; PatientAge is in years.
            Absent tags are absent here.
    """

    pixels: NDArray[np.float32]
    attributes: Mapping[str, str | float] = field(default_factory=dict)


def read_radiograph(path: str | Path) -> Radiograph:
    """Read a radiograph by the rules of its format.

    DICOM: Modality LUT or rescale, VOI LUT or first window (else percentiles), MONOCHROME1 inverted, palette
    and colour made grey, PixelPaddingValue black. Several frames are refused: a cine run or a stack is no
    radiograph, and which frame would be meant nobody knows.

    Args:
        path: a DICOM, PNG or JPEG file.

    Raises:
        UnreadableImage: with the reason and what to do; nothing else is raised for any content of a file.
    """
    path = Path(path)
    found = format_of(path)
    if found in (Format.PNG, Format.JPEG):
        return Radiograph(read_picture(path))
    if found is Format.NIFTI:
        raise UnreadableImage(path, "expected a radiograph, got a NIfTI volume")
    dataset = open_dicom(path)
    with guarded(path, "the DICOM tags cannot be read"):
        _check_kind(path, dataset)
        attributes = _attributes(dataset)
    stored = decode(path, dataset)
    with guarded(path, "the grey values cannot be derived"):
        return Radiograph(_shown(path, dataset, stored), attributes)


def _check_kind(path: Path, dataset: Dataset) -> None:
    modality = modality_of(dataset)
    if modality not in PROJECTIONS:
        raise UnreadableImage(
            path, f"expected a radiograph (CR, DX, ...), its Modality (0008,0060) is {modality}"
        )
    frames = frames_of(path, dataset)
    if frames > 1:
        raise UnreadableImage(path, f"the file holds {frames} frames; a radiograph is one picture")


def _shown(path: Path, dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.float32]:
    interpretation = text(dataset, "PhotometricInterpretation")
    if interpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        stored = apply_color_lut(stored, dataset)[..., :3]
        return luminance(stored, np.iinfo(stored.dtype).max)
    if stored.ndim == 3:
        bits = number(path, dataset, "BitsStored", stored.dtype.itemsize * 8)
        return luminance(stored, 2.0**bits - 1)
    padding = _padding(path, dataset, stored)
    values = modality_values(path, dataset, stored)
    if not np.isfinite(values).all():
        raise UnreadableImage(path, "some pixels are not finite")
    shown = displayed(path, dataset, values, ~padding)
    if interpretation == "MONOCHROME1":
        shown = 1 - shown
    shown[padding] = 0
    return shown


def _padding(path: Path, dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Where pixels lie outside the exposed field: PS3.3 section C.7.5.1.1.2."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    first = number(path, dataset, "PixelPaddingValue")
    last = number(path, dataset, "PixelPaddingRangeLimit", first)
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _attributes(dataset: Dataset) -> dict[str, str | float]:
    found: dict[str, str | float] = {name: value for name in _TEXTS if (value := text(dataset, name))}
    age = text(dataset, "PatientAge")
    if len(age) == 4 and age[:3].isdigit() and age[3] in _DAYS:
        found["PatientAge"] = round(int(age[:3]) * _DAYS[age[3]] / _DAYS["Y"], 2)
    return found
