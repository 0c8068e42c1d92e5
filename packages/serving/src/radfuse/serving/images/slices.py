"""Putting slices in order, and noticing what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from radfuse.serving.images.dicom import integer, number, numbers, text
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.limits import check_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

_ANGLE = 1e-3
"""How far direction cosines may differ: a twentieth of a degree, more than rounding in 16 characters does."""
_UNEVEN = 0.1
"""How far a gap may differ from the usual one, as a part of it."""


@dataclass(frozen=True)
class Slice:
    """A picture in the patient.

    Attributes:
        path: its file.
        frame: its number in the file, from 0.
        shape: (rows, columns).
        position: (3,) centre of its first pixel, patient mm, LPS.
        rows_to: (3,) unit vector along which the row number grows.
        columns_to: (3,) unit vector along which the column number grows.
        spacing: mm between rows, and between columns.
        thickness: mm, from SpacingBetweenSlices or SliceThickness; 0 where neither is said.
        rescale: where its rescale slope and intercept are; None for the file's top level.
    """

    path: Path
    frame: int
    shape: tuple[int, int]
    position: NDArray[np.float64]
    rows_to: NDArray[np.float64]
    columns_to: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float
    rescale: Dataset | None = None

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector across the slice, so that (columns, rows, normal) is right-handed."""
        return np.cross(self.columns_to, self.rows_to)

    @property
    def along(self) -> float:
        """Position along the normal, mm."""
        return float(self.position @ self.normal)


@dataclass(frozen=True)
class Grid:
    """Slices in order, and the affine from (slice, row, column) to patient mm."""

    slices: Sequence[Slice]
    affine: NDArray[np.float64]


def slice_of(path: Path, header: Dataset) -> Slice:
    """Where a single-frame image lies.

    Raises:
        UnreadableImage: a tag of the image plane module is missing or makes no sense.
    """
    return placed(path, header, 0, header, header, header)


def placed(
    path: Path,
    header: Dataset,
    frame: int,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    rescale: Dataset | None = None,
) -> Slice:
    """A slice from the data sets that hold its parts: the file's own, or items of its functional groups.

    Args:
        path: the file.
        header: its data set.
        frame: number of the frame, from 0.
        position: holds ImagePositionPatient.
        orientation: holds ImageOrientationPatient.
        measures: holds PixelSpacing, SpacingBetweenSlices and SliceThickness.
        rescale: holds RescaleSlope and RescaleIntercept; None for the header.

    Raises:
        UnreadableImage: a tag is missing or makes no sense.
    """
    rows, columns = integer(path, header, "Rows"), integer(path, header, "Columns")
    check_picture(path, rows, columns)
    cosines = np.asarray(_vector(path, orientation, "ImageOrientationPatient", 6)).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(cosines[0] @ cosines[1]) > 0.01:
        reason = "ImageOrientationPatient (0020,0037) is not two unit vectors at a right angle"
        raise UnreadableImage(path, reason)
    between_rows, between_columns = _vector(path, measures, "PixelSpacing", 2)
    if not (1e-3 < between_rows < 1e3 and 1e-3 < between_columns < 1e3):
        raise UnreadableImage(path, "PixelSpacing (0028,0030) is not between 0.001 and 1000 mm")
    return Slice(
        path=path,
        frame=frame,
        shape=(rows, columns),
        position=np.asarray(_vector(path, position, "ImagePositionPatient", 3)),
        rows_to=cosines[1] / lengths[1],
        columns_to=cosines[0] / lengths[0],
        spacing=(between_rows, between_columns),
        thickness=_thickness(path, measures),
        rescale=rescale,
    )


def grid_of(place: Path, slices: Sequence[Slice]) -> Grid:
    """Slices sorted along their normal, and their affine.

    Args:
        place: the folder or file, for messages.
        slices: of one series, in any order.

    Raises:
        UnreadableImage: they differ in size, spacing or orientation; two lie at one place; one is missing;
            they are unevenly spaced; or they do not lie behind one another.
    """
    _check_alike(place, slices)
    ordered = sorted(slices, key=lambda each: each.along)
    first, last = ordered[0], ordered[-1]
    if len(ordered) == 1:
        if first.thickness <= 0:
            reason = "a single slice without SliceThickness (0018,0050) is no volume; name the whole series"
            raise UnreadableImage(place, reason)
        step = first.normal * first.thickness
    else:
        _check_gaps(place, np.array([each.along for each in ordered]))
        step = (last.position - first.position) / (len(ordered) - 1)
        _check_line(place, ordered, step)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.rows_to * first.spacing[0]
    affine[:3, 2] = first.columns_to * first.spacing[1]
    affine[:3, 3] = first.position
    return Grid(ordered, affine)


