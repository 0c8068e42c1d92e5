"""A comparison of checkpoints as a picture: the metric over the epochs, the best one marked."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ckptcore import durable
from ckptcore.comparing import Comparison, Row
from ckptcore.errors import UsageError

_INK, _MUTED, _BEST = "#1f4e79", "#9aa5b1", "#c8501e"
_MAX_OTHERS = 4
_LABEL_GAP = 0.045
"""Least distance of two labels, as a fraction of the height."""
_SIZE_INCHES = (8.0, 4.5)
_DPI = 150


def plot(comparison: Comparison, file: str | os.PathLike[str]) -> Path:
    """Draw a comparison to a PNG file.

    Args:
        comparison: from `ckptcore.comparing.compare`.
        file: the picture; one that exists is replaced.

    Raises:
        UsageError: matplotlib is not installed, or there is nothing to draw.
    """
    target = Path(file)
    metric = comparison.metric
    rows = [row for row in comparison.rows if row.epochs_finished is not None and _has(row, metric)]
    if metric is None or not rows:
        raise UsageError("there is nothing to draw: no checkpoint says both its epoch and a metric.")
    if target.suffix != ".png":
        raise UsageError(f"expected a picture that ends in .png, got {target.name}.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError('a plot needs matplotlib. Install it: pip install "ckptcore[plot]".') from error
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), comparison, rows, metric)
    content = io.BytesIO()
    # Without the library's version the same checkpoints make the same bytes.
    figure.savefig(content, format="png", metadata={"Software": None})
    durable.make_folder(target.parent)
    durable.write_bytes(target, content.getvalue())
    return target


def _has(row: Row, metric: str | None) -> bool:
    return metric is not None and math.isfinite(row.metrics.get(metric, math.nan))


def _draw(axes: Any, comparison: Comparison, rows: Sequence[Row], metric: str) -> None:
    ends: list[tuple[float, str, str]] = []
    for name in [*_others(rows, metric), metric]:
        some = [row for row in rows if _has(row, name)]
        epochs, values = [row.epochs_finished for row in some], [row.metrics[name] for row in some]
        main = name == metric
        color = _INK if main else _MUTED
        axes.plot(
            epochs, values, color=color, linewidth=2 if main else 1, marker="o", markersize=5 if main else 3,
            zorder=2 if main else 1,
        )  # fmt: skip
        ends.append((values[-1], name, color))
    axes.margins(x=0.03, y=0.12)
    _label(axes, ends)
    _mark_stages(axes, rows)
    if comparison.best is not None:
        _mark_best(axes, comparison.best, metric)
    axes.set_xlabel("epochs finished")
    axes.set_ylabel(f"{metric} ({'lower' if comparison.mode == 'min' else 'higher'} is better)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e9ee", linewidth=0.8)
    axes.set_axisbelow(True)


def _others(rows: Sequence[Row], metric: str) -> list[str]:
    """Further metrics that live on the same scale: scores beside a score, losses beside a loss."""

    def scale(name: str) -> tuple[bool, bool]:
        values = [row.metrics[name] for row in rows if _has(row, name)]
        return "loss" in name, bool(values) and all(0 <= value <= 1 for value in values)

    names = dict.fromkeys(name for row in rows for name in row.metrics if name != metric and _has(row, name))
    alike = [name for name in names if scale(name) == scale(metric) and not name.startswith("best_")]
    return alike[:_MAX_OTHERS]


def _label(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """The names of the lines at their right ends, moved apart where they would lie on each other."""
    low, high = axes.get_ylim()
    at = -math.inf
    for value, name, color in sorted(ends):
        at = max((value - low) / (high - low), at + _LABEL_GAP)
        axes.annotate(
            name, (1.0, at), xycoords="axes fraction", xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=8, color=color, annotation_clip=False,
        )  # fmt: skip


def _mark_stages(axes: Any, rows: Sequence[Row]) -> None:
    """A thin line where a stage ends, and the names of the stages at the lower edge."""
    if len({row.stage for row in rows}) < 2:
        return
    place = axes.get_xaxis_transform()
    start = rows[0].epochs_finished or 0
    for stage, members in groupby(rows, key=lambda row: row.stage):
        end = max(row.epochs_finished or 0 for row in members)
        axes.text(
            (start + end) / 2, 0.02, stage or "", transform=place, ha="center", fontsize=8, color=_MUTED
        )
        if end < (rows[-1].epochs_finished or 0):
            axes.axvline(end, color=_MUTED, linewidth=0.8, linestyle=":", zorder=0)
        start = end


def _mark_best(axes: Any, best: Row, metric: str) -> None:
    if best.epochs_finished is None or not _has(best, metric):
        return
    value = best.metrics[metric]
    axes.plot([best.epochs_finished], [value], marker="o", markersize=10, color=_BEST, zorder=3)
    axes.set_title(
        f"best: {best.name}, {metric} {value:.4g} after {best.epochs_finished} epochs",
        loc="left",
        fontsize=10,
    )
