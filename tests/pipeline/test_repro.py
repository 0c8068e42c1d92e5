"""`dvc repro` of the demo's own stages, small: what it leaves, what a second one does, who is named in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
import zlib
from pathlib import Path

import pandas as pd
import pydicom
import pytest
import torch
from small_pipeline import NOTES, Pipeline

import ckptcore

# One process runs them all: two commands of DVC at once in one folder are refused.
pytestmark = pytest.mark.xdist_group("finished pipeline")

MODELS = {"xray": "resnet50", "ct": "3dcnn", "mri": "unet"}


def test_tests_of_one_pipeline_run_in_one_process(request: pytest.FixtureRequest) -> None:
    # Where groups do nothing, as with pytest 9.2 and pytest-xdist 3.8, every process waits for the pipeline.
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@finished pipeline")


def test_row_4_1_the_folder_of_models_has_the_pages_names(finished: Pipeline) -> None:
    models = finished.root / "saved_models"
    for modality, name in MODELS.items():
        assert (models / modality / f"{name}_best.pth").is_file()
        assert (models / modality / "training_history.json").is_file()
        assert [*(models / modality).glob(f"{name}_epoch_*.pth")]
    assert {path.name for path in (models / "ensemble").glob("*")} >= {
        "meta_learner.pth", "weighted_average.json", "ensemble_history.json",
    }  # fmt: skip
    exports = {path.name for path in (models / "exports").glob("*")}
    assert exports >= {f"{name}_onnx.onnx" for name in MODELS} | {f"{name}_torchscript.pt" for name in MODELS}
    assert exports >= {"ensemble_onnx.onnx", "ensemble_traced.pt"}
    assert exports >= {f"{Path(name).stem}.json" for name in exports if not name.endswith(".json")}


def test_row_4_2_every_best_file_opens_with_plain_torch_and_has_the_pages_keys(finished: Pipeline) -> None:
    for modality, name in MODELS.items():
        path = finished.root / "saved_models" / modality / f"{name}_best.pth"
        found = torch.load(path, weights_only=True)
        score = "val_dice" if modality == "mri" else "val_auc"
        assert {
            "epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "train_loss",
            "val_loss", score, "best_metric", "hyperparameters", "timestamp",
        } <= set(found)  # fmt: skip
        assert ckptcore.verify(path).ok


def test_a_second_repro_runs_nothing(finished: Pipeline) -> None:
    ran = finished.run("dvc", "repro")
    assert "Running stage" not in ran.stdout
    assert "up to date" in ran.stdout


def test_the_summary_shows_every_model_with_interval_and_ceiling(finished: Pipeline) -> None:
    text = (finished.root / "reports" / "summary.txt").read_text(encoding="utf-8")
    assert all(word in text for word in ("xray", "ct", "mri", "ensemble", "interval", "ceiling"))
    metrics = json.loads((finished.root / "reports" / "metrics.json").read_text(encoding="utf-8"))
    assert set(MODELS) <= set(metrics)


def test_dvc_shows_metrics_and_their_difference(finished: Pipeline) -> None:
    assert "reports/metrics.json" in finished.run("dvc", "metrics", "show").stdout


def test_no_name_original_id_or_birth_date_is_in_any_output_but_the_private_table(
    finished: Pipeline, tmp_path: Path
) -> None:
    """Every byte of every output, also what is packed in zip files or compressed in images and databases.

    The phantom's own files have them, as do DVC's notes of their names, which are for this account alone.
    """
    needles = identities(finished.root / "data" / "phantom")
    assert len(needles) > 1500
    outputs = [
        path
        for path in finished.root.rglob("*")
        if path.is_file()
        and not path.is_relative_to(finished.root / "data" / "phantom")
        and not path.is_relative_to(finished.root / "data" / "private")
        and not path.is_relative_to(finished.root / NOTES)
    ]
    assert (finished.root / NOTES).stat().st_mode & 0o077 == 0
    assert list((finished.root / NOTES).rglob("cache.db")), "DVC keeps its notes elsewhere"
    assert len(outputs) > 100
    for number, path in enumerate(outputs):
        for content in unpacked(path):
            (tmp_path / f"{number}_{path.name}").write_bytes(content)
    searched = [str(path) for path in (*outputs, *tmp_path.iterdir())]
    (tmp_path / "needles").write_bytes(b"\n".join(sorted(needles)) + b"\n")
    # grep looks for hundreds of texts in gigabytes at once, which Python's own search does not.
    asked = ["grep", "--text", "--fixed-strings", "--files-with-matches", f"--file={tmp_path / 'needles'}"]
    known = finished.root / "data" / "phantom" / "patients.csv"
    assert subprocess.run([*asked, "--", str(known)], capture_output=True, check=False).returncode == 0
    found = subprocess.run([*asked, "--", *searched], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")


def identities(phantom: Path) -> set[bytes]:
    """Names, original ids, UIDs, accession numbers and birth dates, each as the files may spell them."""
    patients = pd.read_csv(phantom / "patients.csv", dtype=str)
    found = set(patients["original_patient_id"]) | set(patients["patient_name"])
    found |= {name.replace("^", " ") for name in patients["patient_name"]}
    # Shorter ones stand in pictures and weights by chance.
    found |= {part for name in patients["patient_name"] for part in name.split("^") if len(part) > 6}
    found |= set(patients["birth_date"]) | {date.replace("-", "") for date in patients["birth_date"]}
    for table in ("xray/studies.csv", "ct/series.csv", "mri/cases.csv"):
        found |= set(pd.read_csv(phantom / table, dtype=str)["accession_number"])
    for file in phantom.rglob("*.dcm"):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        found |= {header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID}
    found |= {json.dumps(text)[1:-1] for text in found}
    return {text.encode() for text in found} | {text.encode("latin-1", "ignore") for text in found}


def unpacked(path: Path) -> list[bytes]:
    """What is packed or compressed in a file, in plain bytes."""
    if path.suffix == ".parquet":
        return [pd.read_parquet(path).to_csv().encode()]
    if path.suffix == ".png":
        return [inflated(path.read_bytes())]
    if path.suffix == ".pt":
        # Its records are stored as they are, but for the small ones.
        with zipfile.ZipFile(path) as archive:
            return [archive.read(one) for one in archive.infolist() if one.compress_type]
    return []


def inflated(png: bytes) -> bytes:
    """What stands in a picture's compressed text chunks."""
    texts = b""
    for at in (match.start() for match in re.finditer(rb"zTXt|iTXt", png)):
        size = int.from_bytes(png[at - 4 : at], "big")
        packed = png[at + 4 : at + 4 + size].split(b"\0", 2)[-1].lstrip(b"\0")
        try:
            texts += zlib.decompress(packed)
        except zlib.error:
            texts += packed
    return texts


