"""`radfuse validate` on real sources, through tiny models."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from served_models import CT, MRI, XRAY, classifier, mri_model

from radfuse.engine import predictions
from radfuse.engine.cli import run
from radfuse.serving import Card

FINDINGS = ("Infiltration", "Mass", "Hernia")
WITHOUT_TORCH = """
import sys
from radfuse.engine.cli import run
code = run(sys.argv[1:])
print("loaded:", *sorted({"torch", "monai", "mlflow"} & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""

Validate = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without params.yaml, and a home without a key."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "site").mkdir()
    monkeypatch.chdir(tmp_path / "site")


@pytest.fixture
def validate(capsys: pytest.CaptureFixture[str]) -> Validate:
    """Runs ``radfuse validate`` in this process: exit code, standard output, standard error."""

    def called(*arguments: object) -> tuple[int, str, str]:
        code = run(["validate", *map(str, arguments)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return called


@pytest.fixture
def nih(real_data: Path, tmp_path: Path) -> Path:
    """Forty images of ChestX-ray14 in the publisher's layout."""
    source = real_data / "nih_chestxray14"
    folder = tmp_path / "nih"
    folder.mkdir()
    table = pd.read_csv(next(source.glob("Data_Entry*.csv")))
    found = {path.name: path for path in source.rglob("*.png")}
    table = table[table["Image Index"].isin(list(found))].sample(40, random_state=0)
    table.to_csv(folder / "Data_Entry_2017_v2020.csv", index=False)
    (folder / "images").mkdir()
    for name in table["Image Index"]:
        (folder / "images" / name).symlink_to(found[name])
    return folder


@pytest.fixture
def xray(tmp_path: Path) -> Path:
    return classifier(tmp_path, {**XRAY, "labels": FINDINGS}, ("batch", 3, 32, 32), 1.0)


def test_public_source_is_answered_and_measured(
    validate: Validate, xray: Path, nih: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, shown, _ = validate(
        "xray", "--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", out
    )
    assert code == 0
    frame, stamp = predictions.read(out / "predictions.parquet")
    assert len(frame) == 40 and set(frame["split"]) == {"external"}
    assert (stamp.modality, stamp.model_digest, stamp.labels) == ("xray", "1" * 64, FINDINGS)
    assert frame["calibrated:Mass"].between(0, 1).all()
    report = json.loads((out / "metrics.json").read_text())
    table = pd.read_csv(nih / "Data_Entry_2017_v2020.csv")
    positives = {name: int(table["Finding Labels"].str.contains(name).sum()) for name in FINDINGS}
    assert {name: one["positives"] for name, one in report["labels"].items()} == positives
    assert report["labels"]["Mass"]["threshold"] == 0.25
    assert "resnet50 on nih_chestxray14: 40 samples" in shown and "Infiltration" in shown


def test_figures_are_those_of_the_table(validate: Validate, xray: Path, nih: Path, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    out = tmp_path / "out"
    validate("xray", "--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", out)
    frame, _ = predictions.read(out / "predictions.parquet")
    report = json.loads((out / "metrics.json").read_text())
    measured = report["mean"]["over"]
    expected = [roc_auc_score(frame[f"label:{name}"], frame[f"calibrated:{name}"]) for name in measured]
    assert [report["labels"][name]["auroc"]["value"] for name in measured] == pytest.approx(expected)
    assert measured and report["mean"]["auroc"]["value"] == pytest.approx(np.mean(expected))


def test_outputs_hold_pseudonyms_and_the_private_table_alone_tells_whose(
    validate: Validate, xray: Path, nih: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    validate("xray", "--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", out)
    names = pd.read_csv(nih / "Data_Entry_2017_v2020.csv")["Image Index"]
    for path in (out / "predictions.parquet", out / "metrics.json", out / "skipped.csv"):
        data = path.read_bytes()
        assert not any(name.encode() in data for name in names) and str(tmp_path).encode() not in data
    private = out / "data" / "private"
    assert stat.S_IMODE((private / "identity.parquet").stat().st_mode) == 0o600
    assert (private / ".gitignore").read_text() == "*\n"
    sample = predictions.read(out / "predictions.parquet")[0]["sample_id"][0]
    capsys.readouterr()
    assert run(["whois", sample, "--params", str(out / "params.yaml"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["found"]
    assert Path(found["files"]["image"][0]).name in set(names)


def test_damaged_image_is_listed_and_the_others_are_measured(
    validate: Validate, xray: Path, nih: Path, tmp_path: Path
) -> None:
    bad = sorted((nih / "images").iterdir())[3]
    data = bad.read_bytes()
    bad.unlink()
    bad.write_bytes(data[:2000])
    out = tmp_path / "out"
    code, _, err = validate(
        "xray", "--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", out
    )
    assert code == 0 and f"not read: {bad.name}" in err
    (skipped,) = pd.read_csv(out / "skipped.csv").to_dict("records")
    assert skipped["sample_id"].startswith("i") and bad.name not in skipped["reason"]
    assert json.loads((out / "metrics.json").read_text())["answered"] == 39


def test_too_many_damaged_images_end_with_1_after_the_rest_is_written(
    validate: Validate, xray: Path, nih: Path, tmp_path: Path
) -> None:
    for bad in sorted((nih / "images").iterdir())[:9]:
        bad.unlink()
        bad.write_bytes(b"no picture")
    out = tmp_path / "out"
    code, _, err = validate(
        "xray", "--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", out
    )
    assert code == 1 and "9 of 40 samples cannot be read" in err and "and 4 more" in err
    assert len(predictions.read(out / "predictions.parquet")[0]) == 31


def test_nothing_readable_ends_with_1(validate: Validate, xray: Path, nih: Path, tmp_path: Path) -> None:
    for bad in (nih / "images").iterdir():
        bad.unlink()
        bad.write_bytes(b"no picture")
    out = tmp_path / "out"
    code, _, err = validate(
        "xray", "--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", out
    )
    assert code == 1 and "40 of 40" in err
    assert len(pd.read_csv(out / "skipped.csv")) == 40


def test_segmentations_are_measured_on_the_grid_of_the_files(
    validate: Validate, real_data: Path, tmp_path: Path
) -> None:
    from radfuse.serving import Predictor
    from radfuse.serving.images.nifti import read_nifti

    cases = sorted((real_data / "brats18_2mm").iterdir())[:2]
    root, out = tmp_path / "brats", tmp_path / "out"
    for case in cases:
        shutil.copytree(case, root / case.name)
    model = mri_model(tmp_path)
    code, shown, err = validate("mri", "--model", model, "--source", "brats", "--root", root, "--out", out)
    assert (code, "whole_tumour" in shown) == (0, True), err
    frame, stamp = predictions.read(out / "predictions.parquet")
    assert len(frame) == 2 and stamp.labels == tuple(MRI["regions"])
    images = {name: cases[0] / f"{cases[0].name}_{name}.nii.gz" for name in MRI["inputs"]}
    said = Predictor(model).predict(images).label_map
    truth = read_nifti(cases[0] / f"{cases[0].name}_seg.nii.gz")
    assert said is not None and said.shape == truth.shape
    tumour, found = truth.voxels > 0, said.voxels > 0
    dice = 2 * (tumour & found).sum() / (tumour.sum() + found.sum())
    assert np.isclose(frame["dice:whole_tumour"], dice).any()
    volume = tumour.sum() * np.prod(truth.spacing_mm)
    assert np.isclose(frame["true_volume_mm3:whole_tumour"], volume, rtol=1e-4).any()
    report = json.loads((out / "metrics.json").read_text())["regions"]["whole_tumour"]
    assert report["dice"]["value"] == pytest.approx(frame["dice:whole_tumour"].mean())


def test_options_of_a_source_come_from_params_yaml(
    validate: Validate, real_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(real_data / "lidc_nodule_cubes", tmp_path / "cubes")
    table = pd.read_csv(tmp_path / "cubes" / "nodules.csv").head(12)
    table.to_csv(tmp_path / "cubes" / "nodules.csv", index=False)
    options = "kind: table, name: cubes, public: true, modality: ct, csv: nodules.csv, labels: [malignant]"
    Path("params.yaml").write_text(f"sources: [{{{options}, root: elsewhere}}]\n")
    whole = {"size": [48, 48, 48], "spacing_mm": None, "window_hu": None}
    about = {**CT, "preprocessing": {**CT["preprocessing"], **whole}}
    model = classifier(tmp_path, about, ("batch", 1, 48, 48, 48), 0.01)
    code, shown, err = validate(
        "ct", "--model", model, "--source", "cubes", "--root", tmp_path / "cubes", "--out", tmp_path / "out"
    )
    assert (code, "malignant" in shown) == (0, True), err


def test_patients_of_the_training_are_told(validate: Validate, xray: Path, nih: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", out)
    validate("xray", *arguments)
    patients = sorted(set(predictions.read(out / "predictions.parquet")[0]["patient_id"]))
    folder = Path("data") / "cohort"
    folder.mkdir(parents=True)
    Path("params.yaml").write_text("seed: 0\n")
    splits = ["train", "test"] + ["test"] * (len(patients) - 2)
    pd.DataFrame({"patient_id": patients, "split": splits}).to_parquet(folder / "patients.parquet")
    code, _, err = validate("xray", *arguments)
    assert code == 0 and "1 of these patients are among those" in err and patients[0] in err
    assert json.loads((out / "metrics.json").read_text())["patients_of_the_training"] == 1


def test_model_of_another_modality_is_refused(
    validate: Validate, xray: Path, nih: Path, tmp_path: Path
) -> None:
    code, _, err = validate(
        "ct", "--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", tmp_path / "out"
    )
    assert code == 2 and "expected a model of ct, got one of xray" in err


def test_unknown_source_is_refused(validate: Validate, xray: Path, nih: Path, tmp_path: Path) -> None:
    code, _, err = validate(
        "xray", "--model", xray, "--source", "nih", "--root", nih, "--out", tmp_path / "out"
    )
    assert code == 2 and "--source nih: expected the name of a source" in err and "nih_chestxray14" in err


def test_source_without_the_modality_is_refused(validate: Validate, nih: Path, tmp_path: Path) -> None:
    model = classifier(tmp_path, CT, ("batch", 1, 16, 16, 16), 0.01)
    code, _, err = validate(
        "ct", "--model", model, "--source", "nih_chestxray14", "--root", nih, "--out", tmp_path / "out"
    )
    assert code == 1 and "expected samples of ct, got xray" in err


def test_validation_needs_no_torch(xray: Path, nih: Path, tmp_path: Path) -> None:
    arguments = ["--model", xray, "--source", "nih_chestxray14", "--root", nih, "--out", tmp_path / "out"]
    command = [sys.executable, "-c", WITHOUT_TORCH, "validate", "xray", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stderr.splitlines()[-1].strip() == "loaded:"
    assert Card.read(xray.with_suffix(".json")).labels == FINDINGS
