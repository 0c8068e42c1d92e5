"""A fourth modality: a folder on the path, and no change elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

from radfuse.engine import predictions
from radfuse.engine.cli import run

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
