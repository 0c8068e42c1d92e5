"""A number of the CSV against the model: the whole way from the file to the report."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pipelines import Pipeline, write_png
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from radfuse.engine import cohort
from radfuse.engine.cli import run
from radfuse.engine.keys import PUBLIC

SPLITS = ("train", "val", "calibration", "test")


def listed_nodules(root: Path) -> pd.DataFrame:
    """160 patients with one nodule or two; of every tenth nodule the size is not known."""
    random = np.random.default_rng(3)
    patients = np.arange(160).repeat(np.where(np.arange(160) % 5 == 0, 2, 1))
    malignant = random.integers(0, 2, len(patients))
    size = (6 + 3 * malignant + 3 * random.normal(size=len(patients))).round(2)
    listed = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(len(patients))],
            "patient_id": [f"P{number}" for number in patients],
            "malignant": malignant,
            "diameter_mm": [f"{mm}" if place % 10 else "" for place, mm in enumerate(size)],
            "fold": [SPLITS[number % 4] for number in patients],
        }
    )
    for name in listed["path"]:
        write_png(root / name, size=4)
    listed.to_csv(root / "nodules.csv", index=False)
    return listed


def write_predictions_of_a_model(pipeline: Pipeline) -> pd.DataFrame:
    """What a model that knows a little says of every sample of the cohort."""
    from simulated_pipeline import write_model, write_predictions

    samples = cohort.read(pipeline.places)
    truth = samples["label:malignant"]
    logit = 1.5 * truth - 0.7 + np.random.default_rng(4).normal(size=len(samples))
    rows = samples[["patient_id", "study_id", "sample_id", "split", "label:malignant"]].assign(
        **{"logit:malignant": logit, "probability:malignant": expit(logit)}
    )
    write_model(pipeline.places, "ct")
    write_predictions(pipeline.places, "ct", rows, cohort.read_stamp(pipeline.places)["digest"])
    return rows


def test_number_of_the_csv_stands_beside_the_model_on_the_same_test_patients(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "evaluation")
    listed = listed_nodules(pipeline.root / "raw")
    pipeline.sources(
        {
            "kind": "table", "root": "raw", "modality": "ct", "csv": "nodules.csv", "public": True,
            "labels": ["malignant"], "references": ["diameter_mm"], "split": "fold",
        },
        evaluate={"bootstrap": 50},
    )  # fmt: skip
    pipeline.cohort()
    rows = write_predictions_of_a_model(pipeline)
    assert run(["evaluate", "--params", str(pipeline.file)]) == 0
    listed["sample_id"] = [PUBLIC.sample("table", "ct", path) for path in listed["path"]]
    listed["diameter_mm"] = pd.to_numeric(listed["diameter_mm"])
    both = rows.merge(listed, on="sample_id")
    both = both[(both["fold"] == "test") & both["diameter_mm"].notna()]
    assert 30 < len(both) < (listed["fold"] == "test").sum()
    found = json.loads(pipeline.places.report("ct").read_text())["references"]["diameter_mm"]["malignant"]
    size = roc_auc_score(both["malignant"], both["diameter_mm"])
    model = roc_auc_score(both["malignant"], both["logit:malignant"])
    assert found["reference"]["value"] == pytest.approx(size)
    assert found["model"]["value"] == pytest.approx(model)
    assert found["difference"]["value"] == pytest.approx(model - size)
    assert found["difference"]["low"] < model - size < found["difference"]["high"]
    assert "Against diameter mm alone" in (pipeline.places.reports / "report.html").read_text()
