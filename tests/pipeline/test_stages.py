"""The stages that `radfuse init` writes: those of the demo, and what they depend on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from radfuse.engine import code, config, scaffold, workfolder
from radfuse.engine.modality import modality

ROOT = Path(__file__).parents[2]
REAL = ROOT / "pipelines" / "real_samples"
MODALITIES = ("xray", "ct", "mri")
SPLITS = ("train", "val", "calibration", "test")
COHORT_AND_MANIFEST = ("cohort/cohort.parquet", "prepared/xray/manifest.json")


def test_the_demo_has_the_stages_that_init_writes_and_the_phantom() -> None:
    modalities = [modality(name) for name in MODALITIES]
    made = scaffold.dvc_yaml(modalities, ROOT, ["data/phantom"], phantom=True)
    assert (ROOT / "dvc.yaml").read_text(encoding="utf-8") == made


def code_of(stage: dict[str, Any], folder: Path) -> set[Path]:
    """Folders of code among a stage's dependencies."""
    return {(folder / dep).resolve() for dep in stage.get("deps", ()) if "packages/" in dep}


def named(stage: dict[str, Any]) -> set[str]:
    """The same by their names, as ``engine/training``."""
    return {path.as_posix().partition("/src/radfuse/")[2] for path in code_of(stage, ROOT)}


def of_modality(found: Any, name: str) -> Any:
    """A stage of the pipeline of real images, as it is for a set of one modality."""
    text: str = yaml.safe_dump(found)
    return yaml.safe_load(text.replace("${item.modality}", name))


OWN = "(its own)"
CODE: dict[str, set[str]] = {
    "phantom": {"phantom"},
    "cohort": {"engine", "serving/images"},
    "prepare": {"engine/preparing", "engine/sources", "serving/images", "serving/preprocess", OWN},
    "train": {"engine/training", "serving/preprocess", OWN},
    "predict": {"engine", "serving/preprocess", OWN},
    "ensemble": {"engine", "ensemble"},
    "evaluate": {"engine"},
    "export": {"engine", "serving", "ensemble", *MODALITIES},
}
"""What the results of a stage come from."""


