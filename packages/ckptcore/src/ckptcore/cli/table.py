"""Plain aligned tables. Rich takes 0.6 s for the thousand rows that this lays out in a few hundredths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptcore.cli.text import paint, width

GAP = "  "
_NARROWEST = 24


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: what stands above it.
        right: its text is aligned to the right, as numbers are.
        drop: where the terminal is too narrow, the columns with high numbers go first; 0 always stays.
        wrap: where the terminal is too narrow, its text is broken between words.
    """

    title: str
    right: bool = False
    drop: int = 0
    wrap: bool = False


Cell = str | tuple[str, ...]
"""A text, or the names of one thing, below each other where they do not fit beside each other."""


@dataclass(frozen=True)
class Row:
    """A row: a cell a column, a mark in front of it ("*", "!") and a style for all of it."""

    cells: tuple[Cell, ...]
    mark: str = ""
    style: str = ""


def layout(
    columns: Sequence[Column], rows: Sequence[Row], limit: int | None = None, colour: bool = False
) -> str:
    """The lines of a table.

    Args:
        columns: its columns; one that may be dropped is, where all its cells are "-" or empty.
        rows: its rows.
        limit: width of the terminal; None where nothing may be left out or broken.
        colour: whether styles are shown.
    """
    shown = [i for i, column in enumerate(columns) if not column.drop or any(_told(r.cells[i]) for r in rows)]
    cells = [[_beside(cell) for cell in row.cells] for row in rows]
    widths = _widths(columns, cells)
    if limit is not None and _total(widths, shown) > limit:
        cells = [[_below(cell) for cell in row.cells] for row in rows]
        shown = _that_fit(columns, _widths(columns, cells), shown, limit)
        cells = _wrapped(columns, cells, shown, limit)
        widths = _widths(columns, cells)
    head = GAP + _line([column.title for column in columns], columns, widths, shown)
    lines = [paint(head, "bold") if colour else head]
    for row, parts in zip(rows, cells, strict=True):
        text = _lines(parts, row.mark, columns, widths, shown)
        lines += [paint(line, row.style) for line in text] if colour and row.style else text
    return "\n".join(lines)


def _told(cell: Cell) -> bool:
    return cell not in ("", "-", ())


def _beside(cell: Cell) -> tuple[str, ...]:
    return (cell if isinstance(cell, str) else " = ".join(cell),)


def _below(cell: Cell) -> tuple[str, ...]:
    return (cell,) if isinstance(cell, str) else (*cell[:1], *(f"= {part}" for part in cell[1:]))


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[tuple[str, ...]]]) -> list[int]:
    return [
        max(width(column.title), max((width(part) for parts in cells for part in parts[i]), default=0))
        for i, column in enumerate(columns)
    ]


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[i] + len(GAP) for i in shown)


def _that_fit(
    columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int], limit: int
) -> list[int]:
    """The columns that always stay, and of the others those that fit, the more important ones first."""
    taken = [min(w, _NARROWEST) if c.wrap else w for c, w in zip(columns, widths, strict=True)]
    fitting = [i for i in shown if not columns[i].drop]
    for i in sorted((i for i in shown if columns[i].drop), key=lambda i: (columns[i].drop, i)):
        if _total(taken, [*fitting, i]) <= limit:
            fitting.append(i)
    return sorted(fitting)


def _wrapped(
    columns: Sequence[Column], cells: list[list[tuple[str, ...]]], shown: Sequence[int], limit: int
) -> list[list[tuple[str, ...]]]:
    """The cells with those that may be broken no wider than what the other columns leave."""
    breakable = [i for i in shown if columns[i].wrap]
    if not breakable:
        return cells
    import textwrap

    widths = _widths(columns, cells)
    room = limit - _total(widths, [i for i in shown if i not in breakable])
    for i in breakable:
        each = max(_NARROWEST, room // len(breakable) - len(GAP))
        for parts in cells:
            broken = (textwrap.wrap(part, each, break_on_hyphens=False) or [""] for part in parts[i])
            parts[i] = tuple(line for lines in broken for line in lines)
    return cells


def _lines(
    parts: Sequence[tuple[str, ...]],
    mark: str,
    columns: Sequence[Column],
    widths: Sequence[int],
    shown: Sequence[int],
) -> list[str]:
    found = []
    for level in range(max((len(parts[i]) for i in shown), default=0)):
        texts = [cell[level] if level < len(cell) else "" for cell in parts]
        found.append(
            f"{mark if level == 0 else '':<{len(GAP)}}{_line(texts, columns, widths, shown)}".rstrip()
        )
    return found


def _line(
    texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int]
) -> str:
    padded = []
    for i in shown:
        space = " " * (widths[i] - width(texts[i]))
        padded.append(space + texts[i] if columns[i].right else texts[i] + space)
    return GAP.join(padded).rstrip()
