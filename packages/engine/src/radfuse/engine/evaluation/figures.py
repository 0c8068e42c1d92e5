"""Figures of the report, as PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.engine.drawing import write_png
from radfuse.engine.evaluation.curves import FALSE_POSITIVES, MEAN
from radfuse.engine.evaluation.shared import floats
from radfuse.engine.subgroups import FEWEST_PATIENTS
from radfuse.engine.tables import DICE, LABEL, columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8a8a8a"
_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_FEW_CURVES = len(_COLOURS)
_DPI = 130
_NAMED = 5


def roc_figure(path: Path, table: pd.DataFrame, report: Mapping[str, Any], title: str) -> None:
    """ROC curves of the labels and their mean.

    Args:
        path: the PNG to make.
        table: of `roc_table`.
        report: of the modality.
        title: of the picture.
    """
    figure, axes = _new(title, (5.4, 4.8))
    _diagonal(axes)
    labels = columns(table, LABEL)
    few = len(labels) <= _FEW_CURVES
    for place, name in enumerate(labels):
        style: dict[str, Any] = (
            {"color": _COLOURS[place], "linewidth": 1.4} if few else {"color": GREY, "linewidth": 0.7}
        )
        known = f"{name} ({_number(report['labels'][name]['auroc']['value'])})"
        text = known if few else "single labels" if place == 0 else None
        axes.step(table[FALSE_POSITIVES], table[LABEL + name], where="post", label=text, **style)
    if len(labels) > 1:
        whole = set(labels) == set(report["mean"]["over"])
        mean = f"mean ({_number(report['mean']['auroc']['value'])})" if whole else "mean of those drawn"
        axes.plot(
            table[FALSE_POSITIVES], table[MEAN], color=BLUE if not few else "black", linewidth=2.4, label=mean
        )
    axes.set(
        xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal"
    )
    if labels:
        axes.legend(loc="lower right", fontsize=8, frameon=False, title="AUROC")
    hidden = [name for name in report["labels"] if name not in labels]
    _name_hidden(figure, hidden, f"fewer than {FEWEST_PATIENTS} positive or negative patients")
    write_png(figure, path, _DPI)


def reliability_figure(path: Path, table: pd.DataFrame, title: str) -> None:
    """Observed share of positives over predicted probability, with the number of predictions below.

    Args:
        path: the PNG to make.
        table: of `calibration_table`.
        title: of the picture.
    """
    figure = _empty((4.8, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    figure.suptitle(title, fontsize=11)
    _diagonal(upper)
    upper.plot(table["predicted"], table["observed"], "o-", color=BLUE, linewidth=1.6)
    upper.set(ylabel="observed share", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    lower.bar(table["predicted"], table["samples"], width=0.05, color=BLUE)
    lower.set(xlabel="calibrated probability", ylabel="predictions")
    _plain(upper, lower)
    _remark(figure, f"bins of fewer than {FEWEST_PATIENTS} patients are not drawn")
    write_png(figure, path, _DPI)


def dice_figure(path: Path, rows: pd.DataFrame, regions: Sequence[str], title: str) -> None:
    """Boxes of the Dice coefficient by region: quartiles, and whiskers to the 5th and 95th percentile.

    Args:
        path: the PNG to make.
        rows: test rows of a segmentation table.
        regions: names of those to draw.
        title: of the picture.
    """
    names = columns(rows, DICE)
    figure, axes = _new(title, (1.4 + 1.4 * len(names), 4.2))
    axes.set(ylabel="Dice coefficient", ylim=(0, 1.02))
    if regions:
        _boxes(axes, rows, regions)
    else:
        axes.set_axis_off()
    _name_hidden(
        figure, [name for name in names if name not in regions], f"fewer than {FEWEST_PATIENTS} patients"
    )
    write_png(figure, path, _DPI)


def _boxes(axes: Axes, rows: pd.DataFrame, regions: Sequence[str]) -> None:
    values = [floats(rows, DICE + name) for name in regions]
    boxes = axes.boxplot(
        [one[np.isfinite(one)] for one in values],
        tick_labels=[name.replace("_", "\n") for name in regions],
        widths=0.5,
        whis=(5, 95),
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        medianprops={"color": "black"},
        meanprops={"marker": "D", "markerfacecolor": ORANGE, "markeredgecolor": ORANGE, "markersize": 5},
    )
    for box in boxes["boxes"]:
        box.set(facecolor="#cfe3f1", edgecolor=BLUE)
    axes.legend([boxes["means"][0]], ["mean"], fontsize=8, frameon=False, loc="lower right")


def ensemble_figure(path: Path, report: Mapping[str, Any], names: Mapping[str, str], title: str) -> None:
    """Mean AUROC over diseases of each method with its interval, beside the ceiling.

    Args:
        path: the PNG to make.
        report: what `ensemble_report` found.
        names: of the methods, as people call them.
        title: of the picture.
    """
    methods = list(report["mean"])
    figure, axes = _new(title, (6.4, 1.4 + 0.5 * len(methods)))
    for place, method in enumerate(methods):
        one = report["mean"][method]
        value, low, high = (_or_nan(one["auroc"][key]) for key in ("value", "low", "high"))
        colour = ORANGE if method == report["reported"] else BLUE
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([value], [place], "o", color=colour, markersize=7)
        if one["ceiling"] is not None:
            axes.plot([one["ceiling"]] * 2, [place - 0.32, place + 0.32], color="black", linewidth=2)
    axes.plot([], [], "o-", color=BLUE, label="measured, with its interval")
    axes.plot([], [], "o-", color=ORANGE, label="reported as the ensemble")
    if any(one["ceiling"] is not None for one in report["mean"].values()):
        axes.plot([], [], color="black", linewidth=2, label="best anyone could reach")
    axes.set_yticks(range(len(methods)), [names.get(method, method) for method in methods])
    axes.invert_yaxis()
    axes.set(xlabel="mean AUROC over diseases, test patients")
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
    write_png(figure, path, _DPI)


def _new(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = _empty(size)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    _plain(axes)
    return figure, axes


def _empty(size: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(*places: Axes) -> None:
    for axes in places:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)


def _name_hidden(figure: Figure, names: Sequence[str], why: str) -> None:
    """Say which curves are not there, and why."""
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        _remark(figure, f"not drawn, {why}: {', '.join(names[:_NAMED])}{more}")


def _remark(figure: Figure, text: str) -> None:
    """A line below the picture, as long as the picture is wide."""
    figure.supxlabel(textwrap.fill(text, int(14 * figure.get_figwidth())), fontsize=8, color="#555555")


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
