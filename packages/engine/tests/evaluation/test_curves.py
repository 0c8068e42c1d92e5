"""Curves as tables and figures: names that collide, and patients who are too few to be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_pipeline import write_predictions

from radfuse.engine import predictions
from radfuse.engine.cli import run
from radfuse.engine.drawing import write_png
from radfuse.engine.evaluation import curves, figures
from radfuse.engine.evaluation.results import Results
from radfuse.engine.evaluation.summary import metrics
from radfuse.engine.places import Places


def labelled(patients: int, **labels: Any) -> pd.DataFrame:
    """A row a patient with labels that are all told rightly."""
    rows = pd.DataFrame({"patient_id": [f"p{number:012x}" for number in range(patients)]})
    for name, truth in labels.items():
        rows[f"label:{name}"] = np.asarray(truth, dtype=float)
        rows[f"calibrated:{name}"] = 0.1 + 0.8 * np.asarray(truth, dtype=float)
    return rows


def positives(count: int, patients: int = 20) -> list[int]:
    return [1] * count + [0] * (patients - count)


def test_labels_that_are_called_as_other_columns_keep_curves_of_their_own() -> None:
    rows = labelled(20, mean=positives(10), false_positive_rate=positives(9))
    rows["calibrated:false_positive_rate"] = 0.5
    table = curves.roc_table(rows)
    assert list(table.columns) == [
        "false_positive_rate", "mean", "label:mean", "label:false_positive_rate",
    ]  # fmt: skip
    assert table["false_positive_rate"].tolist() == pytest.approx(np.linspace(0, 1, 101))
    assert (table["label:mean"] == 1).all()
    assert table["mean"].tolist() == pytest.approx([0.5] * 100 + [1])


def test_regions_that_are_called_as_other_columns_keep_curves_of_their_own() -> None:
    rows = labelled(20).assign(**{"dice:quantile": 0.7, "dice:dice": 0.2})
    table = curves.dice_table(rows)
    assert table["quantile"].tolist() == pytest.approx(np.linspace(0, 1, 21))
    assert (table["dice:quantile"] == 0.7).all() and (table["dice:dice"] == 0.2).all()


def test_a_region_that_is_called_low_leaves_the_bounds_of_the_mean() -> None:
    region = {"dice": {"value": 0.1}}
    report = {
        "task": "segmentation", "patients": 9, "samples": 9, "regions": {"low": region, "core": region},
        "mean": {"dice": {"value": 0.5, "low": 0.4, "high": 0.6}},
    }  # fmt: skip
    found = metrics(Results({"mri": report}, None, {}))
    assert found["mri"]["dice"] == {"mean": 0.5, "low": 0.4, "high": 0.6, "core": 0.1}


def renamed(places: Places, modality: str, old: str, new: str) -> None:
    rows = predictions.read(places.predictions(modality))[0].filter(regex="^(?!calibrated)")
    write_predictions(places, modality, rows.rename(columns=lambda name: name.replace(f":{old}", f":{new}")))


def test_labels_that_are_called_as_other_columns_are_in_files_of_their_own(places: Places) -> None:
    renamed(places, "xray", "Mass", "mean")
    renamed(places, "xray", "Edema", "sensitivity")
    renamed(places, "mri", "tumour_core", "quantile")
    assert run(["evaluate", "--params", str(places.root / "params.yaml")]) == 0
    table = pd.read_csv(places.plots / "xray_roc.csv")
    for file, column in (("mean", "mean"), ("mean_2", "label:mean"), ("sensitivity", "label:sensitivity")):
        one = pd.read_csv(places.plots / "xray_roc" / f"{file}.csv")
        assert list(one.columns) == ["false_positive_rate", "sensitivity"]
        assert one["sensitivity"].tolist() == table[column].tolist()
    one = pd.read_csv(places.plots / "mri_dice" / "quantile.csv")
    assert one["quantile"].tolist() == pytest.approx(np.linspace(0, 1, 21))
    assert one["dice"].tolist() == pd.read_csv(places.plots / "mri_dice.csv")["dice:quantile"].tolist()


def test_a_curve_of_few_positive_or_negative_patients_is_not_drawn() -> None:
    table = curves.roc_table(labelled(20, many=positives(5), few=positives(4), most=positives(16)))
    assert list(table.columns) == ["false_positive_rate", "mean", "label:many"]
    assert table["mean"].tolist() == table["label:many"].tolist()


def test_images_of_one_patient_do_not_make_up_for_others() -> None:
    rows = labelled(20, few=positives(8))
    rows.loc[:7, "patient_id"] = rows["patient_id"][0]
    table = curves.roc_table(rows)
    assert list(table.columns) == ["false_positive_rate", "mean"]
    assert table.empty


def test_a_bin_of_few_patients_is_left_out_whatever_the_number_of_labels() -> None:
    names = {f"label{number}": positives(1) for number in range(6)}
    table = curves.calibration_table(labelled(20, **names))
    assert table["samples"].tolist() == [6 * 19]
    assert table["predicted"].tolist() == pytest.approx([0.1])


def test_dice_of_few_patients_is_not_drawn() -> None:
    rows = labelled(6).assign(**{"dice:whole": 0.8, "dice:core": [0.1, 0.2, 0.3, 0.4, np.nan, np.nan]})
    table = curves.dice_table(rows)
    assert (table["dice:whole"] == 0.8).all()
    assert table["dice:core"].isna().all()
    assert curves.drawn_regions(rows) == ["whole"]


@pytest.fixture
def remarks(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What figures say below themselves, by their name."""
    said: dict[str, str] = {}

    def note(figure: Any, path: Path, dpi: int) -> None:
        said[path.stem] = " ".join(figure.get_supxlabel().split())
        write_png(figure, path, dpi)

    monkeypatch.setattr(figures, "write_png", note)
    return said


