"""Radiographs as DICOM files, in the many ways in which machines write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from radfuse.phantom import headers
from radfuse.phantom.people import Person, Study
from radfuse.phantom.shapes import Picture

UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
COMPRESSED = (JPEG2000Lossless, JPEGLSLossless, RLELossless)


@dataclass(frozen=True)
class Encoding:
    """How a machine writes a radiograph; the picture that a viewer shows does not depend on it.

    Attributes:
        digital: SOP class Digital X-Ray (DX), else Computed Radiography (CR).
        bits: stored, 12 or 16.
        inverted: MONOCHROME1: the smallest value is white.
        slope, intercept: of the modality LUT.
        exact: VOI LUT function LINEAR_EXACT, else LINEAR.
        second_window: a further window for another taste, after the one to use.
        transfer_syntax: UID.
    """

    digital: bool = True
    bits: int = 12
    inverted: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    exact: bool = False
    second_window: bool = False
    transfer_syntax: str = ExplicitVRLittleEndian

    @classmethod
    def of(cls, rng: np.random.Generator) -> Encoding:
        """An encoding drawn at random; digital machines may not rescale (DICOM PS3.3 C.8.11.3)."""
        digital = bool(rng.random() < 0.6)
        slope, intercept = ((1.0, 0.0), (2.0, -150.0), (0.5, 25.0))[int(rng.choice(3, p=[0.4, 0.3, 0.3]))]
        syntaxes = (*UNCOMPRESSED, *COMPRESSED)
        return cls(
            digital=digital,
            bits=12 if rng.random() < 0.6 else 16,
            inverted=bool(rng.random() < 0.3),
            slope=1.0 if digital else slope,
            intercept=0.0 if digital else intercept,
            exact=bool(rng.random() < 0.2),
            second_window=bool(rng.random() < 0.2),
            transfer_syntax=syntaxes[int(rng.choice(5, p=[0.5, 0.14, 0.12, 0.12, 0.12]))],
        )


def write(path: Path, picture: Picture, encoding: Encoding, person: Person, study: Study, view: str) -> None:
    """Write a radiograph.

    Args:
        path: of the new file.
        picture: (H, W), 0 black to 1 white.
        encoding: how.
        person: whose it is.
        study: the examination.
        view: DICOM ViewPosition, ``"PA"`` or ``"AP"``.
    """
    sop_class = (
        DigitalXRayImageStorageForPresentation if encoding.digital else ComputedRadiographyImageStorage
    )
    modality = "DX" if encoding.digital else "CR"
    dataset = headers.begin(person, study, sop_class, modality, f"Chest {view}")
    dataset.ViewPosition = view
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImagerPixelSpacing = [headers.decimal(420.0 / picture.shape[1])] * 2
    if encoding.digital:
        dataset.PresentationIntentType = "FOR PRESENTATION"
        dataset.ImageType = ["DERIVED", "PRIMARY"]
        dataset.ImageLaterality = "U"
        dataset.PixelIntensityRelationship = "LOG"
        dataset.PixelIntensityRelationshipSign = 1 if encoding.inverted else -1
        dataset.BurnedInAnnotation = "NO"
    else:
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        dataset.PlateType = "storage phosphor"
    _set_picture(dataset, picture, encoding)
    _save(dataset, path, encoding.transfer_syntax)


def _set_picture(dataset: Dataset, picture: Picture, encoding: Encoding) -> None:
    """Stored values, with the modality and VOI LUT back to the picture (DICOM PS3.3 C.11.1, C.11.2)."""
    top = 2**encoding.bits - 1
    black, white = round(0.04 * top), round(0.93 * top)
    shown = 1.0 - picture if encoding.inverted else picture
    stored = np.round(black + shown.astype(np.float64) * (white - black)).astype(np.uint16)
    headers.set_pixels(dataset, stored, encoding.bits)
    dataset.PhotometricInterpretation = "MONOCHROME1" if encoding.inverted else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if encoding.inverted else "IDENTITY"
    dataset.RescaleSlope = headers.decimal(encoding.slope)
    dataset.RescaleIntercept = headers.decimal(encoding.intercept)
    dataset.RescaleType = "US"
    low, high = (encoding.slope * value + encoding.intercept for value in (black, white))
    # LINEAR means from centre - 0.5 - (width - 1) / 2 to centre - 0.5 + (width - 1) / 2.
    extra = 0.0 if encoding.exact else 1.0
    windows = [((low + high + extra) / 2, high - low + extra)]
    if encoding.second_window:
        windows.append(((low + high + extra) / 2, 0.6 * (high - low)))
    centres, widths = zip(*windows, strict=True)
    dataset.WindowCenter = [headers.decimal(value) for value in centres]
    dataset.WindowWidth = [headers.decimal(value) for value in widths]
    dataset.WindowCenterWidthExplanation = ["NORMAL", "HARDER"][: len(windows)]
    dataset.VOILUTFunction = "LINEAR_EXACT" if encoding.exact else "LINEAR"
    dataset.LossyImageCompression = "00"


def _save(dataset: Dataset, path: Path, transfer_syntax: str) -> None:
    if transfer_syntax in UNCOMPRESSED:
        headers.set_meta(dataset, transfer_syntax)
    else:
        headers.set_meta(dataset)
        # A new UID would be random; the picture is the same, so it keeps its own.
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    headers.save(dataset, path)
