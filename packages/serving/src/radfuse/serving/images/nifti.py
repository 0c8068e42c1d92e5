"""Reading and writing NIfTI volumes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.formats import Format, format_of
from radfuse.serving.images.limits import check_file, check_volume
from radfuse.serving.images.volume import Volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header
    from numpy.typing import NDArray

_HEAD = 1024
"""More than the longer of the two headers."""
_MAX_OFFSET = 16 << 20
"""Header extensions before the voxels; usual ones have kilobytes."""
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's x and y run to the right and to the front, DICOM's to the left and to the back."""
_SCANNER = 1
"""Code of an affine that gives scanner coordinates."""


def read_nifti(path: str | Path) -> Volume:
    """Read a NIfTI file (1 or 2, one file or a pair, packed with gzip or not) on its own grid.

    Voxels come scaled by slope and intercept where the header has them, float64 as float32, and what is not
    finite as 0 (some programs write NaN as background).

    Args:
        path: ``.nii``, ``.nii.gz``, or the ``.hdr`` of a pair.

    Returns:
        Axes (k, j, i) of the file as (D, H, W), with the affine in LPS; `volume.reorient` puts them in
        canonical order.

    Raises:
        UnreadableImage: with the reason; nothing else is raised for any content of a file.

    Source:
        NIfTI-1.1 specification, "3D image (volume) orientation and location in space".
    """
    path = Path(path)
    if format_of(path) is not Format.NIFTI:
        raise UnreadableImage(path, "expected a NIfTI file, got another format")
    with guarded(path, "the NIfTI file cannot be read"):
        header, pair = _header(path)
        _check(path, header)
        affine = _affine(path, header)
        voxels = _scaled(path, header, _voxels(_partner(path) if pair else path, header))
        return Volume(voxels.transpose(2, 1, 0), _TO_LPS @ affine[:, [2, 1, 0, 3]])


def write_nifti(volume: Volume, path: str | Path) -> None:
    """Write a volume as NIfTI-1, packed where the name ends in ``.gz``.

    Args:
        volume: any; its grid is written as it is.
        path: of the new file.
    """
    from nibabel.nifti1 import Nifti1Image

    affine = (_TO_LPS @ volume.affine)[:, [2, 1, 0, 3]]
    image = Nifti1Image(volume.voxels.transpose(2, 1, 0), affine)
    image.set_sform(affine, _SCANNER)
    image.set_qform(affine, _SCANNER)
    image.header.set_xyzt_units("mm")
    image.to_filename(str(path))


def _header(path: Path) -> tuple[Nifti1Header, bool]:
    """The header, and whether the voxels are in a file of their own."""
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    head = _unpacked(path, _HEAD)
    second = head[4:6] in (b"n+", b"ni")
    pair = (head[4:6] if second else head[344:346]) == b"ni"
    kinds = (Nifti1Header, Nifti1PairHeader), (Nifti2Header, Nifti2PairHeader)
    kind = kinds[second][pair]
    return kind(binaryblock=head[: kind.template_dtype.itemsize]), pair


def _unpacked(path: Path, limit: int) -> bytes:
    """The file's first bytes, unpacked; where a packed file ends there, its checksum is checked."""
    check_file(path)
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            return file.read(limit)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                content = unpacked.read(limit)
                if limit > _HEAD:  # not only the header: go to the end, where the checksum is
                    unpacked.read(1 << 20)
                return content
        except EOFError as error:
            reason = "the packed file breaks off; copy it again from its origin"
            raise UnreadableImage(path, reason) from error


def _check(path: Path, header: Nifti1Header) -> None:
    """One volume of numbers, within limits."""
    shape = tuple(int(length) for length in header.get_data_shape())
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        said = " x ".join(map(str, shape))
        reason = f"expected one volume of three axes, got {said}; split a time series into single volumes"
        raise UnreadableImage(path, reason)
    check_volume(path, shape)
    kind = header.get_data_dtype()
    if kind.kind not in "iuf":
        raise UnreadableImage(path, f"voxels are of kind {kind}; expected whole or floating-point numbers")
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _MAX_OFFSET:
        raise UnreadableImage(path, f"its voxels are said to begin at byte {offset:.0f}")


def _partner(path: Path) -> Path:
    """The ``.img`` of a ``.hdr``."""
    for ending in (".img", ".img.gz"):
        candidate = path.with_name(path.name.removesuffix(".gz").removesuffix(".hdr") + ending)
        if candidate.is_file():
            return candidate
    raise UnreadableImage(path, "this is the header of a pair, and the .img with its voxels is not beside it")


def _affine(path: Path, header: Nifti1Header) -> NDArray[np.float64]:
    affine = np.asarray(header.get_best_affine(), np.float64)
    if not np.isfinite(affine).all():
        raise UnreadableImage(path, "its affine is not finite; repair the header's sform or qform")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((spacing > 1e-3) & (spacing < 1e3)).all() or np.abs(affine).max() > 1e6:
        raise UnreadableImage(path, "its voxel sizes are not between 0.001 and 1000 mm; repair the header")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.01:
        raise UnreadableImage(path, "the axes of its affine do not span a volume; repair the header")
    return affine


def _voxels(path: Path, header: Nifti1Header) -> NDArray[Any]:
    """(i, j, k) voxels as stored, from the file's bytes."""
    shape, kind, offset = header.get_data_shape(), header.get_data_dtype(), int(header["vox_offset"])
    count = int(np.prod(shape, dtype=np.int64))
    needed = offset + count * kind.itemsize
    content = _unpacked(path, needed)
    if len(content) < needed:
        reason = f"the file breaks off: {len(content)} of {needed} bytes are there; copy it again"
        raise UnreadableImage(path, reason)
    return np.frombuffer(content, kind, count, offset).reshape(shape[:3], order="F")


def _scaled(path: Path, header: Nifti1Header, stored: NDArray[Any]) -> NDArray[Any]:
    """Voxels by slope and intercept, of this machine's byte order; what is not finite is 0."""
    slope, intercept = header.get_slope_inter()
    voxels = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if slope is not None and (slope, intercept) != (1.0, 0.0):
        voxels = voxels.astype(np.float64) * slope + (intercept or 0.0)
    if voxels.dtype.kind != "f":
        return voxels
    with np.errstate(over="ignore"):
        voxels = voxels.astype(np.float32)
    finite = np.isfinite(voxels)
    if not finite.any():
        raise UnreadableImage(path, "none of its voxels is a finite number")
    return voxels if finite.all() else np.where(finite, voxels, np.float32(0))
