"""The DICOM attributes that radiographs and CT slices share: patient, study, equipment, pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from radfuse.phantom import keys
from radfuse.phantom.people import SITES, Person, Study

CHARACTER_SET = "ISO_IR 192"


def begin(person: Person, study: Study, sop_class: str, modality: str, description: str) -> Dataset:
    """A dataset with everything but the picture (DICOM PS3.3 C.7.1 to C.7.5).

    Args:
        person: whose picture it is.
        study: the examination.
        sop_class: SOP Class UID.
        modality: DICOM Modality, such as ``"CT"``.
        description: StudyDescription.
    """
    day = study.day.strftime("%Y%m%d")
    time = f"{8 + sum(study.accession_number.encode()) % 10:02d}1500"
    dataset = Dataset()
    dataset.SpecificCharacterSet = CHARACTER_SET
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = keys.uid("instance", study.accession_number, 1)
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = time
    dataset.AccessionNumber = study.accession_number
    dataset.Modality = modality
    dataset.Manufacturer = study.manufacturer
    dataset.ManufacturerModelName = study.model
    dataset.InstitutionName = SITES[person.site]
    dataset.StationName = f"{person.site[:4].upper()}{modality}1"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = description
    dataset.PatientName = person.name
    dataset.PatientID = person.patient_id
    dataset.PatientBirthDate = person.birth_date.strftime("%Y%m%d")
    dataset.PatientSex = person.sex
    dataset.PatientAge = f"{person.age_years(study.day):03d}Y"
    dataset.BodyPartExamined = "CHEST"
    dataset.StudyInstanceUID = keys.uid("study", study.accession_number)
    dataset.SeriesInstanceUID = keys.uid("series", study.accession_number)
    dataset.StudyID = study.accession_number[:8]
    dataset.SeriesNumber = "1"
    dataset.InstanceNumber = "1"
    return dataset


def set_pixels(dataset: Dataset, stored: NDArray[np.uint16] | NDArray[np.int16], bits: int) -> None:
    """Put stored values (H, W) into a dataset (DICOM PS3.3 C.7.6.3), uncompressed, little endian."""
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"


def set_meta(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
    """Give a dataset the file meta information that its file will begin with (DICOM PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = keys.uid("implementation")
    meta.ImplementationVersionName = "RADFUSE_PHANTOM"
    dataset.file_meta = meta


def decimal(value: float) -> str:
    """A number as a DICOM decimal string, which has 16 bytes at most."""
    return f"{value:.9g}"


def save(dataset: Dataset, path: Path) -> None:
    """Write a file; `set_meta` comes before.

    Raises:
        OSError: by the system's own number, as of a full disk. pydicom, writing to the file itself, would
            raise one without, whose text is a traceback.
    """
    content = BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    path.write_bytes(content.getvalue())
