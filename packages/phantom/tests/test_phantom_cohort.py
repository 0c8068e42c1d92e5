"""A cohort is the same bytes each time, whole after a kill, and never overwrites what it did not write."""

import csv
import errno
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from radfuse.phantom import ForeignFolder, PhantomError, folder, patient, tables, write
from radfuse.phantom.diseases import DISEASES, FINDINGS, MODALITIES

README = Path(__file__).parents[1] / "README.md"
IDS = ["original_patient_id", "accession_number"]


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def files_of(folder, number):
    return patient.there(folder, number)["files"].keys()


def of_patient(folder, number):
    assert patient.finished(folder, number) is not None
    return {name: digests(folder)[name] for name in files_of(folder, number)}


def test_same_seed_gives_the_same_bytes_with_any_number_of_processes(tmp_path, cohort, small):
    report = write(tmp_path / "again", small.model_copy(update={"workers": 2}))
    assert digests(tmp_path / "again") == digests(cohort)
    assert report.written == report.patients == 10
    names = digests(cohort)
    assert report.files == sum(name.endswith((".dcm", ".nii.gz")) for name in names)


def test_another_seed_gives_other_people_and_other_pictures(tmp_path, cohort, small):
    write(tmp_path / "other", small.model_copy(update={"seed": 6, "patients": 2}))
    before, after = (pd.read_csv(folder / "patients.csv") for folder in (cohort, tmp_path / "other"))
    assert not set(before.original_patient_id) & set(after.original_patient_id)


def test_a_patient_is_the_same_in_a_cohort_that_begins_elsewhere(tmp_path, cohort, small):
    write(tmp_path / "later", small.model_copy(update={"patients": 2, "first_patient": 4}))
    for number in (4, 5):
        assert of_patient(tmp_path / "later", number) == of_patient(cohort, number)
    rows = pd.read_csv(cohort / "patients.csv").iloc[4:6].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "later/patients.csv"), rows)


def test_a_cohort_grows_without_touching_finished_patients_and_shrinks_again(tmp_path, cohort, small):
    few = small.model_copy(update={"patients": 3})
    write(tmp_path / "c", few)
    first = digests(tmp_path / "c")
    report = write(tmp_path / "c", few.model_copy(update={"patients": 5}))
    assert (report.written, report.kept) == (2, 3)
    report = write(tmp_path / "c", few)
    assert (report.written, report.kept) == (0, 3)
    assert digests(tmp_path / "c") == first


def test_other_settings_replace_all_patients(tmp_path, small):
    write(tmp_path / "c", small.model_copy(update={"patients": 3}))
    changed = small.model_copy(update={"patients": 2, "ct_matrix": 48})
    assert write(tmp_path / "c", changed).written == 2
    write(tmp_path / "fresh", changed)
    assert digests(tmp_path / "c") == digests(tmp_path / "fresh")


def zeroed(path):
    """As a power cut may leave a file that was not synced: its size is there, what was in it is not."""
    path.write_bytes(bytes(path.stat().st_size))


HARMS = {"removed": Path.unlink, "truncated": lambda path: os.truncate(path, 100), "zeroed": zeroed}


def times_of_images(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".dcm", ".gz")}


