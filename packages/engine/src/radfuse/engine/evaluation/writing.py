"""Writes what was found: JSON for programs, tables for `dvc plots`, figures and the report for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore import durable
from radfuse.engine.agreement import ENSEMBLE, read_json
from radfuse.engine.evaluation import curves, figures
from radfuse.engine.evaluation.summary import method_name, metrics
from radfuse.engine.tables import DICE, LABEL

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.evaluation.results import Results
    from radfuse.engine.places import Places

HISTORY = "training_history.json"
"""What a training publishes beside its best checkpoint."""


REPORT, SUMMARY = "report.html", "summary.txt"
"""What people read, in the folder of the reports."""


def withdraw(places: Places) -> None:
    """Remove what sums the results up: none of it must stand beside figures of another evaluation."""
    for path in (places.metrics, places.reports / SUMMARY, places.reports / REPORT):
        durable.remove(path)


def write_results(places: Places, results: Results) -> dict[str, list[Path]]:
    """Write the figures of each model, its tables and its pictures.

    The plots that dvc.yaml names are written whatever there is to show, if need be without a row: DVC has no
    plots of which a part may be missing.

    Returns:
        The figures of each modality, and of ``ensemble``.
    """
    drawn = {}
    for name, report in results.modalities.items():
        _write_json(places.report(name), report)
        _training(places, name)
        segments = report["task"] == "segmentation"
        draw = _segmentation if segments else _classification
        drawn[name] = draw(places, name, report, results.tables[name])
    if results.ensemble is not None:
        _write_json(places.report(ENSEMBLE), results.ensemble)
        _write_csv(places.plots / "ensemble.csv", curves.ensemble_table(results.ensemble))
        if results.ensemble["status"] == "fitted":
            drawn[ENSEMBLE] = _ensemble(places, results.ensemble)
    return drawn


def write_metrics(places: Places, results: Results) -> None:
    """Write what `dvc metrics` shows; last of all, so that whoever finds it finds everything else."""
    _write_json(places.metrics, metrics(results))


def _classification(places: Places, name: str, report: Mapping[str, Any], rows: pd.DataFrame) -> list[Path]:
    roc, calibration = curves.roc_table(rows), curves.calibration_table(rows)
    _write_csv(places.plots / f"{name}_roc.csv", roc)
    _write_curves(places.plots / f"{name}_roc", roc, curves.FALSE_POSITIVES, "sensitivity", LABEL)
    _write_csv(places.plots / f"{name}_calibration.csv", calibration)
    paths = [places.figures / f"{name}_roc.png", places.figures / f"{name}_reliability.png"]
    figures.roc_figure(paths[0], roc, report, f"{name}: ROC, test patients")
    figures.reliability_figure(paths[1], calibration, f"{name}: reliability, test patients")
    return paths


def _segmentation(places: Places, name: str, report: Mapping[str, Any], rows: pd.DataFrame) -> list[Path]:
    table = curves.dice_table(rows)
    _write_csv(places.plots / f"{name}_dice.csv", table)
    _write_curves(places.plots / f"{name}_dice", table, curves.QUANTILE, "dice", DICE)
    path = places.figures / f"{name}_dice.png"
    figures.dice_figure(path, rows, curves.drawn_regions(rows), f"{name}: Dice, test patients")
    return [path]


def _ensemble(places: Places, report: Mapping[str, Any]) -> list[Path]:
    path = places.figures / "ensemble.png"
    names = {method: method_name(method) for method in report["mean"]}
    figures.ensemble_figure(path, report, names, "Ensemble beside single modalities")
    return [path]


def _training(places: Places, name: str) -> None:
    """The learning curves of the published model; one that was copied in may be without its history."""
    history = places.saved_models(name) / HISTORY
    if history.is_file():
        _write_csv(places.plots / f"{name}_training.csv", curves.training_table(read_json(history)))


def _write_curves(folder: Path, table: pd.DataFrame, x: str, y: str, prefix: str) -> None:
    """One table a curve: a plot of DVC needs to know columns by name, and what the labels are it cannot know.

    Args:
        folder: that gets them; whatever curves it had go.
        table: a column for each curve, and one that they share.
        x: the one that they share.
        y: what the curves show.
        prefix: of the columns of labels or regions, which names of files do without.
    """
    for old in folder.glob("*.csv"):
        durable.remove(old)
    names = [name for name in table.columns if name != x]
    for name, file in zip(names, _file_names([name.removeprefix(prefix) for name in names]), strict=True):
        _write_csv(folder / f"{file}.csv", table[[x, name]].rename(columns={name: y}).dropna())


def _file_names(labels: Sequence[str]) -> Iterator[str]:
    """The labels as names of files, each another one."""
    taken: set[str] = set()
    for label in labels:
        plain = re.sub(r"[^\w.-]+", "_", label).lstrip(".") or "_"
        place = 1
        name = plain
        # Case aside, too: not every file system tells it.
        while name.lower() in taken:
            place += 1
            name = f"{plain}_{place}"
        taken.add(name.lower())
        yield name


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    durable.make_folder(path.parent)
    durable.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    durable.make_folder(path.parent)
    durable.write_text(path, table.to_csv(index=False, lineterminator="\n"))
