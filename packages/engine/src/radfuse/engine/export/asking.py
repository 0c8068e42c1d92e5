"""Asks an exported model about files: which files make a sample, at which points, and what came of each.

Nothing here imports torch: an answer comes from the ONNX file and its card alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from radfuse.engine.errors import RadfuseError
from radfuse.engine.export.points import Point
from radfuse.serving import Predictor, UnreadableImage, inputs_for
from radfuse.serving.preprocess import LastScan

if TYPE_CHECKING:
    from radfuse.serving import Card, Prediction


class BadQuestion(RadfuseError):
    """What is asked does not go together: wrong usage."""


@dataclass(frozen=True)
class Question:
    """A sample to ask about.

    Attributes:
        images: paths by role.
        point: where, for models of patches.
    """

    images: Mapping[str, Path]
    point: Point | None = None

    @property
    def title(self) -> str:
        """The path as it was given; the folder of several images that lie in one."""
        paths = list(self.images.values())
        folders = {path.parent for path in paths}
        if len(paths) > 1 and len(folders) == 1:
            return str(folders.pop())
        return " ".join(map(str, paths))


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        question: that was asked.
        prediction: None where the images could not be read.
        error: why they could not; empty otherwise.
    """

    question: Question
    prediction: Prediction | None
    error: str = ""


def questions(
    card: Card, paths: Sequence[Path], named: Mapping[str, Path], points: Sequence[Point]
) -> list[Question]:
    """The samples that paths and points stand for.

    For a model of one image every path is a sample; for one of several the paths together are one, and so
    is each of several folders.

    Raises:
        InputError: the paths do not give the images that the model takes.
        BadQuestion: there are none, or points do not tell which scan they lie in, or tell another one.
    """
    if not paths and not named:
        raise BadQuestion(f"expected files to ask about ({', '.join(card.inputs)}), got none.")
    each_alone = len(card.inputs) == 1 or (len(paths) > 1 and all(path.is_dir() for path in paths))
    groups: list[list[Path]] = [[path] for path in paths] if each_alone and not named else [list(paths)]
    samples = [inputs_for(card, group, named) for group in groups]
    if not points:
        return [Question(images) for images in samples]
    if len(samples) > 1 and not all(point.file for point in points):
        raise BadQuestion(
            f"expected one scan for points that do not say where they lie, got {len(samples)}; ask about one "
            "at a time, or give the points a column 'file'."
        )
    found = [Question(images, point) for images in samples for point in _inside(images, points)]
    scans = [path for images in samples for path in images.values()]
    for point in points:
        if not any(point.lies_in(scan) for scan in scans):
            raise BadQuestion(
                f"{point.place}: expected one of the scans that are asked about in the column 'file', got "
                f"{point.file!r}; ask about it too, or leave its line out."
            )
    return found


def answers(predictor: Predictor, asked: Sequence[Question]) -> Iterator[Answer]:
    """The answers one by one; images that cannot be read do not keep the others from theirs.

    Raises:
        InputError: a point was given to a model that takes none.
        ModelError: the model fails.
    """
    read = LastScan()
    for question in asked:
        point = None if question.point is None else question.point.mm
        try:
            found = predictor.predict(question.images, point, read)
        except UnreadableImage as error:
            yield Answer(question, None, str(error))
        else:
            yield Answer(question, found)


def _inside(images: Mapping[str, Path], points: Sequence[Point]) -> list[Point]:
    found = [point for point in points if any(point.lies_in(path) for path in images.values())]
    if not found:
        names = ", ".join(path.name for path in images.values())
        raise BadQuestion(
            f"expected a point in {names}, and the column 'file' of the points names other scans only."
        )
    return found
