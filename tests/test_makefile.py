"""What the targets of `make` do, as `make --dry-run` tells it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = {
    "demo": None,
    "xray": "predict_xray",
    "ct": "predict_ct",
    "mri": "predict_mri",
    "ensemble": "ensemble",
    "export": "export",
}
"""Targets, and the stage up to which each goes; None: all."""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def told(*arguments: str) -> str:
    ran = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return ran.stdout


@pytest.mark.parametrize("target", STAGES)
def test_a_target_mends_what_a_kill_left_and_runs_its_branch(target: str) -> None:
    mended = r"mkdir -p \.dvc/tmp/site && chmod 700 \.dvc/tmp/site && radfuse recover --quiet"
    found = re.search(rf"^{mended} && exec dvc repro ?(\w*)$", told(target), re.MULTILINE)
    assert found is not None
    assert found[1] == (STAGES[target] or "")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert found[1] in {"", *stages}


def test_setup_keeps_the_names_that_dvc_notes_from_other_accounts() -> None:
    said = told("--always-make", "setup")
    assert "chmod 700 .dvc/tmp/site" in said
    assert f'dvc config --local core.site_cache_dir "{ROOT}/.dvc/tmp/site"' in said


def test_the_ui_shows_the_runs_of_a_pipeline_and_says_where_there_are_none(tmp_path: Path) -> None:
    assert f'cd "{tmp_path}"' in told("ui", f"PIPELINE={tmp_path}")
    # Without setup, which would build an environment where the tests run in another one.
    command = ["make", "--old-file=setup", "ui", f"PIPELINE={tmp_path}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert f"{tmp_path} has none" in ran.stderr and "make ui PIPELINE=my_pipeline" in ran.stderr
    assert not list(tmp_path.iterdir())
