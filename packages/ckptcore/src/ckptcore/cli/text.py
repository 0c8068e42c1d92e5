"""Numbers, sizes, times and names as people read them; nothing in them can command the terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from ckptcore.amounts import size as size

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def paint(text: str, style: str) -> str:
    """Text in one or more styles ("bold red") of an ANSI terminal."""
    codes = ";".join(_STYLES[name] for name in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m" if codes else text


def clean(text: str) -> str:
    """Text from a file, every character of it harmless: names and metadata may come from strangers."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def count(number: int | None) -> str:
    """A whole number with its thousands apart; "-" for none."""
    return "-" if number is None else f"{number:,}"


def amount(value: float | None) -> str:
    """A metric, four places long unless that hides it; "-" for none."""
    if value is None:
        return "-"
    if math.isfinite(value) and value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return f"{value:.4f}"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """A number and its noun: 1 file, 2 files."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def moment(iso: str | None) -> str:
    """The minute of an ISO 8601 time, in UTC; "-" for none."""
    found = _parsed(iso)
    return "-" if found is None else found.strftime("%Y-%m-%d %H:%M")


def stamp(iso: str | None) -> str | None:
    """The second of an ISO 8601 time that has an offset, in UTC; None for any other text."""
    found = _parsed(iso) if iso and "T" in iso and ("+" in iso or iso.endswith("Z")) else None
    return None if found is None else found.strftime("%Y-%m-%d %H:%M:%S UTC")


def age(iso: str | None, now: datetime | None = None) -> str:
    """How long ago a time was, in one unit; empty where it is not known or lies ahead."""
    found = _parsed(iso)
    seconds = ((now or datetime.now(UTC)) - found).total_seconds() if found is not None else -1.0
    if seconds < 0:
        return ""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now" if seconds < 60 else "1 min ago"


def _parsed(iso: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(iso or "").astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def aligned(values: Mapping[str, str]) -> str:
    """Names and values on lines of their own, the values below each other."""
    names = {name: clean(name) for name in values}
    wide = max(map(width, names.values()), default=0)
    return "\n".join(f"{names[n]}{' ' * (wide - width(names[n]))}  {clean(v)}" for n, v in values.items())


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names after commas, the first few of them."""
    found = [clean(name) for name in names]
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def trouble(name: str, problem: str) -> str:
    """What is wrong with a file, without its name and without advice, for where both stand already."""
    text = problem.replace(f"{name} is damaged: ", "").removeprefix(f"{name} ")
    return text.removesuffix(" Use another checkpoint of the run.").removesuffix(".")
