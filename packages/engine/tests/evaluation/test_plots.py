"""What `dvc plots` and `dvc metrics` make of a report, in a git repository with stages of `radfuse init`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from simulated_pipeline import write_predictions

from radfuse.engine import predictions, scaffold
from radfuse.engine.cli import run
from radfuse.engine.evaluation import curves
from radfuse.engine.modality import modality
from radfuse.engine.places import Places

NAMES = ("xray", "ct", "mri")
SCORES = {"xray": "val_auc", "ct": "val_auc", "mri": "val_dice"}
ODD = {"Mass": "Mass / nodule", "Edema": "mass_nodule"}
"""A label that is no file name, and another that would get the same one."""


@pytest.fixture
def repository(places: Places, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Places:
    """An evaluated pipeline without an ensemble, committed once."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "nobody@example.org")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    for name in NAMES:
        history = {"train_loss": [0.5, 0.4], "val_loss": [0.6, None], SCORES[name]: [0.5, 0.6]}
        told = json.dumps({**history, "finished_at": [1.0, 2.0]})
        (places.saved_models(name) / "training_history.json").write_text(told)
    relabel(places)
    without_ensemble(places)
    evaluate(places)
    made = scaffold.dvc_yaml([modality(name) for name in NAMES], places.root)
    (places.root / "dvc.yaml").write_text(made)
    (places.root / ".gitignore").write_text("/data/\n/saved_models/\n")
    command(places, "git", "init", "--quiet")
    command(places, sys.executable, "-m", "dvc", "init", "--quiet")
    commit(places)
    return places


def relabel(places: Places) -> None:
    frame = predictions.read(places.predictions("xray"))[0].filter(regex="^(?!calibrated)")
    new = {name: name.replace(old, ODD[old]) for name in frame for old in ODD if name.endswith(f":{old}")}
    write_predictions(places, "xray", frame.rename(columns=new))


def without_ensemble(places: Places) -> None:
    stamps = {name: predictions.read_stamp(places.predictions(name)) for name in NAMES}
    inputs = {
        name: {"model_digest": one.model_digest, "split_digest": one.split_digest}
        for name, one in stamps.items()
    }
    folder = places.saved_models("ensemble")
    folder.mkdir(parents=True)
    told = {"status": "not_applicable", "why": "too few patients", "inputs": inputs}
    (folder / "weighted_average.json").write_text(json.dumps(told))


def evaluate(places: Places) -> None:
    assert run(["evaluate", "--params", str(places.root / "params.yaml")]) == 0


def commit(places: Places) -> None:
    command(places, "git", "add", "--all")
    command(places, "git", "commit", "--quiet", "--message", "evaluated")


def command(places: Places, *words: str) -> str:
    ran = subprocess.run(words, cwd=places.root, env=os.environ, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{' '.join(words)}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def dvc(places: Places, *words: str) -> Any:
    return json.loads(command(places, sys.executable, "-m", "dvc", *words, "--json"))


def drawn(shown: Any) -> dict[str, list[dict[str, Any]]]:
    """Points of every plot, by its name; none of them failed."""
    assert "errors" not in shown
    return {name: plot[0]["content"]["data"]["values"] for name, plot in shown["data"].items() if plot}


def test_dvc_draws_a_curve_for_every_label_region_and_training(repository: Places) -> None:
    found = drawn(dvc(repository, "plots", "show"))
    roc = {name.rpartition("/")[2] for name in found if "/xray_roc/" in name}
    assert roc == {
        "mean.csv", "Mass_nodule.csv", "mass_nodule_2.csv", "Effusion.csv", "Fibrosis.csv", "Hernia.csv",
    }  # fmt: skip
    point = found["reports/plots/xray_roc/Mass_nodule.csv"][-1]
    assert (float(point["false_positive_rate"]), float(point["sensitivity"])) == (1.0, 1.0)
    assert {f"reports/plots/mri_dice/{name}.csv" for name in ("whole_tumour", "tumour_core")} <= set(found)
    assert {"reports/plots/xray_calibration.csv", "reports/plots/ct_calibration.csv"} <= set(found)
    for name in NAMES:
        assert [float(one[SCORES[name]]) for one in found[f"{name} {SCORES[name]}"]] == [0.5, 0.6]
        assert {one["field"] for one in found[f"{name} loss"]} == {"train_loss", "val_loss"}


def test_dvc_writes_a_page_of_the_plots(repository: Places) -> None:
    command(repository, sys.executable, "-m", "dvc", "plots", "show")
    page = (repository.root / "dvc_plots" / "index.html").read_text()
    assert "Mass_nodule.csv" in page and "val_dice" in page


def test_dvc_compares_metrics_and_curves_of_two_commits(repository: Places) -> None:
    before = json.loads(repository.metrics.read_text())["xray"]["auroc"]["mean"]
    frame = predictions.read(repository.predictions("xray"))[0].filter(regex="^(?!calibrated)")
    frame["logit:Hernia"] *= -1
    frame["probability:Hernia"] = 1 - frame["probability:Hernia"]
    write_predictions(repository, "xray", frame)
    evaluate(repository)
    commit(repository)
    found = dvc(repository, "metrics", "diff", "HEAD~1", "HEAD")["reports/metrics.json"]["xray.auroc.mean"]
    assert found["old"] == before and found["diff"] < -0.05
    plots = drawn(dvc(repository, "plots", "diff", "HEAD~1", "HEAD"))
    assert {one["rev"] for one in plots["reports/plots/xray_roc/Hernia.csv"]} == {"HEAD~1", "HEAD"}


def test_curves_of_labels_that_are_gone_go(repository: Places) -> None:
    frame = predictions.read(repository.predictions("xray"))[0].filter(regex="^(?!calibrated|.*:Hernia$)")
    write_predictions(repository, "xray", frame)
    evaluate(repository)
    assert not (repository.plots / "xray_roc" / "Hernia.csv").exists()
    assert (repository.plots / "xray_roc" / "Effusion.csv").exists()


def test_the_ensembles_table_is_there_without_a_row_where_there_is_no_ensemble(repository: Places) -> None:
    assert pd.read_csv(repository.plots / "ensemble.csv").empty
    interval = {"value": 0.8, "low": 0.7, "high": 0.9}
    table = curves.ensemble_table({"mean": {"meta": {"auroc": interval, "ceiling": None}}})
    assert list(table.columns) == list(pd.read_csv(repository.plots / "ensemble.csv").columns)
