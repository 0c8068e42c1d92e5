"""The README's code does what the README says."""

import re
from pathlib import Path

import nibabel
import numpy as np

PACKAGE = Path(__file__).parents[1]


def test_the_examples_run_one_after_the_other(build, graphs, monkeypatch, capsys):
    names = ["t1", "t1ce", "t2", "flair"]
    build.model(graphs.classifier(), name="xray_onnx.onnx")
    nodule = {
        "preprocessing": {"kind": "ct_patch", "size": [8, 8, 8], "spacing_mm": [1, 1, 1]},
        "labels": ["malignant"],
    }
    build.model(
        graphs.classifier((1, 8, 8, 8), (0.0,)),
        {**nodule, "thresholds": {}, "calibration": {}},
        "ct_onnx.onnx",
    )
    tumour = {
        "task": "segmentation",
        "inputs": names,
        "preprocessing": {"kind": "mr_volume", "sequences": names},
        "labels": [],
        "thresholds": {},
        "calibration": {},
        "classes": ["background", "core", "oedema"],
        "regions": {"whole_tumour": [1, 2]},
    }
    build.model(graphs.segmenter(4), tumour, "mri_onnx.onnx")
    build.dicom(np.zeros((9, 9), np.uint16), "chest.dcm")
    build.series(np.zeros((20, 40, 40), np.int16), origin=(-80.0, -30.0, 1160.0))
    head = np.random.default_rng(0).integers(0, 900, (20, 20, 20)).astype(np.int16)
    for name in names:
        nibabel.Nifti1Image(head, np.eye(4)).to_filename(build.folder / f"case_{name}.nii.gz")
    monkeypatch.chdir(build.folder)

    variables = {}
    blocks = re.findall(
        r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(blocks) == 2
    assert len(blocks[0].strip().splitlines()) <= 10
    for block in blocks:
        exec(compile(block, "README.md", "exec"), variables)

    said = capsys.readouterr().out
    assert "Effusion" in said
    assert "malignant" in said
    assert "whole_tumour" in said
    assert nibabel.load("case_seg.nii.gz").shape == (20, 20, 20)
