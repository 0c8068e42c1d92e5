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
