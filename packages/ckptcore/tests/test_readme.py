"""The README's code does what the README says: in this environment, and alone in a fresh one."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
CONSTRAINTS = PACKAGE.parents[1] / "constraints.txt"
BLOCKS = re.findall(
    r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
)


def run(python: Path | str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def listed(python: Path | str, folder: Path) -> list[str]:
    result = subprocess.run(
        [str(Path(python).with_name("ckpt")), "list", "run1"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_ten_lines_are_ten_beside_the_model_and_its_optimizer() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    given = [line for line in lines if line.startswith(("model = ", "optimizer = "))]
    assert len(given) == 2 and len(lines) - len(given) == 10
    assert not any(";" in line for line in lines)


def test_ten_lines_train_and_a_second_run_finds_nothing_left_to_do(tmp_path: Path) -> None:
    first = run(sys.executable, BLOCKS[0], tmp_path)
    assert first.returncode == 0, first.stderr
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run1").glob("*.pt")}
    assert {"best.pt", "latest.pt", "final.pt", "epoch_18.pt", "epoch_19.pt", "epoch_20.pt"} == set(before)
    assert any("epoch_20" in line for line in listed(sys.executable, tmp_path))
    second = run(sys.executable, BLOCKS[0], tmp_path)
    assert second.returncode == 0, second.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run1").glob("*.pt")} == before


def test_the_other_examples_run_as_they_stand(tmp_path: Path) -> None:
    setting_up = "import torch, ckptcore\nmodel = torch.nn.Linear(8, 1)\n"
    result = run(sys.executable, setting_up + "\n".join(BLOCKS[1:]), tmp_path)
    assert result.returncode == 0, result.stderr
    (run_folder,) = (tmp_path / "data" / "checkpoints" / "lesions" / "binary").iterdir()
    assert run_folder.name.endswith("_convnext_bce")
    assert {path.name for path in run_folder.iterdir() if not path.name.startswith(".")} == {
        *("best-epoch00-val_f1-0.710.ckpt", "config.json", "training_summary.json"),
    }


@pytest.mark.slow
def test_a_fresh_environment_with_the_package_alone_runs_the_ten_lines(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), str(PACKAGE)],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    unreachable = ("Temporary failure in name resolution", "NewConnectionError", "Network is unreachable")
    if installed.returncode and any(sign in installed.stderr for sign in unreachable):
        pytest.skip(f"no package index can be reached: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    result = run(python, BLOCKS[0], tmp_path)
    assert result.returncode == 0, result.stderr
    assert any("epoch_20" in line for line in listed(python, tmp_path))
    frozen = subprocess.run(
        [str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    assert not re.search(r"(?im)^(monai|pydicom|nibabel|lightning|mlflow)\b", frozen)
