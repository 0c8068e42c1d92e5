from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from killed_stage import check_nothing_is_left, command
from simulated_pipeline import pipeline, write_model, write_predictions
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ckptcore import durable
from radfuse.engine import predictions
from radfuse.engine import report as report_page
from radfuse.engine.cli import output, run
from radfuse.engine.errors import StaleError
from radfuse.engine.evaluation import figures
from radfuse.engine.evaluation.results import check_diseases
from radfuse.engine.places import Places

ID = re.compile(r"\b[psi][0-9a-f]{12}\b")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A pipeline of three modalities and no ensemble, evaluated."""
    places = pipeline(tmp_path_factory.mktemp("evaluated") / "pipeline", 400)
    assert evaluate(places) == 0
    return places


def evaluate(places: Places, *arguments: str) -> int:
    return run(["evaluate", "--params", str(places.root / "params.yaml"), *arguments])


def report(places: Places, name: str) -> Any:
    return json.loads(places.report(name).read_text())


def rows_of(places: Places, modality: str) -> pd.DataFrame:
    frame = predictions.read(places.predictions(modality))[0]
    return frame[frame["split"] == "test"]


def test_the_figures_of_a_label_are_scikit_learns_on_the_test_rows(evaluated: Places) -> None:
    rows, found = rows_of(evaluated, "xray"), report(evaluated, "xray")["labels"]["Mass"]
    truth, probability = rows["label:Mass"], rows["calibrated:Mass"]
    assert found["samples"] == len(rows)
    assert found["positives"] == truth.sum()
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(truth, probability))
    assert found["average_precision"]["value"] == pytest.approx(average_precision_score(truth, probability))
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(truth, probability))
    assert found["auroc"]["low"] < found["auroc"]["value"] < found["auroc"]["high"]


def test_thresholds_come_from_the_calibration_and_not_from_test(evaluated: Places) -> None:
    fitted = json.loads(evaluated.calibration("xray").read_text())["labels"]["Mass"]["threshold"]
    found, rows = report(evaluated, "xray")["labels"]["Mass"], rows_of(evaluated, "xray")
    called = rows["calibrated:Mass"] >= fitted
    assert found["threshold"] == fitted
    assert found["sensitivity"]["value"] == pytest.approx(called[rows["label:Mass"] == 1].mean())
    assert found["specificity"]["value"] == pytest.approx(1 - called[rows["label:Mass"] == 0].mean())


def test_calibration_makes_shifted_probabilities_honest(evaluated: Places) -> None:
    found = report(evaluated, "xray")["labels"]["Mass"]
    assert found["brier"]["value"] < found["uncalibrated"]["brier"]["value"]


def test_dice_and_volume_errors_are_those_of_the_table(evaluated: Places) -> None:
    rows, found = rows_of(evaluated, "mri"), report(evaluated, "mri")
    one = found["regions"]["tumour_core"]
    error = (rows["volume_mm3:tumour_core"] - rows["true_volume_mm3:tumour_core"]) / 1000
    assert one["dice"]["value"] == pytest.approx(rows["dice:tumour_core"].mean())
    assert one["dice_quartiles"]["median"] == pytest.approx(rows["dice:tumour_core"].median())
    assert one["volume_error_ml"]["value"] == pytest.approx(error.mean())
    assert one["absolute_volume_error_ml"]["value"] == pytest.approx(error.abs().mean())
    mean = np.mean([found["regions"][name]["dice"]["value"] for name in found["mean"]["over"]])
    assert found["mean"]["dice"]["value"] == pytest.approx(mean)


def test_row_1_6_images_are_pooled_to_patients_before_figures_are_taken(evaluated: Places) -> None:
    rows, found = rows_of(evaluated, "ct"), report(evaluated, "ct")["patient_level"]
    grouped = rows.groupby("patient_id")
    truth, highest = grouped["label:malignant"].max(), grouped["calibrated:malignant"].max()
    assert set(found) == {"mean", "max", "noisy_or"}
    assert found["max"]["patients"] == len(truth)
    assert found["max"]["mean"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, highest))


def test_ceilings_stand_beside_the_results(evaluated: Places) -> None:
    assert report(evaluated, "xray")["labels"]["Mass"]["ceiling"] == 0.84
    assert report(evaluated, "ct")["mean"]["ceiling"] == 0.84
    assert report(evaluated, "mri")["mean"]["ceiling"] is None


def test_metrics_are_small_nested_numbers_for_dvc(evaluated: Places) -> None:
    found = json.loads(evaluated.metrics.read_text())
    assert set(found) == {"ct", "mri", "xray"}
    assert set(found["xray"]["auroc"]) == {"mean", "low", "high"}
    assert found["mri"]["dice"]["mean"] == round(report(evaluated, "mri")["mean"]["dice"]["value"], 6)
    assert evaluated.metrics.stat().st_size < 10_000

    def leaves(value: Any) -> list[Any]:
        return (
            [one for part in value.values() for one in leaves(part)] if isinstance(value, dict) else [value]
        )

    assert all(isinstance(one, (int, float)) for one in leaves(found))


def test_the_same_tables_give_the_same_bytes(evaluated: Places) -> None:
    def contents() -> dict[str, bytes]:
        files = [path for path in evaluated.reports.rglob("*") if path.is_file()]
        return {str(path.relative_to(evaluated.reports)): path.read_bytes() for path in files}

    before = contents()
    assert evaluate(evaluated) == 0
    assert contents() == before


def test_the_page_needs_nothing_but_itself(evaluated: Places) -> None:
    page = (evaluated.reports / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", page)
    assert all(one.startswith(("data:image/png;base64,", "#")) for one in sources)
    assert "@import" not in page and "url(" not in page
    assert len([one for one in sources if one.startswith("data:")]) == 5


def test_plots_are_tables_that_dvc_reads(evaluated: Places) -> None:
    with open(evaluated.plots / "xray_roc.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 101
    assert float(rows[-1]["mean"]) == 1.0
    assert {"ct_roc.csv", "ct_calibration.csv", "mri_dice.csv"} <= {
        path.name for path in evaluated.plots.iterdir()
    }


def test_no_output_tells_of_a_single_patient(evaluated: Places) -> None:
    for path in evaluated.reports.rglob("*"):
        if path.is_file():
            assert not ID.search(path.read_bytes().decode("latin-1")), path.name


def test_the_terminal_shows_results_intervals_and_ceilings(evaluated: Places, capsys: Any) -> None:
    assert evaluate(evaluated) == 0
    shown = capsys.readouterr().out
    assert "95% interval" in shown and "ceiling" in shown
    assert re.search(r"xray\s+│ mean AUROC, 5 labels\s+│\s+0\.\d{3} │ 0\.\d{3} to 0\.\d{3} │\s+0\.840", shown)
    assert str(evaluated.root) not in shown


def test_evaluation_never_imports_torch(evaluated: Places) -> None:
    """Whoever has the tables can compute the report again, on a machine without torch or a GPU."""
    code = (
        "import sys; from radfuse.engine.cli import run\n"
        f"code = run(['evaluate', '--params', {str(evaluated.root / 'params.yaml')!r}])\n"
        "heavy = {'torch', 'monai', 'mlflow', 'onnx'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_and_calibration_rows_change_no_figure(places: Places) -> None:
    evaluate(places)
    before = report(places, "mri")
    rows = predictions.read(places.predictions("mri"))[0]
    rows.loc[rows["split"] != "test", "dice:whole_tumour"] = 0.0
    write_predictions(places, "mri", rows)
    evaluate(places)
    assert report(places, "mri") == before


def test_groups_of_fewer_than_five_patients_are_named_and_nothing_else(places: Places) -> None:
    cohort = pd.read_parquet(places.cohort)
    tested = cohort.loc[cohort["split"] == "test", "patient_id"].unique()
    cohort.loc[cohort["patient_id"].isin(tested[:3]), "site"] = "tiny"
    cohort.to_parquet(places.cohort)
    evaluate(places)
    groups = {one["group"]: one for one in report(places, "xray")["subgroups"]["site"]}
    assert groups["tiny"]["patients"] is None and groups["tiny"]["auroc"] is None
    hidden = [name for name, one in groups.items() if one["patients"] is None]
    assert len(hidden) == 2, "a second group is hidden, or the first's size followed from the total"


def test_a_reference_of_the_cohort_is_compared_on_the_same_rows(places: Places) -> None:
    cohort = pd.read_parquet(places.cohort)
    labels = predictions.read(places.predictions("ct"))[0].set_index("sample_id")["label:malignant"]
    size = cohort["sample_id"].map(labels) + np.random.default_rng(0).normal(size=len(cohort))
    cohort.assign(**{"reference:nodule_size": size}).to_parquet(places.cohort)
    evaluate(places)
    found = report(places, "ct")["references"]["nodule_size"]["malignant"]
    difference = found["model"]["value"] - found["reference"]["value"]
    assert found["difference"]["value"] == pytest.approx(difference)
    assert found["difference"]["low"] < difference < found["difference"]["high"]
    assert "nodule size" in (places.reports / "report.html").read_text()


def test_a_label_without_positives_among_the_test_patients_has_no_auroc(places: Places) -> None:
    rows = predictions.read(places.predictions("xray"))[0].filter(regex="^(?!calibrated)")
    rows.loc[rows["split"] == "test", "label:Hernia"] = 0.0
    write_predictions(places, "xray", rows)
    assert evaluate(places) == 0
    found = report(places, "xray")
    assert found["labels"]["Hernia"]["auroc"]["value"] is None
    assert "Hernia" not in found["mean"]["over"]


def test_stale_predictions_are_refused_and_nothing_is_written(places: Places, capsys: Any) -> None:
    write_model(places, "xray", value=2.0)
    assert evaluate(places) == 1
    said = capsys.readouterr().err
    assert "stale" in said and "radfuse predict-split xray" in said
    assert not places.reports.exists()


@pytest.mark.parametrize("after", range(3))
def test_an_evaluation_that_was_stopped_leaves_no_figures_beside_those_of_an_earlier_one(
    places: Places, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    assert evaluate(places) == 0
    summed_up = [places.metrics, places.reports / "report.html", places.reports / "summary.txt"]
    assert all(path.is_file() for path in summed_up)
    rows = predictions.read(places.predictions("mri"))[0]
    rows["dice:whole_tumour"] = 0.0
    write_predictions(places, "mri", rows)
    stops = {0: (figures, "dice_figure"), 1: (report_page, "write_report"), 2: (output, "plain")}
    with monkeypatch.context() as patch:
        patch.setattr(*stops[after], stopped)
        assert evaluate(places) == 130
    assert not places.metrics.exists()
    assert [path.name for path in summed_up if path.exists()] == ["report.html"] * (after == 2)
    assert evaluate(places) == 0
    assert all(path.is_file() for path in summed_up)


def stopped(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_an_evaluation_that_was_killed_leaves_nothing_when_it_is_made_again(places: Places) -> None:
    assert evaluate(places) == 0
    names = ["ct_roc.png", "malignant.csv", "ct.json"]
    check_nothing_is_left(places.root, names, command("evaluate", places.root), lambda: evaluate(places))


def test_the_metrics_are_written_last(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    publish = durable.publish

    def note(temporary: Path, targets: list[Path]) -> None:
        names.extend(path.name for path in targets)
        publish(temporary, targets)

    monkeypatch.setattr(durable, "publish", note)
    assert evaluate(places) == 0
    assert names[-3:] == ["report.html", "summary.txt", "metrics.json"]


def test_images_in_several_splits_are_told_wherever_results_are(places: Places, capsys: Any) -> None:
    for name, count in {"xray": 3, "ct": 0}.items():
        frame, stamp = predictions.read(places.predictions(name))
        predictions.write(places.predictions(name), frame, replace(stamp, twins_across_splits=count))
    assert evaluate(places) == 0
    line = "LEAK? xray: 3 prepared images are in more than one split"
    told = (
        capsys.readouterr().out,
        (places.reports / "summary.txt").read_text(),
        (places.reports / "report.html").read_text(),
    )
    for text in told:
        assert text.count("LEAK?") == text.count(line) == 1
    assert report(places, "xray")["twins_across_splits"] == 3
    assert "twins_across_splits" not in report(places, "ct") | report(places, "mri")


def test_without_images_in_several_splits_nothing_is_said_of_any(evaluated: Places) -> None:
    for name in ("summary.txt", "report.html"):
        assert "LEAK?" not in (evaluated.reports / name).read_text()


def test_a_calibration_that_was_changed_by_hand_is_refused(places: Places, capsys: Any) -> None:
    path = places.calibration("xray")
    path.write_text(path.read_text().replace('"fitted_on": "', '"fitted_on":  "'))
    assert evaluate(places) == 1
    assert "xray.calibration.json" in capsys.readouterr().err


def test_a_modality_without_test_patients_says_what_to_do(places: Places, capsys: Any) -> None:
    rows = predictions.read(places.predictions("mri"))[0]
    write_predictions(places, "mri", rows[rows["split"] != "test"])
    assert evaluate(places) == 1
    assert "split.fractions.test" in capsys.readouterr().err


def test_an_ensemble_that_was_fitted_on_other_diseases_is_stale() -> None:
    known = pd.DataFrame({"patient_id": ["pa", "pb", "pc"], "disease:copd": [1.0, 0.0, np.nan]})
    rows = known.iloc[[2, 0]]
    check_diseases(rows, known)
    for now in (known.assign(**{"disease:copd": [0.0, 0.0, np.nan]}), known[["patient_id"]]):
        with pytest.raises(StaleError, match=r"disease:copd.*`radfuse ensemble`"):
            check_diseases(rows, now)