def test_a_pipeline_of_one_test_patient_shows_figures_without_curves_and_intervals(
    places: Places, remarks: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    everyone = pd.read_parquet(places.patients)
    tested = everyone.loc[everyone["split"] == "test", "patient_id"]
    for name in ("ct", "mri", "xray"):
        rows = predictions.read(places.predictions(name))[0].filter(regex="^(?!calibrated)")
        one = sorted(set(rows["patient_id"]) & set(tested))[:1]
        write_predictions(places, name, rows[~rows["patient_id"].isin(tested) | rows["patient_id"].isin(one)])
    assert run(["evaluate", "--params", str(places.root / "params.yaml")]) == 0
    assert "mean Dice" in capsys.readouterr().out
    found = json.loads(places.report("mri").read_text())
    dice = found["regions"]["tumour_core"]["dice"]
    assert dice["value"] is not None and dice["low"] is None and dice["high"] is None
    assert set(json.loads(places.metrics.read_text())["mri"]["dice"]) >= {"mean", "tumour_core"}
    for file in ("xray_roc/mean.csv", "mri_dice/tumour_core.csv", "xray_calibration.csv", "ct_roc.csv"):
        assert pd.read_csv(places.plots / file).empty, file
    assert list(pd.read_csv(places.plots / "mri_dice" / "tumour_core.csv").columns) == ["quantile", "dice"]
    assert remarks["mri_dice"].startswith("not drawn, fewer than 5 patients: whole_tumour, tumour_core")
    assert remarks["xray_roc"].startswith("not drawn, fewer than 5 positive or negative patients: Mass")
    assert remarks["xray_reliability"] == "bins of fewer than 5 patients are not drawn"


def test_a_figure_names_the_labels_that_it_does_not_draw(places: Places, remarks: dict[str, str]) -> None:
    rows = predictions.read(places.predictions("xray"))[0].filter(regex="^(?!calibrated)")
    tested = rows.index[rows["split"] == "test"]
    rows.loc[tested, "label:Hernia"] = 0.0
    rows.loc[tested[:2], "label:Hernia"] = 1.0
    write_predictions(places, "xray", rows)
    assert run(["evaluate", "--params", str(places.root / "params.yaml")]) == 0
    assert remarks["xray_roc"] == "not drawn, fewer than 5 positive or negative patients: Hernia"
    assert remarks["mri_dice"] == ""
    assert not (places.plots / "xray_roc" / "Hernia.csv").exists()
