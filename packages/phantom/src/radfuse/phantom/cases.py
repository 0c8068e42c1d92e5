"""MR cases as NIfTI files in the layout and with the names of BraTS."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from radfuse.phantom.brain import Space

ORIENTATIONS = ("LPS", "RAS", "LAS", "RPI", "PIR", "ASL", "LPI")
"""Where the array's axes may run to, as nibabel's axis codes; public sets mostly have the first two."""
_SHARES = (0.35, 0.25, 0.1, 0.1, 0.07, 0.06, 0.07)


def orientation(rng: np.random.Generator) -> str:
    """Axis codes drawn at random."""
    return ORIENTATIONS[int(rng.choice(len(ORIENTATIONS), p=_SHARES))]


def write(
    path: Path, volume: NDArray[np.int16] | NDArray[np.uint8], space: Space, codes: str, patient_id: str
) -> None:
    """Write a volume.

    Args:
        path: of the new file, ending in ``.nii.gz``.
        volume: (X, Y, Z) in the space.
        space: where the voxels are.
        codes: the array's axes in the file, such as ``"RAS"``.
        patient_id: put into the header's ``db_name``, as some converters do.
    """
    turned, affine = turn(volume, space.affine, codes)
    image = nib.Nifti1Image(turned, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["db_name"] = patient_id.encode()
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    # gzip's own header would hold the time.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))


def turn(
    volume: NDArray[np.int16] | NDArray[np.uint8], affine: NDArray[np.float64], codes: str
) -> tuple[NDArray[np.int16] | NDArray[np.uint8], NDArray[np.float64]]:
    """The same volume with its array axes along others, and the affine that goes with it."""
    now = io_orientation(affine)
    change = ornt_transform(now, axcodes2ornt(tuple(codes)))
    turned = nib.orientations.apply_orientation(volume, change)
    return np.ascontiguousarray(turned), affine @ inv_ornt_aff(change, volume.shape)
