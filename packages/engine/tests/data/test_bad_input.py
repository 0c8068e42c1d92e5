"""One test for each kind of bad input on the way from files to arrays: named, what to do, nothing lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pipelines import Pipeline, Toy, write_csv, xray_table
from volumes import write_case, write_nifti, write_series

from radfuse.engine.keys import PUBLIC


@pytest.fixture
def fails(
    pipeline: Pipeline, radfuse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command that must fail with an exit code and one message; gives the message."""
    monkeypatch.setattr("radfuse.engine.modality.modality", lambda name: Toy(name))

    def run(*arguments: str, code: int = 1) -> str:
        ran = radfuse(*arguments, "--params", pipeline.file, "--set", "prepare.workers=1")
        assert ran.code == code
        assert ran.err.startswith("radfuse: ")
        assert "Traceback" not in ran.err
        return str(ran.err)

    return run


def contents(pipeline: Pipeline) -> dict[str, bytes]:
    kept = (path for path in pipeline.root.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path): path.read_bytes() for path in kept}


def named_in_outputs(pipeline: Pipeline, *names: str) -> list[Path]:
    """Outputs with one of the names in them, but for the private table."""
    outputs = (path for path in pipeline.places.data.rglob("*") if path.is_file())
    return [
        path
        for path in outputs
        if path != pipeline.places.identity and any(name.encode() in path.read_bytes() for name in names)
    ]


def test_missing_folder(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    pipeline.sources({"kind": "nih_chestxray14", "root": "raw/nih"})
    said = fails("cohort")
    assert "raw/nih" in said
    assert "correct `root`" in said


def test_empty_csv(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=1))
    pipeline.cohort()
    (pipeline.root / "raw" / "xray.csv").write_text("")
    before = contents(pipeline)
    said = fails("cohort")
    assert "xray.csv is empty; expected a header line" in said
    assert contents(pipeline) == before
    (pipeline.root / "raw" / "xray.csv").write_text("patient_id,path,Mass\n")
    assert "xray.csv has a header and no line after it" in fails("cohort")


