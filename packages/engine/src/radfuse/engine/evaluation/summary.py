"""The few figures that sum a pipeline up: one line each, for the terminal, the report and `dvc metrics`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from radfuse.engine.evaluation.classification import FIGURES
from radfuse.engine.evaluation.ensemble import META, METHODS, WEIGHTED_AVERAGE
from radfuse.engine.evaluation.results import TWINS, Results

_METHOD_NAMES = {WEIGHTED_AVERAGE: "weighted average", META: "meta-learner"}
_DIGITS = 6


@dataclass(frozen=True)
class Line:
    """One result.

    Attributes:
        model: whose.
        figure: what was measured.
        interval: value, low and high; None for what is not defined.
        patients: how many it was measured on.
        ceiling: the best anyone could reach; None where nobody knows.
        emphasis: whether it is what to look at first.
    """

    model: str
    figure: str
    interval: Mapping[str, float | None]
    patients: int
    ceiling: float | None = None
    emphasis: bool = False


def method_name(method: str) -> str:
    """A way to fuse, or a modality alone, as people call it."""
    return _METHOD_NAMES.get(method, f"{method} alone")


def summary(results: Results) -> list[Line]:
    """The results of all models, each modality's first, then the ensemble's."""
    lines: list[Line] = []
    for name, report in results.modalities.items():
        lines += (
            _segmentation(name, report) if report["task"] == "segmentation" else _classification(name, report)
        )
    if results.ensemble is not None and results.ensemble["status"] == "fitted":
        lines += _ensemble(results.ensemble)
    return lines


def leaks(results: Results) -> list[str]:
    """A line for each modality of which one image is in several splits: its figures may be too good."""
    return [
        f"LEAK? {name}: {report[TWINS]} prepared images are in more than one split, under other patients, so "
        f"its figures may be too good; `radfuse prepare {name}` names the images."
        for name, report in results.modalities.items()
        if report.get(TWINS)
    ]


def metrics(results: Results) -> dict[str, Any]:
    """The figures that `dvc metrics` shows; what is not defined is left out."""
    found: dict[str, Any] = {}
    for name, report in results.modalities.items():
        counts = {"patients": report["patients"], "samples": report["samples"]}
        if report["task"] == "segmentation":
            regions = {region: one["dice"]["value"] for region, one in report["regions"].items()}
            # A region may be called "low"; the mean's own numbers stand.
            mean = _numbers(report["mean"]["dice"])
            found[name] = {**counts, "dice": {**mean, **regions, **mean}}
        else:
            means = {figure: _numbers(report["mean"][figure]) for figure in FIGURES}
            found[name] = {**counts, **means}
    if results.ensemble is not None:
        found["ensemble"] = _ensemble_metrics(results.ensemble)
    return dict(_defined(found))


def _classification(name: str, report: Mapping[str, Any]) -> Iterator[Line]:
    labels = report["mean"]["over"]
    what = f"AUROC, {labels[0]}" if len(labels) == 1 else f"mean AUROC, {len(labels)} labels"
    yield Line(name, what, report["mean"]["auroc"], report["patients"], report["mean"]["ceiling"], True)


def _segmentation(name: str, report: Mapping[str, Any]) -> Iterator[Line]:
    for region, one in report["regions"].items():
        yield Line(name, f"Dice, {region.replace('_', ' ')}", one["dice"], report["patients"])
    yield Line(name, "mean Dice", report["mean"]["dice"], report["patients"], emphasis=True)


def _ensemble(report: Mapping[str, Any]) -> Iterator[Line]:
    what = f"mean AUROC, {len(report['diseases'])} diseases"
    for method, one in report["mean"].items():
        chosen = method == report["reported"]
        model = f"ensemble: {method_name(method)}" if method in METHODS else method_name(method)
        yield Line(model, what, one["auroc"], one["patients"], one["ceiling"], chosen)
    gain = report["gain"]
    yield Line(
        "ensemble", f"gain over {gain['against']} alone", gain["auroc"], gain["patients"], emphasis=True
    )


def _ensemble_metrics(report: Mapping[str, Any]) -> dict[str, Any]:
    if report["status"] != "fitted":
        return {"fitted": 0}
    return {
        "fitted": 1,
        "patients": report["patients"],
        "auroc": {**_numbers(report["mean"][report["reported"]]["auroc"])},
        "by_method": {method: one["auroc"]["value"] for method, one in report["mean"].items()},
        "gain": _numbers(report["gain"]["auroc"]),
    }


def _numbers(interval: Mapping[str, float | None]) -> dict[str, float | None]:
    return {"mean": interval["value"], "low": interval["low"], "high": interval["high"]}


def _defined(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            inside = dict(_defined(value))
            if inside:
                yield key, inside
        elif value is not None:
            yield key, round(value, _DIGITS) if isinstance(value, float) else value
