import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipelines import Pipeline, xray_table

from radfuse.engine.cli import commands

CONTRACT = (
    "init", "cohort", "prepare", "train", "predict-split", "evaluate", "export", "predict", "validate",
    "promote", "whois", "recover",
)  # fmt: skip


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_lists_the_commands_in_working_order_without_loading_them() -> None:
    out = python(
        "import sys; from radfuse.engine.cli import run; run(['--help'])\n"
        "print(sorted(set(sys.modules) & {'torch', 'pandas', 'pydantic', 'pydicom', 'monai', 'rich.table'}))"
    )
    assert out.index("  cohort ") < out.index("  prepare ") < out.index("  whois ")
    assert out.endswith("[]\n")


@pytest.mark.parametrize("command", ["init", "cohort", "whois", "prepare"])
def test_commands_of_the_data_side_do_not_import_torch(command: str, pipeline: Pipeline) -> None:
    pipeline.sources({**xray_table(pipeline.root / "raw", patients=1), "public": True})
    pipeline.cohort()
    arguments = {"init": [str(pipeline.root / "new")], "whois": ["p000000000000"], "prepare": ["xray"]}
    end = [] if command == "init" else ["--params", str(pipeline.file)]
    out = python(
        "import sys; from radfuse.engine.cli import run\n"
        f"code = run([{command!r}, *{arguments.get(command, [])!r}, *{end!r}])\n"
        "print(code, 'torch' in sys.modules)"
    )
    assert out.splitlines()[-1] == f"{int(command == 'whois')} False"


def test_every_command_of_the_contract_has_a_place() -> None:
    assert set(CONTRACT) == set(commands.COMMANDS)


def test_command_whose_module_has_not_come_is_absent(
    radfuse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        commands.COMMANDS, "later", commands.Entry("radfuse.engine.cli.later", "later", "Not yet.")
    )
    assert "later" not in radfuse("--help").out
    assert radfuse("later").code == 2


def test_commands_of_other_packages_come_by_entry_point_with_their_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, radfuse: Callable[..., Any]
) -> None:
    folder = tmp_path / "toy-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\nSummary: Does toy things.\n"
    )
    (folder / "entry_points.txt").write_text("[radfuse.commands]\ntoy = toy_command:run_toy\n")
    (tmp_path / "toy_command.py").write_text(
        "def run_toy(times: int = 1) -> None:\n    print('toy' * times)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert "Does toy things." in radfuse("--help").out
    ran = radfuse("toy", "--times", 2)
    assert (ran.code, ran.out) == (0, "toytoy\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",), ("cohort", "--nothing"), ("whois",), ("prepare",), ("prepare", "xry"),
        ("cohort", "too", "many"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(
    radfuse: Callable[..., Any],
    pipeline: Pipeline,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(pipeline.root)
    ran = radfuse(*arguments)
    assert ran.code == 2
    assert ran.err


def test_near_command_is_suggested(radfuse: Callable[..., Any]) -> None:
    assert "'cohort'" in radfuse("cohrt").err


def test_failure_of_the_settings_is_one_message_and_exit_code_2(
    radfuse: Callable[..., Any], tmp_path: Path
) -> None:
    ran = radfuse("cohort", "--params", tmp_path / "params.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("radfuse: expected the parameters in")


@pytest.mark.parametrize("arguments", [("-v", "cohort"), ("cohort", "-v"), ("cohort", "--verbose")])
def test_traceback_is_shown_when_asked_for(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command = [
        sys.executable,
        "-m",
        "radfuse.engine.cli",
        *arguments,
        "--params",
        str(tmp_path / "none.yaml"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "SettingsError" in ran.stderr


def test_system_errors_name_their_file(radfuse: Callable[..., Any], pipeline: Pipeline) -> None:
    pipeline.sources({**xray_table(pipeline.root / "raw", patients=1), "public": True})
    (pipeline.root / "data").mkdir()
    (pipeline.root / "data" / "cohort").write_text("in the way")
    ran = radfuse("cohort", "--params", pipeline.file)
    assert ran.code == 1
    assert "data/cohort" in ran.err


def test_version_is_shown(radfuse: Callable[..., Any]) -> None:
    ran = radfuse("--version")
    assert (ran.code, ran.out) == (0, f"radfuse {importlib.metadata.version('radfuse-engine')}\n")