def test_row_4_9_an_export_answers_for_a_raw_file_as_the_prediction_table_says(finished: Pipeline) -> None:
    identity = pd.read_parquet(finished.root / "data" / "private" / "identity.parquet")
    table = pd.read_parquet(finished.root / "data" / "predictions" / "xray.parquet")
    row = table.iloc[0]
    known = identity.set_index("sample_id").loc[row["sample_id"]]
    files = json.loads(known["files"])
    [[image]] = [paths if isinstance(paths, list) else [paths] for paths in files.values()]
    ran = finished.run(
        "radfuse", "predict", "--json", "--model", "saved_models/exports/xray_onnx.onnx",
        str(finished.root / "data" / "phantom" / image),
    )  # fmt: skip
    answer = json.loads(ran.stdout)
    assert "Atelectasis" in json.dumps(answer)
    got = re.search(r'"Atelectasis":\s*(?:\{[^}]*?"probability":\s*)?([0-9.e-]+)', ran.stdout)
    assert got is not None
    assert float(got.group(1)) == pytest.approx(float(row["calibrated:Atelectasis"]), abs=2e-4)


def test_every_command_takes_help_and_all_that_have_parameters_take_others(tmp_path: Path) -> None:
    commands = (
        "init", "phantom", "cohort", "prepare", "train", "predict-split", "ensemble", "evaluate", "export",
        "predict", "validate", "promote", "whois", "recover",
    )  # fmt: skip
    anywhere = Pipeline(tmp_path)
    listed = anywhere.run("radfuse", "--help").stdout.partition("Commands:")[2]
    assert set(re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE)) == set(commands)
    for command in commands:
        said = anywhere.run("radfuse", command, "--help").stdout
        assert f"Usage: radfuse {command}" in said, command
        for option in ("--params", "--set"):
            assert (option in said) == (command not in ("init", "recover")), (command, option)