@pytest.mark.parametrize("kind", ["xray/*/*.dcm", "ct/*/*/*.dcm", "mri/*/*.nii.gz"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_patient_whose_file_is_damaged_is_written_anew_and_the_others_are_kept(
    tmp_path, cohort, small, harm, kind
):
    out = shutil.copytree(cohort, tmp_path / "c")
    before = times_of_images(out)
    victim = sorted(out.glob(kind))[-1]
    (owner,) = (n for n in small.numbers if victim.relative_to(out).as_posix() in files_of(out, n))
    HARMS[harm](victim)
    report = write(out, small)
    assert (report.written, report.kept) == (1, 9)
    assert digests(out) == digests(cohort)
    after = times_of_images(out)
    assert {path for path in before if after[path] != before[path]} == {out / n for n in files_of(out, owner)}


def test_several_processes_find_a_file_of_zeros_too(tmp_path, cohort, small):
    out = shutil.copytree(cohort, tmp_path / "c")
    zeroed(next(out.glob("ct/*/*/*.dcm")))
    report = write(out, small.model_copy(update={"workers": 2}))
    assert (report.written, report.kept) == (1, 9)
    assert digests(out) == digests(cohort)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_record_makes_its_patient_anew_or_where_the_patient_goes_everything(
    tmp_path, cohort, small, harm
):
    out = shutil.copytree(cohort, tmp_path / "c")
    HARMS[harm](patient.record_path(out, 9))
    assert write(out, small).written == 1
    assert digests(out) == digests(cohort)
    HARMS[harm](patient.record_path(out, 9))
    few = small.model_copy(update={"patients": 2})
    # A removed record leaves nothing to go by; of a damaged one it is known that files lie about.
    assert write(out, few).kept == (2 if harm == "removed" else 0)


def command(out, workers, patients):
    settings = {"workers": workers, "seed": 5, "xray_size": [64, 80], "ct_matrix": 64}
    settings |= {"ct_slices": [10, 14], "mri_matrix": [30, 36]}
    arguments = [f"--set=phantom.{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "radfuse.phantom", f"--out={out}", f"--patients={patients}", *arguments]


def begin(out, workers, patients=40, before=(), environment=None):
    return subprocess.Popen(
        [*before, *command(out, workers, patients)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=out.parent,
        env=environment,
    )


def wait_for_records(out, process, count):
    limit = time.monotonic() + 60
    while len(list((out / patient.RECORDS).glob("*.json"))) < count:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[0].decode()
        time.sleep(0.005)


def test_a_killed_call_is_finished_by_the_next_one_with_the_same_bytes(tmp_path, cohort, small):
    out = tmp_path / "c"
    process = begin(out, workers=1)
    wait_for_records(out, process, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert json.loads((out / "phantom.json").read_text())["complete"] is False
    report = write(out, small)
    assert report.kept >= 3
    assert digests(out) == digests(cohort)


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    process = begin(tmp_path / "c", 2, patients=400)
    wait_for_records(tmp_path / "c", process, 2)
    os.kill(process.pid, signal.SIGKILL)
    # The pipe closes when the last process that holds it has ended.
    process.communicate(timeout=30)


PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:])"
LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's end"
)


def begin_with_a_parent(out, environment):
    """A call with two processes, started by a process that does nothing else; the group is its number."""
    return begin(out, 2, patients=400, before=(sys.executable, "-c", PARENT), environment=environment)


@LINUX
def test_under_dvc_a_call_ends_with_its_parent_and_the_next_one_goes_on_at_once(tmp_path, cohort, small):
    out = tmp_path / "c"
    parent = begin_with_a_parent(out, {**os.environ, "DVC_STAGE": "phantom"})
    try:
        wait_for_records(out, parent, 2)
        os.kill(parent.pid, signal.SIGKILL)
        report = write(out, small)
        # The pipe closes when the last process that holds it has ended.
        assert b"400 of 400" not in parent.stdout.read()
    finally:
        end_group(parent)
    assert report.kept >= 2
    assert digests(out) == digests(cohort)


def test_without_dvc_a_call_outlives_its_parent(tmp_path):
    out = tmp_path / "c"
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    parent = begin_with_a_parent(out, environment)
    try:
        wait_for_records(out, parent, 2)
        os.kill(parent.pid, signal.SIGKILL)
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
        known = len(list((out / patient.RECORDS).glob("*.json")))
        limit = time.monotonic() + 60
        while len(list((out / patient.RECORDS).glob("*.json"))) < known + 10:
            assert time.monotonic() < limit
            time.sleep(0.005)
    finally:
        end_group(parent)


def end_group(process):
    """End what is left of the group that a process began; it was not waited for, so the number is its own."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_worker_is_reported_and_finished_patients_are_kept(tmp_path, small):
    def kill_one(done, of):
        if done == 2:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    settings = small.model_copy(update={"workers": 2})
    with pytest.raises(PhantomError, match="fewer of them"):
        write(tmp_path / "c", settings, kill_one)
    assert sum(patient.finished(tmp_path / "c", number) is not None for number in settings.numbers) >= 2


def test_a_folder_of_somebody_else_is_refused_and_stays_as_it_is(tmp_path, small):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(ForeignFolder, match=r"did not write.*--out"):
        write(tmp_path, small)
    assert digests(tmp_path).keys() == {"thesis.txt"}
    with pytest.raises(ForeignFolder, match="is a file"):
        write(tmp_path / "thesis.txt", small)


def test_a_folder_whose_first_stamp_a_killed_call_did_not_finish_is_gone_on_with(tmp_path, cohort, small):
    out = tmp_path / "c"
    out.mkdir()
    tables.beside(out / "phantom.json").write_bytes(b'{"form')
    write(out, small)
    assert digests(out) == digests(cohort)


def test_a_second_call_on_a_folder_that_is_being_written_waits_and_goes_on(tmp_path, cohort, small):
    out, told = tmp_path / "c", []
    process = begin(out, 1, patients=400)

    def say(line):
        told.append(line)
        os.killpg(process.pid, signal.SIGKILL)

    try:
        wait_for_records(out, process, 1)
        assert write(out, small, say=say).kept >= 1
    finally:
        end_group(process)
    assert len(told) == 1 and "waiting for it to end, for 60 s at most" in told[0]
    assert digests(out) == digests(cohort)


def test_a_second_call_is_refused_when_the_first_does_not_end(tmp_path, small, monkeypatch):
    monkeypatch.setattr(folder, "LONGEST_WAIT", 0.1)
    (tmp_path / "c").mkdir()
    with FileLock(tmp_path / "c" / ".lock"), pytest.raises(ForeignFolder, match="another call is still"):
        write(tmp_path / "c", small)
    assert write(tmp_path / "c", small.model_copy(update={"patients": 1})).written == 1


def test_a_full_disk_says_what_to_do_and_loses_no_finished_patient(tmp_path, small, monkeypatch):
    original, count = patient.write, iter(range(100))

    def fails_at_third(*arguments):
        if next(count) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(*arguments)

    monkeypatch.setattr(patient, "write", fails_at_third)
    settings = small.model_copy(update={"patients": 4})
    with pytest.raises(PhantomError, match=r"No space left.*finished patients are kept"):
        write(tmp_path / "c", settings)
    monkeypatch.undo()
    assert write(tmp_path / "c", settings).kept == 2


def remount(disk, options):
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cohort_that_filled_its_disk_is_finished_on_a_larger_one(small_disk, cohort, small, workers):
    settings = small.model_copy(update={"workers": workers})
    with pytest.raises(PhantomError, match=r"No space left.*finished patients are kept"):
        write(small_disk / "c", settings)
    finished = sum(patient.finished(small_disk / "c", number) is not None for number in range(10))
    assert 1 <= finished < 10
    remount(small_disk, "size=64m")
    assert write(small_disk / "c", settings).kept == finished
    assert digests(small_disk / "c") == digests(cohort)


def test_a_cohort_on_a_read_only_disk_says_so_and_is_finished_when_it_may_be_written(
    small_disk, cohort, small
):
    remount(small_disk, "size=64m")
    write(small_disk / "c", small.model_copy(update={"patients": 2}))
    remount(small_disk, "ro")
    with pytest.raises(PhantomError, match="Read-only file system"):
        write(small_disk / "c", small)
    remount(small_disk, "rw")
    assert write(small_disk / "c", small).kept == 2
    assert digests(small_disk / "c") == digests(cohort)


def test_progress_is_told_up_to_the_last_patient(tmp_path, small):
    told = []
    write(tmp_path / "c", small.model_copy(update={"patients": 2}), lambda done, of: told.append((done, of)))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_tables_have_the_columns_that_the_readme_names(cohort):
    text = README.read_text(encoding="utf-8")
    for name, path in tables.CSV_FILES.items():
        with open(cohort / path, encoding="utf-8", newline="") as file:
            header = next(csv.reader(file))
        assert header == list(tables.COLUMNS[name])
        (line,) = re.findall(rf"^\| `{re.escape(path)}` \|.*$", text, re.MULTILINE)
        stated = [column for column in re.findall(r"`([a-z_]+)`", line) if column in header]
        general = [c for c in header if not c.startswith("disease:") and c not in FINDINGS]
        assert stated == general, f"{path}: the README names other columns"


def test_tables_agree_with_each_other_and_with_the_files(cohort):
    people = pd.read_csv(cohort / "patients.csv")
    studies = {name: pd.read_csv(cohort / tables.CSV_FILES[name]) for name in MODALITIES}
    together = pd.concat(studies.values())
    assert together.accession_number.is_unique
    assert set(together.original_patient_id) == set(people.original_patient_id)
    assert all((cohort / path).exists() for path in together.path)
    found = {path.parent.as_posix() for path in cohort.glob("mri/*/*.nii.gz")}
    assert found == {(cohort / path).as_posix() for path in studies["mri"].path}
    assert len(list(cohort.glob("xray/*/*.dcm"))) == len(studies["xray"])
    assert len(list(cohort.glob("ct/*/*/*.dcm"))) == studies["ct"].slices.sum()
    positions = pd.read_csv(cohort / "ct/nodules.csv")
    assert set(positions.accession_number) == set(studies["ct"].accession_number)
    born = pd.to_datetime(people.set_index("original_patient_id").birth_date)
    days = (pd.to_datetime(together.study_date) - born[together.original_patient_id].to_numpy()).dt.days
    assert np.abs(days / 365.25 - together.age_years).max() < 1.01


def test_truth_holds_what_the_tables_report(cohort):
    truth = pd.read_parquet(cohort / "truth.parquet")
    xray = pd.read_csv(cohort / "xray/studies.csv")
    true = truth.set_index("accession_number").loc[xray.accession_number]
    assert (
        true[[f"finding:{name}" for name in FINDINGS]].to_numpy() == xray[list(FINDINGS)].to_numpy()
    ).all()
    people = pd.read_csv(cohort / "patients.csv").set_index("original_patient_id")
    for disease in DISEASES:
        column = f"disease:{disease.name}"
        assert (truth[column].to_numpy() == people.loc[truth.original_patient_id, column].to_numpy()).all()
        shown = truth[f"expression:{disease.name}"].notna()
        assert set(truth.modality[shown]) == set(truth.modality) & set(disease.shows_in)
    nodules = pd.read_parquet(cohort / "truth_nodules.parquet")
    stated = pd.read_csv(cohort / "ct/nodules.csv")
    pd.testing.assert_frame_equal(
        nodules[[*IDS, "nodule", "malignant"]], stated[[*IDS, "nodule", "malignant"]]
    )
    assert pq.read_schema(cohort / "truth.parquet").names == list(tables.COLUMNS["truth"])


def test_ceilings_file_names_no_patient_and_holds_the_computed_values(cohort, small):
    from radfuse.phantom import ceilings

    text = (cohort / "ceilings.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(ceilings.report(small.incomplete)))
    assert not any(identity in text for identity in pd.read_csv(cohort / "patients.csv").original_patient_id)
