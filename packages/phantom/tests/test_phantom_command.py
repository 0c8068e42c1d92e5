"""The command takes settings from options, --set and params.yaml, and says plainly what is wrong in them."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from radfuse.phantom import Settings, SettingsError, patient
from radfuse.phantom.command import phantom
from radfuse.phantom.settings import load

SMALL = (
    "{xray_size: [64, 64], ct_matrix: 48, ct_slices: [8, 8], mri_matrix: [24, 24], workers: 1, patients: 2}"
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(phantom)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def params(folder, text):
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def test_params_give_the_folder_and_options_win_over_them(tmp_path, run):
    params(tmp_path, f"phantom: {SMALL[:-1]}, out: data/phantom, seed: 3}}\nsplit: {{seed: 0}}\n")
    result = run("--patients", 1, "--set", "phantom.seed=4", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["patients"] == 1
    stamp = json.loads((tmp_path / "data/phantom/phantom.json").read_text())
    assert stamp["complete"] and stamp["settings"]["seed"] == 4


def test_a_relative_folder_in_params_starts_where_params_is(tmp_path, run):
    (tmp_path / "lab").mkdir()
    file = params(tmp_path / "lab", f"phantom: {SMALL[:-1]}, out: cohort}}\n")
    assert run("--params", file, "--patients", 1).exit_code == 0
    assert (tmp_path / "lab/cohort/patients.csv").is_file()


def test_the_table_shows_counts_and_ceilings_and_no_name_reaches_the_terminal(tmp_path, run):
    params(tmp_path, f"phantom: {SMALL}\n")
    result = run("--out", "out")
    assert result.exit_code == 0, result.output
    assert "best AUC of diseases" in result.stdout and "2 of 2 patients" in result.stderr
    people = pd.read_csv(tmp_path / "out/patients.csv")
    for secret in [*people.original_patient_id, *people.patient_name, *people.birth_date]:
        assert secret not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --out DIR"),
        (("--out", "x", "--set", "phantom.patient=3"), "did you mean 'patients'?"),
        (("--out", "x", "--set", "phantom.patients=none at all"), "phantom.patients"),
        (("--out", "x", "--set", "train.epochs=3"), "expected --set phantom.key=value"),
        (("--out", "x", "--set", "phantom.xray_size=[90, 70]"), "smaller number first"),
        (("--out", "x", "--patients", "0"), "phantom.patients"),
        (("--out", "x", "--params", "nowhere.yaml"), "cannot read nowhere.yaml"),
    ],
)
def test_wrong_settings_end_with_two_and_say_what_to_do(tmp_path, run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_ends_with_one(tmp_path, run):
    (tmp_path / "thesis.txt").write_text("three years of work")
    result = run("--out", tmp_path)
    assert result.exit_code == 1
    assert "did not write" in result.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_ends_with_one_and_a_message(tmp_path, run, monkeypatch, number):
    def refused(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(patient, "write", refused)
    result = run("--out", "out", "--set", "phantom.workers=1")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"cannot write to out: {os.strerror(number)}." in result.stderr


def test_a_folder_that_cannot_be_made_ends_with_one_and_a_message(tmp_path, run):
    (tmp_path / "file").write_text("")
    result = run("--out", "file/below")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "cannot write to file/below: Not a directory" in result.stderr


def test_parameters_that_cannot_be_looked_for_end_with_one_and_name_the_file(run, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    result = run("--out", "out")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "params.yaml: Permission denied" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phantom: 3\n", "to hold keys and values"),
        ("phantom: {patients: [\n", "not valid YAML"),
        ("phantom: {colour: red}\n", "unknown setting phantom.colour; known: "),
    ],
)
def test_a_broken_params_file_is_named(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        load(params(tmp_path, text), [], {})


def test_params_without_the_block_give_the_defaults(tmp_path):
    assert load(params(tmp_path, "split: {seed: 1}\n"), [], {}) == Settings()
    assert load(params(tmp_path, ""), [], {}) == Settings()


def test_digest_follows_what_changes_patients_and_nothing_else():
    assert Settings(patients=5, first_patient=7, workers=3, out="x").digest() == Settings().digest()
    assert Settings(seed=1).digest() != Settings().digest()
    assert Settings(repeats=0.1).digest() != Settings().digest()


def test_help_is_shown_by_python_m_and_imports_no_picture_library():
    code = (
        "import sys, radfuse.phantom.command; sys.exit(any(m in sys.modules for m in ('scipy', 'pydicom')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    shown = subprocess.run(
        [sys.executable, "-m", "radfuse.phantom", "--help"], capture_output=True, text=True, check=True
    )
    assert "first_patient" in shown.stdout and "--set" in shown.stdout
