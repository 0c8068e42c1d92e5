"""The report as one HTML page that needs nothing but itself: figures are inside, nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ckptcore import durable
from radfuse.engine.evaluation.summary import leaks, method_name, summary

if TYPE_CHECKING:
    from radfuse.engine.blocks import EvaluateSettings
    from radfuse.engine.evaluation.results import Results

_NOTHING = "–"


def write_report(
    path: Path, results: Results, figures: Mapping[str, Sequence[Path]], settings: EvaluateSettings
) -> None:
    """Write the page.

    Args:
        path: the HTML file to make.
        results: what was found.
        figures: PNG files by modality, and of ``ensemble``.
        settings: how the intervals were made.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "interval": _interval, "picture": _picture, "words": _words}
    template = environment.from_string(
        files("radfuse.engine").joinpath("templates/report.html").read_text("utf-8")
    )
    page = template.render(
        lines=summary(results),
        leaks=leaks(results),
        modalities=results.modalities,
        ensemble=results.ensemble,
        figures=figures,
        settings=settings,
        method_name=method_name,
    )
    durable.make_folder(path.parent)
    durable.write_text(path, page)


def _number(value: float | None, digits: int = 3) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _interval(interval: Mapping[str, Any] | None, digits: int = 3, ceiling: float | None = None) -> Markup:
    """A figure, and below it in small where it may lie, and the ceiling where it is known."""
    if interval is None or interval["value"] is None:
        return Markup(_NOTHING)
    small = []
    if interval["low"] is not None:
        small.append(f"{_number(interval['low'], digits)} to {_number(interval['high'], digits)}")
    if ceiling is not None:
        small.append(f"ceiling {_number(ceiling, digits)}")
    below = Markup("<small>{}</small>").format("; ".join(small)) if small else ""
    return Markup("{}{}").format(_number(interval["value"], digits), below)


def _picture(path: Path) -> str:
    """A PNG as the address of an ``img``: the picture itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _words(name: str) -> str:
    return name.replace("_", " ")