def _check_alike(place: Path, slices: Sequence[Slice]) -> None:
    first = slices[0]
    for each in slices[1:]:
        if each.shape != first.shape:
            sizes = f"{first.shape[1]} x {first.shape[0]} and {each.shape[1]} x {each.shape[0]}"
            reason = f"its images differ in size: {sizes} pixels; separate the series"
            raise UnreadableImage(place, reason)
        turned = max(
            np.abs(each.rows_to - first.rows_to).max(), np.abs(each.columns_to - first.columns_to).max()
        )
        if turned > _ANGLE:
            reason = "its images differ in orientation (ImageOrientationPatient); separate the series"
            raise UnreadableImage(place, reason)
        if not np.allclose(each.spacing, first.spacing, rtol=1e-3):
            raise UnreadableImage(place, "its images differ in PixelSpacing; separate the series")


def _check_gaps(place: Path, along: NDArray[np.float64]) -> None:
    """Slices must follow one another at an even distance.

    Args:
        place: for messages.
        along: (n,) positions along the normal in mm, rising.
    """
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    doubled = np.flatnonzero(gaps < max(0.1 * usual, 1e-3))
    if len(doubled):
        where = along[doubled[0]]
        reason = f"two slices lie at the same place, {where:.2f} mm along the normal"
        raise UnreadableImage(
            place, f"{reason} ({len(doubled)} such pairs); remove copies, or separate the phases"
        )
    wide = np.flatnonzero(gaps > 1.5 * usual)
    if len(wide):
        at = wide[0]
        missing = max(1, round(gaps[at] / usual) - 1)
        between = f"between {along[at]:.2f} and {along[at + 1]:.2f} mm along the normal"
        reason = f"{missing} slice(s) are missing {between}, where the others are {usual:.2f} mm apart"
        more = f" ({len(wide)} such gaps)" if len(wide) > 1 else ""
        raise UnreadableImage(place, f"{reason}{more}; copy the whole series")
    uneven = np.flatnonzero(np.abs(gaps - usual) > max(_UNEVEN * usual, 0.01))
    if len(uneven):
        at = uneven[0]
        reason = f"slices are {gaps[at]:.2f} mm apart at {along[at]:.2f} mm along the normal"
        more = f"elsewhere {usual:.2f} mm; resample the series evenly, or separate its parts"
        raise UnreadableImage(place, f"{reason}, {more}")


def _check_line(place: Path, ordered: Sequence[Slice], step: NDArray[np.float64]) -> None:
    """First pixels must lie on one line, across the slices or (gantry tilt) slanted."""
    positions = np.array([each.position for each in ordered])
    expected = positions[0] + np.arange(len(ordered))[:, None] * step
    astray = np.linalg.norm(positions - expected, axis=1)
    if astray.max() > max(0.5 * np.linalg.norm(step), 0.1):
        at = ordered[int(astray.argmax())].along
        reason = (
            f"the slice at {at:.2f} mm along the normal lies {astray.max():.2f} mm off the line of the others"
        )
        raise UnreadableImage(place, f"{reason}; separate the series")


def _vector(path: Path, dataset: Dataset, keyword: str, length: int) -> list[float]:
    values = numbers(path, dataset, keyword)
    if len(values) != length:
        came = f"{len(values)} numbers" if values else "none"
        reason = (
            f"expected {length} numbers in {keyword}, got {came}; ask for the file as the scanner wrote it"
        )
        raise UnreadableImage(path, reason)
    if max(map(abs, values)) > 1e6:
        raise UnreadableImage(path, f"{keyword} has a value beyond a million")
    return values


def _thickness(path: Path, measures: Dataset) -> float:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        if text(measures, keyword):
            value = abs(number(path, measures, keyword, 0.0))
            if 1e-3 < value < 1e3:
                return value
    return 0.0
