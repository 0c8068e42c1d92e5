"""Small volumes and series as files, for tests."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SEQUENCES = ("t1", "t1ce", "t2", "flair")


def write_nifti(path: Path, voxels: np.ndarray, spacing: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1.0])), path)


def write_case(root: Path, case: str, labels: tuple[int, ...] = (1, 2, 4), modern: bool = False) -> None:
    """A BraTS case of 12 x 12 x 10 voxels with one voxel of each label."""
    random = np.random.default_rng(abs(hash(case)) % 2**32)
    endings = ("-t1n", "-t1c", "-t2w", "-t2f") if modern else ("_t1", "_t1ce", "_t2", "_flair")
    for ending in endings:
        write_nifti(
            root / case / f"{case}{ending}.nii.gz", random.uniform(1, 200, (12, 12, 10)).astype("float32")
        )
    mask = np.zeros((12, 12, 10), np.uint8)
    for place, label in enumerate(labels):
        mask[place, 5, 5] = label
    write_nifti(root / case / f"{case}{'-seg' if modern else '_seg'}.nii.gz", mask)


def write_series(
    folder: Path, slices: int = 10, about: Mapping[str, str] | None = None, seed: int = 0
) -> None:
    """A CT series of 16 x 16 pixels a slice, 1 mm apart."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study = (
        generate_uid(entropy_srcs=[str(folder)]),
        generate_uid(entropy_srcs=[str(folder), "study"]),
    )
    random = np.random.default_rng(seed)
    for place in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(folder), str(place)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID = series, study
        data.Modality, data.PatientID, data.PatientName = "CT", "MRN-77", "Muster^Erika"
        data.StudyDate, data.PatientBirthDate, data.PatientSex = "20260314", "19700315", "F"
        data.ManufacturerModelName = "Toy Scanner"
        data.Rows = data.Columns = 16
        data.PixelSpacing, data.SliceThickness = [1, 1], 1
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, place]
        data.InstanceNumber = place + 1
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = random.integers(0, 1500, (16, 16)).astype("<i2").tobytes()
        for keyword, value in (about or {}).items():
            setattr(data, keyword, value)
        pydicom.dcmwrite(folder / f"slice{place:02}.dcm", data)
