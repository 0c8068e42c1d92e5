"""Points in a patient at which a model is asked: from a command line, or from a CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from radfuse.engine.errors import RadfuseError

PointMm = tuple[float, float, float]

_AXES = (("x_mm", "y_mm", "z_mm"), ("x", "y", "z"))
_FILE = ("file", "path")
_NAME = ("name", "id", "nodule")
_DELIMITERS = ",;\t"
"""Spreadsheets write any of these, by the language of the machine."""


class BadPoints(RadfuseError):
    """Text, or a file, does not give points."""


@dataclass(frozen=True)
class Point:
    """A place in a patient.

    Attributes:
        mm: (x, y, z) in patient coordinates, LPS.
        name: what the CSV calls it; empty where it has no such column.
        file: the scan that it lies in, as the CSV names it; empty where it has no such column.
        place: where it stands, for messages: ``points.csv, line 2``.
    """

    mm: PointMm
    name: str = ""
    file: str = ""
    place: str = field(default="", compare=False)

    def lies_in(self, path: Path) -> bool:
        """Whether a path is the scan that the CSV names: the ends of both are the same."""
        wanted = PurePath(self.file).parts
        return path.parts[-len(wanted) :] == wanted if wanted else True


def parse_point(text: str) -> PointMm:
    """``X,Y,Z`` as three numbers.

    Raises:
        BadPoints: it is something else.
    """
    parts = text.split(",")
    if len(parts) != 3:
        raise BadPoints(f"expected X,Y,Z in mm, as in -31.5,12,140, got {text!r}.")
    return _point(parts, f"{text!r}")


def read_points(path: Path) -> list[Point]:
    """The points of a CSV with a header: ``x_mm, y_mm, z_mm`` (or ``x, y, z``), patient coordinates, LPS.

    A column ``file`` (or ``path``) tells points of several scans apart; a column ``name``, ``id`` or
    ``nodule`` names them. Other columns are passed over. Commas, semicolons or tabs divide the columns.

    Raises:
        BadPoints: it is missing, no such CSV, or a line has no point.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            reader = csv.DictReader(stream, restval="", delimiter=max(_DELIMITERS, key=header.count))
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadPoints(
            f"{path.name}: expected a CSV of points in UTF-8, and it cannot be read: {reason}."
        ) from error
    axes = next((names for names in _AXES if set(names) <= set(columns)), None)
    if axes is None:
        found = ", ".join(columns) or "nothing"
        raise BadPoints(
            f"{path.name}: expected the columns {', '.join(_AXES[0])} in its first line, got {found}."
        )
    if not rows:
        raise BadPoints(f"{path.name}: expected a line for each point after the header, got none.")
    file, name = (next((one for one in names if one in columns), "") for names in (_FILE, _NAME))
    points = []
    for line, row in rows:
        place = f"{path.name}, line {line}"
        mm = _point([row[axis] for axis in axes], place)
        points.append(Point(mm, row.get(name, "").strip(), row.get(file, "").strip(), place))
    return points


def _point(texts: Sequence[str], place: str) -> PointMm:
    try:
        x, y, z = (float(text) for text in texts)
    except (TypeError, ValueError):
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        raise BadPoints(f"{place}: expected three numbers in mm, got {', '.join(map(str, texts))}.")
    return x, y, z
