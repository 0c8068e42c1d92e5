"""The demo's own pipeline, made small, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
NOTES = Path(".dvc", "tmp", "site")
"""Where DVC notes the names of all files that it follows."""
STARTED = re.compile(r"Running stage '([^']+)'")
SMALL: dict[str, Any] = {
    "phantom.patients": 64,
    "phantom.xray_size": [64, 80],
    "phantom.ct_matrix": 64,
    "phantom.ct_slices": [16, 20],
    "phantom.mri_matrix": [24, 30],
    "split.minimum_positives": 0,
    "prepare.xray.size": [32, 32],
    "prepare.ct.size": [16, 16, 16],
    "prepare.ct.spacing_mm": [4.0, 4.0, 4.0],
    "prepare.mri.spacing_mm": [8.0, 8.0, 8.0],
    "prepare.mri.size": [32, 32, 32],
    # So that whoever is killed within an epoch goes on within it.
    "train.save_every_steps": 1,
    "train.xray.stages": [{"name": "all", "epochs": 2, "learning_rate": 1e-3}],
    "train.ct.stages": [{"name": "all", "epochs": 1, "learning_rate": 1e-3}],
    "train.mri.stages": [{"name": "all", "epochs": 1, "learning_rate": 1e-3}],
    "train.mri.patch_size": [32, 32, 32],
    "train.xray.save_every": 1,
    "train.ct.save_every": 1,
    "train.mri.save_every": 1,
    "ensemble.minimum_patients": 5,
    "ensemble.minimum_positives": 1,
    "ensemble.folds": 2,
    "evaluate.bootstrap": 50,
}
"""What the demo's params.yaml is changed to: smaller pictures and fewer of them; the networks stay."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline folder with its tools on the path.

    Attributes:
        root: the folder.
        threads: of each command; another number gives other last digits.
    """

    root: Path
    threads: int = 1

    def run(self, *command: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; expects its exit code unless that is None."""
        ran = subprocess.run(
            command, cwd=self.root, env=environment(self.threads), capture_output=True, text=True,
            timeout=1800,
        )  # fmt: skip
        assert code is None or ran.returncode == code, f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"
        return ran

    def init_dvc(self, *options: str) -> None:
        """`dvc init`, with DVC's notes kept inside as `make setup` does; they would outlive the test."""
        notes = self.root / NOTES
        self.run("env", f"DVC_SITE_CACHE_DIR={notes}", "dvc", "init", *options, "--quiet")
        notes.mkdir(parents=True, exist_ok=True)
        notes.chmod(0o700)
        own = f"[core]\n    site_cache_dir = {notes}\n"
        (self.root / ".dvc" / "config.local").write_text(own, encoding="utf-8")

    def repro(self) -> dict[str, float]:
        """`dvc repro`; returns the seconds of each stage that it ran."""
        seconds: dict[str, float] = {}
        told: list[str] = []
        stage, since = "", time.monotonic()
        with subprocess.Popen(
            ["dvc", "repro"], cwd=self.root, env=environment(self.threads), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        ) as running:  # fmt: skip
            for line in running.stdout or ():
                told.append(line)
                if started := STARTED.match(line):
                    seconds[stage] = time.monotonic() - since
                    stage, since = started[1], time.monotonic()
        assert running.returncode == 0, "".join(told)
        seconds[stage] = time.monotonic() - since
        return {name: taken for name, taken in seconds.items() if name}


def environment(threads: int = 1) -> dict[str, str]:
    """The variables of `make`: tools of this environment, nothing sent anywhere; and a number of threads."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
    own["OMP_NUM_THREADS"] = str(threads)
    return {key: value for key, value in os.environ.items() if key != "RADFUSE_WORK_ROOT"} | own


def change(params: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *above, last = key.split(".")
    for name in above:
        params = params.setdefault(name, {})
    params[last] = value


def stages() -> dict[str, Any]:
    """The demo's stages by name."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return found


def make(folder: Path, changes: Mapping[str, Any] | None = None, threads: int = 1) -> Pipeline:
    """A small pipeline like the demo's in an empty folder, with a DVC of its own."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key, value in {**SMALL, **(changes or {})}.items():
        change(params, key, value)
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", folder)
    for code in {
        dep for stage in stages().values() for dep in stage.get("deps", ()) if dep.startswith("packages/")
    }:
        # Some lie inside each other: a stage depends on a part of the engine, another on all of it.
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / code, folder / code, ignore=ignored, dirs_exist_ok=True)
    made = Pipeline(folder, threads)
    made.init_dvc("--no-scm")
    return made


def with_cohort_of(finished: Pipeline, folder: Path) -> Pipeline:
    """A small pipeline that has images and cohort of another one, and nothing that was made of them."""
    made = make(folder, threads=finished.threads)
    lock = yaml.safe_load((finished.root / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"] = {name: lock["stages"][name] for name in ("phantom", "cohort")}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")
    for name in ("phantom", "cohort", "private"):
        shutil.copytree(finished.root / "data" / name, folder / "data" / name)
    return made