@pytest.mark.parametrize("kind", CODE)
def test_a_stage_depends_on_the_code_that_its_results_come_from(kind: str) -> None:
    stages = stages_of((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    for name in MODALITIES if OWN in CODE[kind] else [""]:
        stage = stages[f"{kind}_{name}" if name else kind]
        assert named(stage) == {name if one == OWN else one for one in CODE[kind]}


@pytest.mark.parametrize("kind", sorted(CODE.keys() - {"ensemble", "phantom"}))
def test_stages_on_real_images_depend_on_the_same_code(kind: str) -> None:
    """Each set has one modality, and so no ensemble; none is made up."""
    stage = yaml.safe_load((REAL / "dvc.yaml").read_text(encoding="utf-8"))["stages"][kind]["do"]
    for name in MODALITIES:
        of_name = code.of_stages([modality(name)])
        names = of_name[f"{kind}_{name}" if OWN in CODE[kind] else kind]
        assert code_of(of_modality(stage, name), REAL / "any") == {code.place_of(one) for one in names}


@pytest.mark.parametrize(
    ("changed", "anew", "spared"),
    [
        ("engine/evaluation/results.py", {"evaluate"}, {"prepare_xray", "train_xray"}),
        ("engine/metrics.py", {"evaluate", "ensemble"}, {"train_xray"}),
        ("engine/calibration.py", {"predict_xray", "predict_ct", "predict_mri"}, {"train_xray"}),
        ("engine/folds.py", {"ensemble"}, {"train_mri"}),
        ("engine/export/onnx.py", {"export"}, {"prepare_ct", "train_ct"}),
        ("engine/sources/table.py", {"cohort", "prepare_xray"}, {"train_xray"}),
        ("engine/preparing/decoding.py", {"prepare_mri"}, {"train_mri"}),
        ("serving/images/dicom.py", {"cohort", "prepare_ct", "export"}, {"train_ct"}),
        ("serving/sliding_window.py", {"export"}, {"prepare_mri", "train_mri"}),
        ("ensemble/fitting.py", {"ensemble", "export"}, {"evaluate", "train_xray"}),
        ("xray/network.py", {"train_xray", "predict_xray", "export"}, {"train_ct", "prepare_ct"}),
    ],
)
def test_a_changed_file_makes_the_stages_anew_that_use_it_and_no_training_that_does_not(
    changed: str, anew: set[str], spared: set[str]
) -> None:
    file = ROOT / "packages" / changed.partition("/")[0] / "src" / "radfuse" / changed
    assert file.is_file()
    stages = stages_of((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    found = {name for name, stage in stages.items() if code_of(stage, ROOT).intersection(file.parents)}
    assert anew <= found and not spared & found


def test_no_stage_names_a_folder_of_code_inside_another() -> None:
    for stage in stages_of((ROOT / "dvc.yaml").read_text(encoding="utf-8")).values():
        places = code_of(stage, ROOT)
        assert not [path for path in places if places.intersection(path.parents)]


def test_dvc_finds_changed_what_uses_changed_code_and_nothing_for_caches_and_times(tmp_path: Path) -> None:
    """The demo's stages with their code alone: they do nothing, and DVC follows them all the same."""
    from small_pipeline import make, stages

    pipeline = make(tmp_path / "small")
    shutil.copy(ROOT / ".dvcignore", pipeline.root)
    bare = {
        name: {"cmd": "true", "deps": [dep for dep in stage["deps"] if dep.startswith("packages/")]}
        for name, stage in stages().items()
        if "deps" in stage
    }
    (pipeline.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": bare}))
    pipeline.run("dvc", "repro", "--quiet")
    engine = pipeline.root / "packages" / "engine" / "src" / "radfuse" / "engine"
    (engine / "evaluation" / "__pycache__").mkdir()
    (engine / "evaluation" / "__pycache__" / "results.cpython-311.pyc").write_bytes(b"compiled")
    os.utime(engine / "metrics.py", (0, 0))
    assert json.loads(pipeline.run("dvc", "status", "--json").stdout) == {}
    with (engine / "evaluation" / "results.py").open("a") as stream:
        stream.write("MENDED = True\n")
    found = set(json.loads(pipeline.run("dvc", "status", "--json").stdout))
    predicting = {f"predict_{name}" for name in MODALITIES}
    assert found == {"cohort", *predicting, "ensemble", "evaluate", "export"}


@pytest.mark.parametrize("name", MODALITIES)
def test_a_training_stage_depends_on_what_its_work_folder_is_named_by(name: str) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][f"train_{name}"]
    found, params = modality(name), config.load(ROOT / "params.yaml")
    assert {"seed", f"prepare.{name}", f"train.{name}"} <= set(stage["params"])
    assert f"data/prepared/{name}/learnt.json" in stage["deps"]
    recipe = workfolder.recipe_of(params, found, params.train_of(found), "digest")
    files = {".".join(file.parts) for file in files_of(code_of(stage, ROOT))}
    assert files == set(recipe["code"])
    assert not [file for file in files if file.startswith("radfuse.serving.images")]


def files_of(folders: set[Path]) -> set[Path]:
    """Python files in folders, from the folder ``src`` on."""
    files = {file for folder in folders for file in folder.rglob("*.py")}
    return {file.relative_to(file.parents[file.parts[::-1].index("src") - 1]) for file in files}


def test_the_line_endings_of_a_checkout_change_no_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, ending in {"lf": b"\n", "crlf": b"\r\n"}.items():
        package = tmp_path / f"ends_in_{name}"
        package.mkdir()
        (package / "__init__.py").write_bytes(b"first = 1" + ending + b"second = 2" + ending)
        (tmp_path / f"alone_in_{name}.py").write_bytes(b"third = 3" + ending)
    digests = [list(code.digests(f"ends_in_{name}", f"alone_in_{name}").values()) for name in ("lf", "crlf")]
    assert digests[0] == digests[1] and len(set(digests[0])) == 2


def test_a_pipeline_outside_of_the_checkout_does_not_depend_on_code(tmp_path: Path) -> None:
    found = scaffold.code_deps(tmp_path, [modality("xray")])
    stages = ["cohort", "prepare_xray", "train_xray", "predict_xray", "ensemble", "evaluate", "export"]
    assert found == {stage: [] for stage in ["phantom", *stages]}


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
    monkeypatch.setattr(scaffold, "_commands", lambda name: ())
    without = scaffold.dvc_yaml([modality("xray")], tmp_path)
    assert "ensemble" not in without and "xray_torchscript.pt" in without
