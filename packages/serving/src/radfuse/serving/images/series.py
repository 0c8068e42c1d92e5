"""Reading a series of DICOM slices, or one multi-frame file, as a volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.images.dicom import decode, frames_of, modality_of, open_dicom, text
from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.formats import Format, format_of
from radfuse.serving.images.intensity import modality_values
from radfuse.serving.images.limits import MAX_FILES, check_volume
from radfuse.serving.images.multiframe import frame_slices
from radfuse.serving.images.slices import Slice, grid_of, slice_of
from radfuse.serving.images.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset


def read_series(source: str | Path | Sequence[str | Path], modality: str | None = "CT") -> Volume:
    """Read one DICOM series: slices in order of position along the normal, values rescaled slice by slice.

    In a folder, files of other formats and DICOM objects without pictures (reports, directories) are passed
    over, and so are localizers where there are other images. Files that are named one by one must all be
    images of the series.

    Args:
        source: a folder (not searched deeper), the files, or one multi-frame file.
        modality: what Modality (0008,0060) must be; None for any.

    Returns:
        Voxels in Hounsfield units for CT: int16 where slopes are whole numbers, else float32.

    Raises:
        UnreadableImage: several series, mixed orientation or size, slices missing or doubled, damage, a
            limit. The reason says where; nothing else is raised for any content of a file.

    Source:
        DICOM PS3.3 section C.7.6.2 (image plane module), C.7.6.16 (multi-frame functional groups).
    """
    place, files = _files(source)
    with guarded(place, "the series cannot be read"):
        headers = _headers(files, strict=not (isinstance(source, str | Path) and place.is_dir()))
        _check_modality(headers, modality)
        headers = _one_series(place, headers)
        slices = _slices(place, headers)
        grid = grid_of(place, slices)
        check_volume(place, (len(grid.slices), *grid.slices[0].shape))
        return Volume(_voxels(grid.slices), grid.affine)


def _files(source: str | Path | Sequence[str | Path]) -> tuple[Path, list[Path]]:
    """Where the series is, for messages, and its files."""
    if not isinstance(source, str | Path):
        files = [Path(file) for file in source]
        if not files:
            raise UnreadableImage("series", "no file is named; expected the files of one series")
        place = files[0].parent if len(files) > 1 else files[0]
    elif Path(source).is_dir():
        place = Path(source)
        with guarded(place, "the folder cannot be listed"):
            files = sorted(
                file for file in place.iterdir() if file.is_file() and not file.name.startswith(".")
            )
    else:
        place, files = Path(source), [Path(source)]
    if len(files) > MAX_FILES:
        raise UnreadableImage(place, f"the series has {len(files)} files; the limit is {MAX_FILES}")
    return place, files


def _headers(files: Iterable[Path], strict: bool) -> list[tuple[Path, Dataset]]:
    """Data sets without pixels of the files that hold images.

    Args:
        files: of the series.
        strict: every one must be an image; else those of another kind are passed over.
    """
    found = []
    for file in files:
        if not strict and not _is_dicom(file):
            continue
        header = open_dicom(file, pixels=False)
        if header.get("Rows") is not None or strict:
            found.append((file, header))
    return found


def _is_dicom(file: Path) -> bool:
    try:
        return format_of(file) is Format.DICOM
    except UnreadableImage:
        return False


def _one_series(place: Path, headers: list[tuple[Path, Dataset]]) -> list[tuple[Path, Dataset]]:
    """The images of the only series, without localizers."""
    if not headers:
        raise UnreadableImage(place, "there is no DICOM image in it; name the folder of one series")
    scans = [(file, header) for file, header in headers if "LOCALIZER" not in _image_type(header)] or headers
    series = Counter(text(header, "SeriesInstanceUID") for _, header in scans)
    if len(series) > 1:
        counts = ", ".join(map(str, sorted(series.values(), reverse=True)))
        reason = f"it holds {len(series)} series, of {counts} images; put each in a folder of its own"
        raise UnreadableImage(place, reason)
    return scans


def _image_type(header: Dataset) -> str:
    return str(header.get("ImageType") or "").upper()


def _check_modality(headers: Iterable[tuple[Path, Dataset]], modality: str | None) -> None:
    for file, header in headers:
        found = modality_of(header)
        if modality is not None and found != modality:
            came = found or "not said"
            reason = f"expected images of Modality (0008,0060) {modality}, it is {came}"
            raise UnreadableImage(file, reason)
        if header.get("Rows") is None:
            raise UnreadableImage(
                file, "there is no picture in it: it is a report, a directory or part of a file"
            )


def _slices(place: Path, headers: list[tuple[Path, Dataset]]) -> list[Slice]:
    if len(headers) == 1 and ("PerFrameFunctionalGroupsSequence" in headers[0][1]):
        return frame_slices(*headers[0])
    for file, header in headers:
        frames = frames_of(file, header)
        if frames > 1:
            reason = f"the file holds {frames} frames without their positions; expected one slice a file"
            raise UnreadableImage(file if len(headers) == 1 else place, reason)
    return [slice_of(file, header) for file, header in headers]


def _voxels(slices: Sequence[Slice]) -> NDArray[Any]:
    """(D, H, W) rescaled values, decoded one slice at a time."""
    opened: tuple[Path, Dataset] | None = None
    planes = []
    for each in slices:
        if opened is None or opened[0] != each.path:
            opened = (each.path, open_dicom(each.path))
        stored = decode(each.path, opened[1], each.frame)
        if stored.shape != each.shape:
            raise UnreadableImage(each.path, f"expected grey values, the decoder gave shape {stored.shape}")
        values = modality_values(each.path, each.rescale or opened[1], stored)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UnreadableImage(each.path, "some pixels are not finite")
        planes.append(values if values.dtype == np.int16 else _compact(values))
    whole = all(plane.dtype == np.int16 for plane in planes)
    return np.stack(planes).astype(np.int16 if whole else np.float32, copy=False)


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """int16 where every value fits, else float32."""
    fits = values.dtype.kind in "iu" and values.min() >= -(1 << 15) and values.max() < 1 << 15
    return values.astype(np.int16 if fits else np.float32)
