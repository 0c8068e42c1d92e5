"""Writes what was found: JSON for programs, tables for `dvc plots`, figures and the report for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore import durable
from radfuse.engine.agreement import ENSEMBLE
from radfuse.engine.evaluation import curves, figures
from radfuse.engine.evaluation.summary import method_name, metrics
from radfuse.engine.tables import DICE, columns

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.evaluation.results import Results
    from radfuse.engine.places import Places


def write_results(places: Places, results: Results) -> dict[str, list[Path]]:
    """Write everything but the report's page.

    Returns:
        The figures of each modality, and of ``ensemble``.
    """
    _write_json(places.metrics, metrics(results))
    drawn = {}
    for name, report in results.modalities.items():
        _write_json(places.report(name), report)
        segments = report["task"] == "segmentation"
        draw = _segmentation if segments else _classification
        drawn[name] = draw(places, name, report, results.tables[name])
    if results.ensemble is not None:
        _write_json(places.report(ENSEMBLE), results.ensemble)
        if results.ensemble["status"] == "fitted":
            drawn[ENSEMBLE] = _ensemble(places, results.ensemble)
    return drawn


def _classification(places: Places, name: str, report: Mapping[str, Any], rows: pd.DataFrame) -> list[Path]:
    roc, calibration = curves.roc_table(rows), curves.calibration_table(rows)
    _write_csv(places.plots / f"{name}_roc.csv", roc)
    _write_csv(places.plots / f"{name}_calibration.csv", calibration)
    paths = [places.figures / f"{name}_roc.png", places.figures / f"{name}_reliability.png"]
    figures.roc_figure(paths[0], roc, report, f"{name}: ROC, test patients")
    figures.reliability_figure(paths[1], calibration, f"{name}: reliability, test patients")
    return paths


def _segmentation(places: Places, name: str, report: Mapping[str, Any], rows: pd.DataFrame) -> list[Path]:
    _write_csv(places.plots / f"{name}_dice.csv", curves.dice_table(rows))
    path = places.figures / f"{name}_dice.png"
    figures.dice_figure(path, rows, columns(rows, DICE), f"{name}: Dice, test patients")
    return [path]


def _ensemble(places: Places, report: Mapping[str, Any]) -> list[Path]:
    _write_csv(places.plots / "ensemble.csv", curves.ensemble_table(report))
    path = places.figures / "ensemble.png"
    names = {method: method_name(method) for method in report["mean"]}
    figures.ensemble_figure(path, report, names, "Ensemble beside single modalities")
    return [path]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    durable.make_folder(path.parent)
    durable.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    durable.make_folder(path.parent)
    durable.write_text(path, table.to_csv(index=False, lineterminator="\n"))
