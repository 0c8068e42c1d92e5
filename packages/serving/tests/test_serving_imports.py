"""Serving needs no torch, no pandas, no MONAI: neither installed nor imported."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import nibabel
import numpy as np
import pytest

PREDICT = """
import json, sys, time
began = time.perf_counter()
from radfuse.serving import Predictor
imported = time.perf_counter() - began
early = sorted(sys.modules)
Predictor(sys.argv[1]).predict({"image": sys.argv[2]})
Predictor(sys.argv[3]).predict({"image": sys.argv[4]})
print(json.dumps({"seconds": imported, "early": early, "late": sorted(sys.modules)}))
"""
FORBIDDEN = {
    "torch",
    "pandas",
    "monai",
    "torchvision",
    "sklearn",
    "matplotlib",
    "mlflow",
    "radfuse.engine",
    "ckptcore",
}


def files(build, graphs):
    """Two models with an image each."""
    ct = {
        "preprocessing": {"kind": "ct_patch", "size": [8, 8, 8]},
        "labels": ["malignant"],
        "thresholds": {},
        "calibration": {},
    }
    nodule = build.folder / "nodule.nii.gz"
    nibabel.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4)).to_filename(nodule)
    return [
        build.model(graphs.classifier(), name="xray.onnx"),
        build.dicom(np.zeros((9, 9), np.uint16)),
        build.model(graphs.classifier((1, 8, 8, 8), (0.0,)), ct, "ct.onnx"),
        nodule,
    ]


def test_predicting_imports_nothing_heavy(build, graphs):
    command = [sys.executable, "-c", PREDICT, *files(build, graphs)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout)
    assert not FORBIDDEN & set(said["late"])
    # Decoders and onnxruntime come when there is something to decode or to run; seconds, not the tenth that
    # it takes, because other programs use this machine too.
    assert not {"onnxruntime", "pydicom", "nibabel", "scipy", "PIL"} & set(said["early"])
    assert said["seconds"] < 3


@pytest.mark.slow
def test_the_package_installs_alone_and_answers_without_torch(build, graphs, tmp_path):
    root = Path(__file__).parents[3]
    home = tmp_path / "alone"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    constraints = ["-c", root / "constraints.txt"] if (root / "constraints.txt").is_file() else []
    install = [python, "-m", "pip", "install", "--quiet", root / "packages" / "serving", *constraints]
    subprocess.run(install, check=True, timeout=900)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert not {"torch", "pandas", "monai", "radfuse-engine", "ckptcore"} & names
    run = subprocess.run(
        [python, "-c", PREDICT, *files(build, graphs)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-2000:]
