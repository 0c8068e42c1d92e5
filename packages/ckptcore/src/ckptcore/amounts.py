"""Amounts of bytes as people read them."""

from __future__ import annotations


def size(nbytes: int | None) -> str:
    """Bytes in the largest decimal unit that leaves three digits."""
    if nbytes is None:
        return "-"
    value, unit = float(nbytes), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    if unit == "B":
        return f"{nbytes} B"
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{places}f} {unit}"
