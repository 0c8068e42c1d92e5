"""Slices of an enhanced multi-frame DICOM file: each frame says in functional groups where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from radfuse.serving.images.dicom import frames_of
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.limits import MAX_FILES
from radfuse.serving.images.slices import Slice, placed

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def frame_slices(path: Path, header: Dataset) -> list[Slice]:
    """Where each frame lies.

    Args:
        path: the file.
        header: its data set, pixels not needed.

    Raises:
        UnreadableImage: frames and functional groups differ in number, or a frame lacks its place.

    Source:
        DICOM PS3.3 section C.7.6.16.2 (plane position, plane orientation, pixel measures, pixel value
        transformation).
    """
    groups = header.PerFrameFunctionalGroupsSequence
    count = frames_of(path, header)
    if len(groups) != count:
        raise UnreadableImage(path, f"the file says {count} frames and describes {len(groups)}")
    if count > MAX_FILES:
        raise UnreadableImage(path, f"the file holds {count} frames; the limit is {MAX_FILES}")
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    found = []
    for frame, own in enumerate(groups):
        position = _item(own, shared, "PlanePositionSequence")
        orientation = _item(own, shared, "PlaneOrientationSequence")
        measures = _item(own, shared, "PixelMeasuresSequence")
        if position is None or orientation is None or measures is None:
            raise UnreadableImage(path, f"frame {frame + 1} does not say where in the patient it lies")
        rescale = _item(own, shared, "PixelValueTransformationSequence")
        found.append(placed(path, header, frame, position, orientation, measures, rescale))
    return found


def _item(own: Dataset, shared: Dataset | None, sequence: str) -> Dataset | None:
    """The only item of a functional group, which stands with the frame or with what all frames share."""
    for group in (own, shared):
        items = group.get(sequence) if group is not None else None
        if items:
            found: Dataset = items[0]
            return found
    return None
