"""CT volumes as folders of DICOM slices, as they arrive: in no order that their names would show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import CTImageStorage

from radfuse.phantom import headers, keys
from radfuse.phantom.chest_volume import Grid
from radfuse.phantom.people import Person, Study
from radfuse.phantom.shapes import Picture


@dataclass(frozen=True)
class Layout:
    """Where a series' voxels are and how they are stored.

    Attributes:
        matrix: pixels along an edge of a slice.
        slices: how many.
        pixel_mm, step_mm: within slices; from one to the next.
        lowest_mm: z of the lowest slice in the chest's own coordinates.
        origin_mm: where the middle of the chest lies in the patient coordinates of the files.
        signed: two's complement with intercept 0, else unsigned 12 bits with intercept -1024.
        prone: rows and columns run against x and y.
        downwards: instance numbers count from the head.
    """

    matrix: int
    slices: int
    pixel_mm: float
    step_mm: float
    lowest_mm: float
    origin_mm: tuple[float, float, float]
    signed: bool
    prone: bool
    downwards: bool

    @classmethod
    def of(cls, rng: np.random.Generator, matrix: int, slices: tuple[int, int]) -> Layout:
        """A layout drawn at random.

        Args:
            rng: of the series.
            matrix: pixels along an edge.
            slices: fewest and most.
        """
        count = int(rng.integers(slices[0], slices[1] + 1))
        step = round(rng.uniform(112.0, 124.0) / (count - 1), 3)
        x, y, z = rng.uniform((-15.0, -190.0, -400.0), (15.0, -120.0, 400.0)).round(1)
        return cls(
            matrix=matrix,
            slices=count,
            pixel_mm=round(rng.uniform(338.0, 352.0) / matrix, 4),
            step_mm=step,
            lowest_mm=round(-78.0 + rng.uniform(-4.0, 4.0), 2),
            origin_mm=(float(x), float(y), float(z)),
            signed=bool(rng.random() < 0.4),
            prone=bool(rng.random() < 0.1),
            downwards=bool(rng.random() < 0.6),
        )

    @property
    def grid(self) -> Grid:
        """The voxels in the chest's own coordinates, all axes ascending."""
        across = (np.arange(self.matrix) - (self.matrix - 1) / 2) * self.pixel_mm
        along = self.lowest_mm + np.arange(self.slices) * self.step_mm
        return Grid(across.astype(np.float32), across.astype(np.float32), along.astype(np.float32))

    def to_patient(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """From the chest's own coordinates to those of the files, mm."""
        moved = [round(value + shift, 3) for value, shift in zip(point, self.origin_mm, strict=True)]
        return moved[0], moved[1], moved[2]


def write(
    folder: Path, volume_hu: Picture, layout: Layout, person: Person, study: Study, rng: np.random.Generator
) -> None:
    """Write a series, one file a slice.

    Args:
        folder: exists and is empty.
        volume_hu: (D, H, W) on `layout.grid`, Hounsfield units.
        layout: where the voxels are and how they are stored.
        person: whose it is.
        study: the examination.
        rng: shuffles the names of the files.
    """
    low = -1024
    stored = np.clip(np.round(volume_hu), low, 3071).astype(np.int16)
    intercept = 0 if layout.signed else low
    pixels = stored if layout.signed else (stored - low).astype(np.uint16)
    edge = (layout.matrix - 1) / 2 * layout.pixel_mm
    if layout.prone:
        pixels, edge = pixels[:, ::-1, ::-1], -edge
    dataset = headers.begin(person, study, CTImageStorage, "CT", "CT chest")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientPosition = "HFP" if layout.prone else "HFS"
    dataset.FrameOfReferenceUID = keys.uid("frame", study.accession_number)
    dataset.PositionReferenceIndicator = ""
    dataset.ImageOrientationPatient = ["-1", "0", "0", "0", "-1", "0"] if layout.prone else [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [headers.decimal(layout.pixel_mm)] * 2
    dataset.SliceThickness = headers.decimal(layout.step_mm)
    dataset.KVP = "120"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = str(intercept), "1", "HU"
    dataset.WindowCenter, dataset.WindowWidth = ["-600", "40"], ["1500", "400"]
    names = rng.permutation(layout.slices)
    for index in range(layout.slices):
        instance = layout.slices - index if layout.downwards else index + 1
        corner = layout.to_patient((-edge, -edge, layout.lowest_mm + index * layout.step_mm))
        dataset.SOPInstanceUID = keys.uid("instance", study.accession_number, instance)
        dataset.InstanceNumber = str(instance)
        dataset.ImagePositionPatient = [headers.decimal(value) for value in corner]
        dataset.SliceLocation = headers.decimal(corner[2])
        headers.set_pixels(dataset, pixels[index], 16 if layout.signed else 12)
        headers.set_meta(dataset)
        headers.save(dataset, folder / f"IM{names[index] + 1:05d}.dcm")
