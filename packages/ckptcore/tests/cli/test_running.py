import json
import subprocess
import sys

import pytest
from trained_folders import flip_tensor

import ckptcore

SETTING = "[tool.ckptcore]\nresume_command = {}\n"
TRAINING = """
import json, os, sys
json.dump({"arguments": sys.argv[1:], "folder": os.getcwd()}, open("started.json", "w"))
sys.exit(7)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a training script, entered in a folder below its pyproject.toml."""
    (tmp_path / "train.py").write_text(TRAINING)
    command = [sys.executable, "train.py", "--resume", "{checkpoint}", "--out={directory}"]
    (tmp_path / "pyproject.toml").write_text(SETTING.format(json.dumps(command)))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def resume(*arguments):
    """`ckpt resume` in a process of its own, which the training takes over."""
    command = [sys.executable, "-c", "from ckptcore.cli import main; main()", "resume", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def started(project):
    return json.loads((project / "started.json").read_text())


def test_row_5_4_resume_starts_the_training_on_the_latest_checkpoint(project, trained):
    ran = resume(trained)
    assert ran.returncode == 7, ran.stderr
    assert started(project) == {
        "arguments": ["--resume", str(trained / "latest.pt"), f"--out={trained}"],
        "folder": str(project),
    }
    assert "train.py --resume" in ran.stderr and "verified" in ran.stderr


@pytest.mark.parametrize("given", ["epoch_2.pt", "../run/epoch_2.pt"])
def test_row_5_4_resume_takes_a_name_in_the_folder_or_a_path(project, trained, given):
    assert resume("../run", given).returncode == 7
    assert started(project)["arguments"][1] == str(trained / "epoch_2.pt")


def test_resume_prefers_a_name_in_the_folder_to_the_same_name_here_as_the_manager_does(project, trained):
    ckptcore.save("epoch_2.pt", {"epoch": 0})
    assert resume(trained, "epoch_2.pt").returncode == 7
    assert started(project)["arguments"][1] == str(trained / "epoch_2.pt")


def test_resume_does_not_start_on_a_damaged_file(project, trained):
    flip_tensor(trained / "epoch_2.pt", 0.70)
    ran = resume(trained, "epoch_2.pt")
    assert ran.returncode == 1 and "tensor model_state_dict/w" in ran.stderr
    assert not (project / "started.json").exists()


def test_resume_goes_past_a_damaged_latest(project, trained):
    for name in ("latest.pt", "final.pt", "epoch_6.pt"):
        flip_tensor(trained / name, 0.70)
    assert resume(trained).returncode == 7
    assert started(project)["arguments"][1] == str(trained / "epoch_5.pt")


def test_resume_dry_run_starts_nothing(project, trained, ckpt):
    ran = ckpt("resume", trained, "--dry-run")
    assert ran.code == 0 and str(trained / "latest.pt") in ran.err and not (project / "started.json").exists()


def test_resume_of_an_empty_folder_is_a_finding(project, ckpt, tmp_path):
    ran = ckpt("resume", project / "below")
    assert ran.code == 1 and "no checkpoint" in ran.err


def test_resume_with_a_file_that_is_not_there_is_wrong_usage(project, trained, ckpt):
    ran = ckpt("resume", trained, "epoch_99.pt")
    assert ran.code == 2 and "epoch_99.pt" in ran.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[project]\nname = 'x'\n", "Add:"),
        ("[tool]\nckptcore = 3\n", "Add:"),
        (SETTING.format('"python train.py {checkpoint}"'), "a list of texts"),
        (SETTING.format('["python", 3]'), "a list of texts"),
        (SETTING.format("[]"), "a list of texts"),
        (SETTING.format('["python", "train.py"]'), "has no {checkpoint}"),
        ("[tool", "no TOML"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_wrong_usage_with_the_lines_to_add(
    project, trained, ckpt, text, told
):
    (project / "pyproject.toml").write_text(text)
    ran = ckpt("resume", trained)
    assert ran.code == 2 and told in ran.err
    if told != "no TOML":
        assert 'resume_command = ["python", "train.py", "--resume", "{checkpoint}"]' in ran.err


def test_without_a_pyproject_the_lines_to_write_are_shown(project, trained, ckpt):
    (project / "pyproject.toml").unlink()
    ran = ckpt("resume", trained)
    assert ran.code == 2 and "no pyproject.toml" in ran.err and "    [tool.ckptcore]" in ran.err


def test_a_program_that_does_not_exist_is_wrong_usage(project, trained):
    (project / "pyproject.toml").write_text(SETTING.format('["no-such-program", "{checkpoint}"]'))
    ran = resume(trained)
    assert (
        ran.returncode == 2
        and "cannot start 'no-such-program'" in ran.stderr
        and "Traceback" not in ran.stderr
    )


def test_braces_in_paths_are_not_filled_in_twice(project, trained):
    odd = trained.rename(trained.parent / "{directory}")
    assert resume(odd).returncode == 7
    assert started(project)["arguments"] == ["--resume", str(odd / "latest.pt"), f"--out={odd}"]
