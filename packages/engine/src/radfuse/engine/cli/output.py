"""What commands write: Rich tables for people, strict JSON for programs."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_WIDTH = 160


def console(errors: bool = False) -> Console:
    """Where a command writes: as wide as the terminal, and wide enough for its tables where there is none.

    Args:
        errors: standard error, for progress and remarks; otherwise standard output.
    """
    from rich.console import Console

    stream = sys.stderr if errors else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(stderr=errors, width=width, highlight=False, soft_wrap=False)


def write_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """A table on standard output; numbers stand right.

    Args:
        title: above it.
        header: names of the columns.
        rows: their cells; a cell that ends in ``!`` is shown as a warning.
        note: below it.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for place, name in enumerate(header):
        numeric = bool(rows) and all(_numeric(row[place]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        cells = [str(cell) for cell in row]
        table.add_row(*(Text(cell, style="bold red" if cell.endswith("!") else "") for cell in cells))
    out = console()
    if title:
        out.print(title, markup=False)
    out.print(table)
    if note:
        out.print(note, markup=False)


def plain(table: Table) -> str:
    """A table as a text file holds it: without colours, as wide as it needs."""
    from rich.console import Console

    written = io.StringIO()
    Console(file=written, width=_PIPE_WIDTH, color_system=None, highlight=False).print(table)
    return "".join(line.rstrip() + "\n" for line in written.getvalue().splitlines())


def write_json(value: Any) -> None:
    """One JSON value on standard output; NaN and infinities are null, as strict JSON has no word for them."""
    sys.stdout.write(json.dumps(_strict(value), indent=2, allow_nan=False) + "\n")


def _numeric(cell: object) -> bool:
    text = str(cell).rstrip("!").strip()
    return not text or text.replace(",", "").replace(".", "").replace("-", "").isdigit()


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value
