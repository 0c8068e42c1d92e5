"""A fourth modality: a folder on the path, and no change elsewhere."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from trainable import PLAIN, toy_pictures

from radfuse.engine import predictions
from radfuse.engine.cli import run
from radfuse.engine.places import Places
from radfuse.engine.tables import SPLITS

HERE = Path(__file__).parent


def radfuse(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(HERE / "toy"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-c", "from radfuse.engine.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_a_modality_of_another_package_is_trained_and_predicted_by_the_same_commands(toy):
    done = radfuse(
        toy.root, "train", "toy", "--set", "train.toy.stages=[{name: all, epochs: 1, learning_rate: 0.01}]"
    )
    assert done.returncode == 0, done.stderr
    assert (
        "epoch 1/1, all: train_loss" in done.stderr
        and "1 epochs; published in saved_models/toy" in done.stdout
    )
    assert str(toy.root) not in done.stderr + done.stdout
    assert run(["predict-split", "toy", "--params", str(toy.file)]) == 0
    frame, stamp = predictions.read(toy.places.predictions("toy"))
    assert len(frame) == 24 and stamp.modality == "toy"


def write_table_of_pictures(root):
    """96 pictures of 48 patients as PNG files, with a table in the folder above."""
    pictures, labels = toy_pictures(96)
    (root / "raw" / "pictures").mkdir(parents=True)
    with open(root / "raw" / "pictures.csv", "w", newline="") as stream:
        lines = csv.writer(stream)
        lines.writerow(["path", "patient_id", "bright", "striped"])
        for index, (picture, known) in enumerate(zip(pictures, labels, strict=True)):
            path = f"pictures/{index}.png"
            Image.fromarray(picture).save(root / "raw" / path)
            lines.writerow([path, f"P{index // 2}", *("" if np.isnan(one) else int(one) for one in known)])


def test_a_modality_of_another_package_goes_the_whole_way_from_files_to_an_export(tmp_path, capsys):
    root = tmp_path / "pipeline"
    write_table_of_pictures(root)
    params = {
        "sources": [
            {"kind": "table", "root": "raw", "modality": "toy", "csv": "pictures.csv",
             "labels": ["bright", "striped"], "public": True}
        ],
        "split": {"minimum_positives": 0, "fractions": dict.fromkeys(SPLITS, 0.25)},
        "prepare": {"workers": 1, "toy": {"size": 8}},
        "train": {**PLAIN, "toy": {"stages": [{"name": "all", "epochs": 12, "learning_rate": 0.02}]}},
        "predict": {"device": "cpu"},
        "evaluate": {"bootstrap": 20},
    }  # fmt: skip
    file, places = root / "params.yaml", Places(root)
    file.write_text(yaml.safe_dump(params))
    stages = ("cohort",), ("prepare", "toy"), ("train", "toy"), ("predict-split", "toy"), ("evaluate",)
    for stage in (*stages, ("export", "toy")):
        assert run([*stage, "--params", str(file)]) == 0, capsys.readouterr().err
    assert len(predictions.read(places.predictions("toy"))[0]) > 0
    assert pd.read_csv(places.skipped("toy")).empty
    report = json.loads(places.report("toy").read_text())
    assert report["labels"].keys() == {"bright", "striped"}
    assert report["mean"]["auroc"]["value"] > 0.7
    assert "striped" in (places.reports / "report.html").read_text()
    model = places.exports / "toy_onnx.onnx"
    capsys.readouterr()
    assert run(["predict", "--model", str(model), str(root / "raw" / "pictures" / "0.png")]) == 0
    assert "striped" in capsys.readouterr().out
