"""Reading a volume, whatever it is kept as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.formats import Format, format_of
from radfuse.serving.images.nifti import read_nifti
from radfuse.serving.images.series import read_series
from radfuse.serving.images.volume import Volume


def read_volume(source: str | Path | Sequence[str | Path], modality: str | None = None) -> Volume:
    """Read a NIfTI file, a folder with a DICOM series, or a series' files.

    Args:
        source: file, folder or files.
        modality: what Modality (0008,0060) of DICOM images must be; None for any.

    Raises:
        UnreadableImage: with the reason.
    """
    if isinstance(source, str | Path):
        path = Path(source)
    elif len(source) == 1:
        path = Path(source[0])
    else:
        return read_series(source, modality)
    if path.is_dir():
        return read_series(path, modality)
    found = format_of(path)
    if found is Format.NIFTI:
        return read_nifti(path)
    if found is Format.DICOM:
        return read_series([path], modality)
    raise UnreadableImage(path, f"expected a volume (NIfTI or a DICOM series), got a {found.value} picture")
