"""A lab's own pictures, as the README says: `radfuse init`, a table, `dvc repro`, in its own repository."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small_pipeline import Pipeline, change

SMALL = {
    "split.minimum_positives": 0,
    "prepare.xray.size": [32, 32],
    "train.xray.stages": [{"name": "all", "epochs": 1, "learning_rate": 1e-3}],
    "train.xray.batch_size": 8,
    "evaluate.bootstrap": 50,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A repository with pictures of 60 patients and the pipeline that `radfuse init` wrote, not run yet."""
    folder = tmp_path_factory.mktemp("lab")
    made = Pipeline(folder)
    made.run("git", "init", "--quiet")
    made.init_dvc()
    made.run(
        "radfuse", "init", "chest", "--source", "table", "--modality", "xray", "--root", str(folder / "raw")
    )
    random = np.random.default_rng(0)
    (folder / "raw").mkdir()
    rows = []
    for number in range(60):
        ill = number % 3 == 0
        picture = random.integers(0, 180, (40, 48)) + 60 * ill
        Image.fromarray(picture.astype(np.uint8)).save(folder / "raw" / f"{number}.png")
        split = ("train", "train", "val", "calibration", "test")[number // 3 % 5]
        rows.append([f"{number}.png", f"MRN-{number:06d}", int(ill), split])
    with open(folder / "raw" / "xray.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["path", "patient_id", "finding", "part"], *rows])
    params = yaml.safe_load((folder / "chest" / "params.yaml").read_text(encoding="utf-8"))
    for key, value in SMALL.items():
        change(params, key, value)
    # The key is new each time, and so would be a split by hash.
    params["sources"][0]["split"] = "part"
    change(params, "privacy.key_file", str(tmp_path_factory.mktemp("home") / "key"))
    (folder / "chest" / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return made


def test_a_pipeline_of_ones_own_runs_to_its_end_and_a_second_repro_runs_nothing(lab: Pipeline) -> None:
    lab.run("dvc", "repro", "chest/dvc.yaml")
    chest = lab.root / "chest"
    metrics = json.loads((chest / "reports" / "metrics.json").read_text(encoding="utf-8"))
    assert "xray" in metrics
    assert (chest / "saved_models" / "exports" / "xray_onnx.onnx").stat().st_size > 1_000_000
    card = json.loads((chest / "saved_models" / "exports" / "ensemble_onnx.json").read_text(encoding="utf-8"))
    assert card["status"] == "not_applicable"
    assert "Running stage" not in lab.run("dvc", "repro", "chest/dvc.yaml").stdout
    assert "xray" in lab.run("dvc", "plots", "show", "--json").stdout
    said = lab.run("git", "status", "--porcelain", "--untracked-files=all").stdout
    assert "MRN-" not in said and "identity" not in said and ".pth" not in said
    assert not [*Path(lab.root).glob("mlflow.db")], "nothing is written outside of the pipeline's folder"
