"""Figures as PNG files: each whole or not at all, and the same picture the same bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ckptcore import durable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_png(figure: Figure, path: Path, dpi: int) -> None:
    """Draw a figure into a file, in place of one that is there.

    Args:
        figure: with a canvas.
        path: the file to make; its folder is made when missing.
        dpi: pixels an inch.
    """
    content = io.BytesIO()
    # Without the library's version, by which the same picture would be another file.
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    durable.make_folder(path.parent)
    durable.write_bytes(path, content.getvalue())
