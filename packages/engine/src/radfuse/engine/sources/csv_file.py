"""Reads the CSV of a source, and says what is wrong with it by file, line and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from radfuse.engine.errors import SourceError, did_you_mean

_TRUE = {"1", "1.0", "true", "yes", "y", "positive"}
_FALSE = {"0", "0.0", "false", "no", "n", "negative"}
_UNKNOWN = {"", "nan", "na", "n/a", "<na>", "none", "null", "?"}
"""How an empty field is written, in lower case; pandas writes several."""


@dataclass(frozen=True)
class Row:
    """One line of a CSV.

    Attributes:
        file: its name, for messages.
        line: its number in the file.
        values: text by column, without spaces around it.
    """

    file: str
    line: int
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def text(self, column: str) -> str:
        """The text of a field, nothing for an empty one."""
        text = self.values[column]
        return "" if text.lower() in _UNKNOWN else text

    def label(self, column: str) -> float:
        """1, 0, or NaN for an empty field.

        Raises:
            SourceError: it is something else.
        """
        text = self.values[column].lower()
        if text in _TRUE:
            return 1.0
        if text in _FALSE:
            return 0.0
        if text in _UNKNOWN:
            return math.nan
        raise SourceError(
            f"{self.place}: expected 0, 1 or nothing in column {column!r}, got {self.values[column]!r}."
        )

    def number(self, column: str) -> float:
        """A finite number, or NaN for an empty field.

        Raises:
            SourceError: it is something else.
        """
        text = self.values[column]
        if text.lower() in _UNKNOWN:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SourceError(f"{self.place}: expected a number in column {column!r}, got {text!r}.")
        return value

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class Table:
    """A CSV in memory.

    Attributes:
        file: its name, for messages.
        columns: from its header.
        rows: the other lines.
    """

    file: str
    columns: list[str]
    rows: list[Row]

    def require(self, columns: Sequence[str]) -> None:
        """Check that columns are there.

        Raises:
            SourceError: one is not; the nearest that is there is named.
        """
        for column in columns:
            if column not in self.columns:
                near = did_you_mean(column, self.columns)
                raise SourceError(f"{self.file}: expected a column {column!r}, and there is none{near}")


def read(root: Path, name: str, source: str, required: Sequence[str] = (), delimiter: str = ",") -> Table:
    """A CSV with a header.

    Args:
        root: of the source.
        name: of the file, relative to it.
        source: its name, for messages.
        required: columns that must be there.
        delimiter: between fields.

    Raises:
        SourceError: it is missing, empty, no CSV, or lacks a column.
    """
    path = root / name
    shown = f"source {source}: {name}"
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            lines = list(_lines(stream, delimiter))
    except FileNotFoundError:
        raise SourceError(
            f"{shown}: there is no such file in the source's root; correct the name, or add it."
        ) from None
    except csv.Error as error:
        _refuse_semicolons(shown, _first_line(path), delimiter)
        raise SourceError(f"{shown} cannot be read as a CSV: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{shown} cannot be read as a CSV in UTF-8: {error}.") from error
    table = _table(shown, lines, delimiter)
    table.require(required)
    return table


def _lines(stream: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    for fields in reader:
        if any(field.strip() for field in fields):
            yield reader.line_num, [field.strip() for field in fields]


def _first_line(path: Path) -> str:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        return next((line for line in stream if line.strip()), "")


def _refuse_semicolons(shown: str, header: str, delimiter: str) -> None:
    """Quoted fields apart by ';' are no CSV with commas at all, so this is asked of the line as it stands."""
    try:
        apart = len(next(csv.reader([header], delimiter=";", strict=True), []))
    except csv.Error:
        return
    if delimiter != ";" and apart > 1:
        raise SourceError(f"{shown} has its fields apart by ';'; set `delimiter: ';'` for this source.")


def _table(shown: str, lines: list[tuple[int, list[str]]], delimiter: str) -> Table:
    if not lines:
        raise SourceError(f"{shown} is empty; expected a header line and a line for each image.")
    header = lines[0][1]
    if len(lines) == 1:
        raise SourceError(f"{shown} has a header and no line after it; expected a line for each image.")
    if len(header) == 1:
        _refuse_semicolons(shown, header[0], delimiter)
    # A comma at the end of each line makes a column without a name, as in the official NIH file.
    columns = [name or f"column {place}" for place, name in enumerate(header, 1)]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise SourceError(f"{shown}: the column {twice[0]!r} stands twice in the header; rename one.")
    rows = []
    for line, fields in lines[1:]:
        if len(fields) > len(columns):
            raise SourceError(
                f"{shown}, line {line}: expected {len(columns)} fields as in the header, got {len(fields)}; "
                "put fields that hold the delimiter between quotes."
            )
        fields += [""] * (len(columns) - len(fields))
        rows.append(Row(shown, line, dict(zip(columns, fields, strict=True))))
    return Table(shown, columns, rows)
