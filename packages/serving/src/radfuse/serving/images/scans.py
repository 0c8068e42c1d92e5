"""Reading a volume, whatever it is kept as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.formats import Format, format_of
from radfuse.serving.images.nifti import read_nifti
from radfuse.serving.images.series import read_series
from radfuse.serving.images.volume import Volume

Source = Path | str | Sequence[Path | str]
"""A file, a folder with a DICOM series, or the files of one."""
VolumeReader = Callable[[Source, str | None], Volume]
"""`read_volume`, or what stands for it."""


def read_volume(source: Source, modality: str | None = None) -> Volume:
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


class LastScan:
    """A reader that keeps the last volume, for many points of one scan asked about one after another.

    The files must stay as they are while it is in use, and nobody may write into its volumes.
    """

    def __init__(self) -> None:
        self._key: tuple[str | None, tuple[str, ...]] | None = None
        self._volume: Volume | None = None

    def __call__(self, source: Source, modality: str | None = None) -> Volume:
        paths = (str(source),) if isinstance(source, str | Path) else tuple(map(str, source))
        if self._volume is None or self._key != (modality, paths):
            self._volume = None  # Two scans at once may be more than memory holds.
            self._volume = read_volume(source, modality)
            self._key = (modality, paths)
        return self._volume