def test_label_column_that_does_not_exist(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    pipeline.sources({**xray_table(pipeline.root / "raw", patients=1), "labels": ["Mas"]})
    said = fails("cohort")
    assert "xray.csv: expected a column 'Mas'" in said
    assert "did you mean 'Mass'?" in said


def test_reference_column_that_does_not_exist(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    pipeline.sources({**xray_table(pipeline.root / "raw", patients=1), "references": ["Mas"]})
    said = fails("cohort")
    assert "xray.csv: expected a column 'Mas'" in said
    assert "did you mean 'Mass'?" in said


@pytest.mark.parametrize("text", ["8 mm", "5,7", "inf"])
def test_reference_that_is_no_number(pipeline: Pipeline, fails: Callable[..., str], text: str) -> None:
    source = xray_table(pipeline.root / "raw", patients=2)
    rows = [("Patient-000", "images/000_0.png", "5.5"), ("Patient-001", "images/001_0.png", text)]
    write_csv(pipeline.root / "raw" / "xray.csv", ("patient_id", "path", "size"), rows)
    pipeline.sources({**source, "labels": [], "references": ["size"]})
    said = fails("cohort")
    assert f"xray.csv, line 3: expected a number in column 'size', got {text!r}" in said


def test_folder_without_any_dicom_image(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    root = ct_pipeline(pipeline)
    for path in (root / "b").iterdir():
        path.write_text("a note")
    said = fails("cohort")
    assert "line 3: b: the folder that the table lists holds no DICOM image that can be read" in said


def test_image_that_is_listed_but_absent(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=2))
    pipeline.cohort()
    (pipeline.root / "raw" / "images" / "001_0.png").unlink()
    before = contents(pipeline)
    said = fails("cohort")
    assert "images/001_0.png: a file that the table lists is missing" in said
    assert "Add the files, take them off the list" in said
    assert contents(pipeline) == before


def test_image_that_vanished_after_the_scan(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=2))
    pipeline.cohort()
    (pipeline.root / "raw" / "images" / "001_0.png").unlink()
    assert "images/001_0.png" in fails("prepare", "xray")


def ct_pipeline(pipeline: Pipeline, slices: int = 10) -> Path:
    root = pipeline.root / "raw"
    for name in ("a", "b"):
        write_series(root / name, slices=slices)
    write_csv(
        root / "ct.csv", ("path", "patient_id", "x", "y", "z"), [("a", "A", 8, 8, 5), ("b", "B", 8, 8, 5)]
    )
    pipeline.sources(
        {"kind": "table", "root": "raw", "modality": "ct", "csv": "ct.csv", "point_mm": ["x", "y", "z"],
         "public": True}
    )  # fmt: skip
    pipeline.cohort()
    return root


def test_truncated_dicom(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    root = ct_pipeline(pipeline)
    path = root / "b" / "slice04.dcm"
    path.write_bytes(path.read_bytes()[:-200])
    said = fails("prepare", "ct")
    assert "\n  b/slice04.dcm: the pixel data breaks off" in said
    assert "ct: 1 of 2 samples cannot be read" in said
    (row,) = pd.read_csv(pipeline.places.skipped("ct")).to_dict("records")
    assert row["sample_id"] == PUBLIC.sample("table", "ct", "b#8,8,5")
    assert named_in_outputs(pipeline, "slice04", str(pipeline.root)) == []
    assert len(list(pipeline.places.arrays("ct").iterdir())) == 1


def test_damaged_sequence_of_a_case(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    root = pipeline.root / "raw"
    for case in ("A_1", "B_1"):
        write_case(root, case)
    (root / "B_1" / "B_1_t2.nii.gz").write_bytes(b"not an image")
    pipeline.sources({"kind": "brats", "root": "raw", "public": True})
    pipeline.cohort()
    said = fails("prepare", "mri")
    assert "\n  B_1/B_1_t2.nii.gz: expected DICOM, PNG, JPEG or NIfTI, got a text file" in said


def test_ct_series_with_a_missing_slice(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    root = ct_pipeline(pipeline)
    (root / "b" / "slice04.dcm").unlink()
    pipeline.cohort()
    said = fails("prepare", "ct")
    assert "\n  b: " in said
    assert "slice" in said
    assert len(list(pipeline.places.arrays("ct").iterdir())) == 1


def test_nifti_with_another_grid_than_its_segmentation(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    root = pipeline.root / "raw"
    for case in ("A_1", "B_1"):
        write_case(root, case)
    write_nifti(root / "B_1" / "B_1_seg.nii.gz", np.ones((12, 12, 10), np.uint8), spacing=2)
    pipeline.sources({"kind": "brats", "root": "raw", "public": True})
    pipeline.cohort()
    said = fails("prepare", "mri")
    assert "\n  B_1/B_1_seg.nii.gz: the label map" in said
    assert "grid" in said
    assert named_in_outputs(pipeline, "B_1", str(pipeline.root)) == []
    assert sorted(path.name[0] for path in pipeline.places.arrays("mri").iterdir()) == ["i", "i"]


def test_unknown_parameter_in_params_yaml(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=1), split={"sed": 1})
    assert "params.yaml with --set prepare.workers: unknown key split.sed; did you mean 'seed'?" in fails(
        "cohort", code=2
    )


def test_unknown_parameter_of_a_modality(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=1), train={"xray": {"batchsize": 1}})
    assert "unknown key train.xray.batchsize; did you mean 'batch_size'?" in fails("cohort", code=2)


def split_rows(
    pipeline: Pipeline, csv: str, modality: str, rows: list[tuple[str, str, str]]
) -> dict[str, Any]:
    write_csv(pipeline.root / "raw" / csv, ("path", "patient_id", "fold"), rows)
    return {
        "kind": "table", "name": modality, "root": "raw", "modality": modality, "csv": csv, "split": "fold",
        "public": True, "patient_namespace": "hospital",
    }  # fmt: skip


def test_patient_in_two_splits_within_one_modality(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    xray_table(pipeline.root / "raw", patients=2)
    rows = [("images/000_0.png", "P1", "train"), ("images/001_0.png", "P1", "test")]
    pipeline.sources(split_rows(pipeline, "list.csv", "xray", rows))
    said = fails("cohort")
    assert PUBLIC.patient("hospital", "P1") in said
    assert "P1" not in said.replace(PUBLIC.patient("hospital", "P1"), "")


def test_patient_in_two_splits_across_modalities(pipeline: Pipeline, fails: Callable[..., str]) -> None:
    xray_table(pipeline.root / "raw", patients=1)
    write_series(pipeline.root / "raw" / "scan")
    pipeline.sources(
        split_rows(pipeline, "xray.csv", "xray", [("images/000_0.png", "P1", "train")]),
        split_rows(pipeline, "ct.csv", "ct", [("scan", "P1", "test")]),
    )
    said = fails("cohort")
    assert PUBLIC.patient("hospital", "P1") in said
    assert "train (xray of xray)" in said
    assert "test (ct of ct)" in said
