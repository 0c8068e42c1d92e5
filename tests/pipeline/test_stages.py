"""The stages that `radfuse init` writes: those of the demo, and what they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from radfuse.engine import code, scaffold, workfolder
from radfuse.engine.modality import modality

ROOT = Path(__file__).parents[2]
REAL = ROOT / "pipelines" / "real_samples"
SPLITS = ("train", "val", "calibration", "test")
COHORT_AND_MANIFEST = ("cohort/cohort.parquet", "prepared/xray/manifest.json")


def test_the_demo_has_the_stages_that_init_writes_and_the_phantom() -> None:
    modalities = [modality(name) for name in ("xray", "ct", "mri")]
    made = scaffold.dvc_yaml(modalities, ROOT, ["data/phantom"], phantom=True)
    assert (ROOT / "dvc.yaml").read_text(encoding="utf-8") == made


def code_of(stage: dict[str, Any], folder: Path) -> set[Path]:
    """Folders of code among a stage's dependencies."""
    return {(folder / dep).resolve() for dep in stage["deps"] if "packages/" in dep}


@pytest.mark.parametrize("name", ["xray", "ct", "mri"])
def test_a_training_stage_depends_on_what_its_work_folder_is_named_by(name: str) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][f"train_{name}"]
    found = modality(name)
    assert {"seed", f"prepare.{name}", f"train.{name}"} <= set(stage["params"])
    assert f"data/prepared/{name}/manifest.json" in stage["deps"]
    recipe = workfolder.recipe_of(found, 0, found.prepare_settings(), found.train_settings(), "digest")
    named = {".".join(file.parts) for file in files_of(code_of(stage, ROOT))}
    assert named == set(recipe["code"])


def files_of(folders: set[Path]) -> set[Path]:
    """Python files in folders, from the folder ``src`` on."""
    files = {file for folder in folders for file in folder.rglob("*.py")}
    return {file.relative_to(file.parents[file.parts[::-1].index("src") - 1]) for file in files}


def test_trainings_on_real_images_depend_on_the_same_code() -> None:
    stages = yaml.safe_load((REAL / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in ("xray", "ct", "mri"):
        folder = REAL / "any"
        training = {
            **stages["train"]["do"],
            "deps": [dep.replace("${item.modality}", name) for dep in stages["train"]["do"]["deps"]],
        }
        assert code_of(training, folder) == {code.place_of(one) for one in code.of_training(modality(name))}
        assert code_of(stages["prepare"]["do"], folder) == {code.place_of(one) for one in code.READING}


def test_a_pipeline_outside_of_the_checkout_does_not_depend_on_code(tmp_path: Path) -> None:
    found = scaffold.code_deps(tmp_path, [modality("xray")])
    assert found == {"prepare": [], "xray": [], "ensemble": []}


def stages_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)["stages"]
    return found


def test_arrays_are_made_anew_when_the_phantoms_images_change_and_its_tables_do_not(tmp_path: Path) -> None:
    """Real stages of the demo: the size of the radiographs is in no table of the cohort."""
    from small_pipeline import change, make

    pipeline = make(tmp_path / "small")
    params = yaml.safe_load((pipeline.root / "params.yaml").read_text())
    for key, value in {"phantom.patients": 16, "split.minimum_patients": dict.fromkeys(SPLITS, 0)}.items():
        change(params, key, value)
    (pipeline.root / "params.yaml").write_text(yaml.safe_dump(params))
    pipeline.run("dvc", "repro", "prepare_xray")
    cohort, manifest = (pipeline.root / "data" / name for name in COHORT_AND_MANIFEST)
    before = cohort.read_bytes(), manifest.read_bytes()
    change(params, "phantom.xray_size", [80, 96])
    (pipeline.root / "params.yaml").write_text(yaml.safe_dump(params))
    pipeline.run("dvc", "repro", "prepare_xray")
    assert cohort.read_bytes() == before[0]
    assert manifest.read_bytes() != before[1]


@pytest.mark.parametrize("name", ["xray", "ct", "mri"])
def test_what_changes_predictions_and_exports_is_among_the_params_of_their_stages(name: str) -> None:
    """The overlap of windows, say: the same weights answer otherwise with another one."""
    stages = stages_of((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    for stage in (stages[f"predict_{name}"], stages["export"]):
        assert {f"prepare.{name}", f"train.{name}"} <= set(stage["params"])
    assert "data/cohort/splits.json" in stages[f"predict_{name}"]["deps"]
    assert f"data/predictions/{name}.parquet" in stages["export"]["deps"]


def test_the_report_depends_on_where_its_ceilings_come_from() -> None:
    stage = stages_of((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["evaluate"]
    assert "data/phantom/ceilings.json" in stage["deps"] and "sources" in stage["params"]


def test_the_pipeline_of_real_images_draws_what_each_of_its_sets_has() -> None:
    found = yaml.safe_load((REAL / "dvc.yaml").read_text(encoding="utf-8"))
    drawn = {next(iter(plot)) for plot in found["plots"]}
    for name, one in yaml.safe_load((REAL / "datasets.yaml").read_text(encoding="utf-8"))["datasets"].items():
        kind, score = ("dice", "val_dice") if one["modality"] == "mri" else ("roc", "val_auc")
        assert {f"{name} loss", f"{name} {score}"} <= drawn
        assert f"{name}/reports/plots/{one['modality']}_{kind}" in drawn
    export = found["stages"]["export"]["do"]
    assert export["cmd"] == "radfuse export ${item.modality}"
    assert not [out for out in export["outs"] if "ensemble" in out]


def test_without_the_ensembles_package_there_is_neither_its_stage_nor_its_exports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_it = scaffold.dvc_yaml([modality("xray")], tmp_path)
    assert "ensemble" in stages_of(with_it) and "exports/ensemble_onnx.onnx" in with_it
    monkeypatch.setattr(scaffold, "_ensemble_commands", lambda: ())
    without = scaffold.dvc_yaml([modality("xray")], tmp_path)
    assert "ensemble" not in without and "xray_torchscript.pt" in without
