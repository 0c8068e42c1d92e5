"""`radfuse predict` on real files, through tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_models import CLASSES, SEQUENCES, ct_model, mri_model, xray_model

from radfuse.engine.cli import run
from radfuse.serving import Predictor
from radfuse.serving.images.nifti import read_nifti

WITHOUT_TORCH = """
import sys
from radfuse.engine.cli import run
code = run(sys.argv[1:])
heavy = sorted({"torch", "monai", "pandas", "sklearn", "mlflow"} & set(sys.modules))
print("loaded:", *heavy, file=sys.stderr)
sys.exit(code)
"""

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return {"xray": xray_model(folder), "ct": ct_model(folder), "mri": mri_model(folder)}


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs ``radfuse predict`` in this process: exit code, standard output, standard error."""

    def asked(*arguments: object) -> tuple[int, str, str]:
        code = run(["predict", *map(str, arguments)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return asked


@pytest.fixture
def radiograph(real_data: Path) -> Path:
    return next(iter(sorted((real_data / "nih_chestxray14").rglob("*.png"))))


@pytest.fixture
def brats_case(real_data: Path) -> Path:
    return real_data / "brats18_2mm" / "Brats18_2013_11_1"


@pytest.fixture
def chest(real_data: Path) -> Path:
    folder = real_data / "ct_chest_dicom_series"
    return next(path.parent for path in sorted(folder.rglob("*.dcm")))


def dicom_radiograph(path: Path, seed: int = 0) -> Path:
    """A small radiograph as a DICOM file."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    pixels = np.random.default_rng(seed).integers(0, 4096, (40, 30), np.uint16)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = DigitalXRayImageStorageForPresentation
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3"
    image.Modality, image.PhotometricInterpretation, image.SamplesPerPixel = "DX", "MONOCHROME2", 1
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelData = pixels.tobytes()
    image.save_as(path, enforce_file_format=True)
    return path


def entry(text: str) -> dict[str, Any]:
    (one,) = json.loads(text)["answers"]
    return dict(one)


def test_png_is_answered_with_every_label(ask: Ask, models: dict[str, Path], radiograph: Path) -> None:
    code, out, err = ask("--model", models["xray"], radiograph, "--json")
    assert (code, err) == (0, "")
    expected = Predictor(models["xray"]).predict({"image": radiograph})
    told = entry(out)["labels"]
    assert {name: one["probability"] for name, one in told.items()} == dict(expected.probabilities)
    assert told["Mass"]["threshold"] == 0.25 and told["Mass"]["positive"] is expected.decisions["Mass"]
    assert told["Hernia"]["positive"] is None


def test_json_says_which_model_answered(ask: Ask, models: dict[str, Path], radiograph: Path) -> None:
    model = json.loads(ask("--model", models["xray"], radiograph, "--json")[1])["model"]
    assert model == {"modality": "xray", "name": "resnet50", "version": "", "model_digest": "1" * 64}


def test_dicom_is_answered(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    path = dicom_radiograph(tmp_path / "a.dcm")
    code, out, _ = ask("--model", models["xray"], path, "--json")
    assert code == 0 and set(entry(out)["labels"]) == {"Mass", "Nodule", "Hernia"}


def test_several_files_are_answered_one_by_one(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    paths = [dicom_radiograph(tmp_path / f"{seed}.dcm", seed) for seed in range(3)]
    answers = json.loads(ask("--model", models["xray"], *paths, "--json")[1])["answers"]
    assert [one["images"]["image"] for one in answers] == list(map(str, paths))
    assert len({one["labels"]["Mass"]["probability"] for one in answers}) == 3


def test_table_shows_label_probability_and_answer(
    ask: Ask, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dicom_radiograph(tmp_path / "a.dcm")
    code, out, err = ask("--model", models["xray"], "a.dcm")
    assert (code, err) == (0, "")
    assert "resnet50 (no version), xray" in out and "point" not in out
    (mass,) = [line for line in out.splitlines() if "Mass" in line]
    assert "a.dcm" in mass and "0.250" in mass and ("yes" in mass or "no" in mass)


def test_file_that_cannot_be_read_is_named_and_the_others_are_answered(
    ask: Ask, models: dict[str, Path], tmp_path: Path
) -> None:
    good, bad = dicom_radiograph(tmp_path / "good.dcm"), tmp_path / "bad.dcm"
    bad.write_bytes(good.read_bytes()[:700])
    code, out, err = ask("--model", models["xray"], bad, good, tmp_path / "absent.png", "--json")
    first, second, third = json.loads(out)["answers"]
    assert code == 1
    assert "labels" in second and "error" not in second
    assert first["error"].startswith("bad.dcm: ") and third["error"].startswith("absent.png: ")
    assert "radfuse: bad.dcm: " in err and "radfuse: absent.png: " in err


def test_series_folder_is_answered_at_a_point(ask: Ask, models: dict[str, Path], chest: Path) -> None:
    from radfuse.serving.images.series import read_series

    volume = read_series(chest)
    centre = (volume.affine @ [*(length // 2 for length in volume.shape), 1])[:3]
    at = ",".join(f"{value:.2f}" for value in centre)
    code, out, err = ask("--model", models["ct"], chest, "--at", at, "--json")
    assert (code, err) == (0, "")
    found = entry(out)
    assert found["point_mm"] == pytest.approx([float(part) for part in at.split(",")])
    assert 0 < found["labels"]["malignant"]["probability"] < 1


def test_points_of_a_csv_are_answered_one_by_one(
    ask: Ask, models: dict[str, Path], chest: Path, tmp_path: Path
) -> None:
    from radfuse.serving.images.series import read_series

    volume = read_series(chest)
    middle, deeper = ((volume.affine @ [depth, 250, 250, 1])[:3] for depth in (20, 30))
    points = tmp_path / "points.csv"
    lines = [f"{name},{','.join(map(str, point))}" for name, point in (("a", middle), ("b", deeper))]
    points.write_text("\n".join(["name,x_mm,y_mm,z_mm", *lines]) + "\n")
    code, out, _ = ask("--model", models["ct"], chest, "--points", points, "--json")
    answers = json.loads(out)["answers"]
    assert code == 0
    assert [one["point"] for one in answers] == ["a", "b"]
    assert [one["point_mm"] for one in answers] == [pytest.approx(middle), pytest.approx(deeper)]


def test_scan_without_a_point_is_refused(ask: Ask, models: dict[str, Path], chest: Path) -> None:
    code, _, err = ask("--model", models["ct"], chest)
    assert code == 1 and "give the nodule's position" in err


def test_point_outside_the_scan_is_refused(ask: Ask, models: dict[str, Path], chest: Path) -> None:
    code, out, err = ask("--model", models["ct"], chest, "--at", "-9000,0,0", "--json")
    assert code == 1 and "error" in entry(out) and chest.name in err


def test_points_of_another_scan_are_not_used(
    ask: Ask, models: dict[str, Path], chest: Path, tmp_path: Path
) -> None:
    points = tmp_path / "points.csv"
    points.write_text("x,y,z,file\n0,0,0,another/scan\n")
    code, _, err = ask("--model", models["ct"], chest, "--points", points)
    assert code == 2 and "names other scans only" in err


def test_row_of_points_that_names_no_scan_that_is_asked_about_is_refused(
    ask: Ask, models: dict[str, Path], chest: Path, tmp_path: Path
) -> None:
    points = tmp_path / "points.csv"
    points.write_text(f"x;y;z;file\n0;0;0;{chest.name}\n0;0;0;another/scan\n")
    code, out, err = ask("--model", models["ct"], chest, "--points", points)
    assert (code, out) == (2, "")
    said = " ".join(err.replace("│", " ").split())
    assert "points.csv, line 3: expected one of the scans" in said and "'another/scan'" in said


def test_points_that_are_no_csv_of_points_are_wrong_usage(
    ask: Ask, models: dict[str, Path], chest: Path, tmp_path: Path
) -> None:
    points = tmp_path / "points.csv"
    points.write_text("a,b\n1,2\n")
    code, out, err = ask("--model", models["ct"], chest, "--points", points)
    assert (code, out) == (2, "") and "expected the columns x_mm, y_mm, z_mm" in " ".join(err.split())


def test_points_that_name_no_scan_are_refused_for_several(
    ask: Ask, models: dict[str, Path], chest: Path, tmp_path: Path
) -> None:
    code, _, err = ask("--model", models["ct"], chest, tmp_path, "--at", "0,0,0")
    assert code == 2 and "expected one scan" in err


def test_case_folder_is_segmented_into_a_label_map_on_its_grid(
    ask: Ask, models: dict[str, Path], brats_case: Path, tmp_path: Path
) -> None:
    target = tmp_path / "labels.nii.gz"
    code, out, err = ask("--model", models["mri"], brats_case, "--out", target, "--json")
    assert (code, err) == (0, "")
    found = entry(out)
    assert found["classes"] == list(CLASSES) and found["label_map"] == str(target)
    labels, image = read_nifti(target), read_nifti(brats_case / f"{brats_case.name}_t1.nii.gz")
    assert labels.shape == image.shape
    np.testing.assert_allclose(labels.affine, image.affine, atol=1e-4)
    voxel_mm3 = float(np.prod(labels.spacing_mm))
    assert found["volumes_mm3"]["enhancing_tumour"] == pytest.approx(
        (labels.voxels == 3).sum() * voxel_mm3, rel=1e-5
    )
    assert [path.name for path in tmp_path.iterdir()] == ["labels.nii.gz"]


def test_named_inputs_are_the_same_as_the_folder(ask: Ask, models: dict[str, Path], brats_case: Path) -> None:
    named = [
        part
        for name in reversed(SEQUENCES)
        for part in ("--input", f"{name}={brats_case / f'{brats_case.name}_{name}.nii.gz'}")
    ]
    by_name = entry(ask("--model", models["mri"], *named, "--json")[1])
    by_folder = entry(ask("--model", models["mri"], brats_case, "--json")[1])
    assert by_name == by_folder


def test_volumes_are_shown_in_millilitres(ask: Ask, models: dict[str, Path], brats_case: Path) -> None:
    _, out, _ = ask("--model", models["mri"], brats_case)
    assert "volume (ml)" in out and out.count("whole_tumour") == 1
    assert str(brats_case) in out and "_t1ce" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected files to ask about (image), got none"),
        (["a.png", "--at", "1,2"], "--at: expected X,Y,Z in mm"),
        (["a.png", "--at", "1,2,3", "--points", "p.csv"], "expected --points or --at, got both"),
        (["--input", "image"], "expected --input NAME=FILE"),
        (["--input", "image=a.png", "--input", "image=b.png"], "--input image is given twice"),
        (["--input", "t1=a.png"], "the model takes image, not t1"),
        (["a.png", "--out", "a.nii.gz"], "--out is for label maps"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(
    ask: Ask, models: dict[str, Path], arguments: list[str], said: str
) -> None:
    code, out, err = ask("--model", models["xray"], *arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("out", "said"), [("labels.png", "end in .nii.gz or .nii"), ("absent/labels.nii.gz", "is none")]
)
def test_out_that_cannot_be_written_is_refused_at_once(
    ask: Ask, models: dict[str, Path], tmp_path: Path, out: str, said: str
) -> None:
    code, _, err = ask("--model", models["mri"], tmp_path, "--out", tmp_path / out)
    assert code == 2 and said in " ".join(err.split())


def test_missing_sequence_is_wrong_usage(ask: Ask, models: dict[str, Path], brats_case: Path) -> None:
    path = brats_case / f"{brats_case.name}_t1.nii.gz"
    code, _, err = ask("--model", models["mri"], path)
    assert code == 2 and "missing: t1ce, t2, flair" in " ".join(err.split())


def test_model_that_is_not_the_one_on_its_card_is_refused(
    ask: Ask, models: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "xray_onnx.onnx"
    path.write_bytes(models["xray"].read_bytes() + b"\0")
    path.with_suffix(".json").write_bytes(models["xray"].with_suffix(".json").read_bytes())
    code, out, err = ask("--model", path, "a.png")
    assert (code, out) == (1, "")
    assert "xray_onnx.onnx" in err and "card" in err


def test_model_without_a_card_is_refused(ask: Ask, models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "xray_onnx.onnx"
    path.write_bytes(models["xray"].read_bytes())
    code, _, err = ask("--model", path, "a.png")
    assert code == 1 and "xray_onnx.json" in err


def test_answer_needs_no_torch(models: dict[str, Path], tmp_path: Path) -> None:
    path = dicom_radiograph(tmp_path / "a.dcm")
    command = [
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        "predict",
        "--model",
        str(models["xray"]),
        str(path),
        "--json",
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert found.stderr.split() == ["loaded:"]
    assert set(entry(found.stdout)["labels"]) == {"Mass", "Nodule", "Hernia"}
