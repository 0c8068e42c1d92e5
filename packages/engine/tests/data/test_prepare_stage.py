import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from dying import die_on_odd_ones
from filelock import FileLock
from killed_stage import check_nothing_is_left
from pipelines import MR_VOLUME, RADIOGRAPH, Pipeline, Toy, xray_table
from volumes import write_case, write_nifti, write_series

from radfuse.engine import freshness
from radfuse.engine.errors import MissingStage, SettingsError, StaleError, TooManySkipped
from radfuse.engine.preparing import decoding, stage, workers
from radfuse.engine.preparing.decoding import Finished, Job, Skipped
from radfuse.engine.preparing.journal import Journal


@pytest.fixture
def chests(pipeline: Pipeline) -> Pipeline:
    """Six radiographs of three patients, scanned and split."""
    pipeline.sources(xray_table(pipeline.root / "raw", patients=3, images_each=2))
    pipeline.cohort()
    return pipeline


def arrays(pipeline: Pipeline, modality: str = "xray") -> dict[str, int]:
    folder = pipeline.places.arrays(modality)
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


def test_manifest_and_arrays_are_as_readers_expect_them(chests: Pipeline) -> None:
    result = chests.prepare("xray")
    prepared = chests.prepared("xray")
    rows = prepared.rows()
    assert (result.prepared, result.kept, len(rows)) == (6, 0, 6)
    assert list(rows.sample_id) == sorted(rows.sample_id)
    assert rows.spacing_mm_d.isna().all()
    assert prepared.digest == result.digest
    assert prepared.spec == RADIOGRAPH
    assert prepared.labels == ["Mass"]
    assert prepared.classes == {}
    assert sum(len(prepared.samples(name)) for name in ("train", "val", "calibration", "test")) == 6
    array = prepared.array(rows.sample_id[0])
    assert isinstance(array, np.memmap)
    assert (array.shape, array.dtype) == ((16, 16), np.uint8)


def test_what_is_learnt_from_changes_with_training_and_validation_alone(chests: Pipeline) -> None:
    def learnt() -> str:
        chests.prepare("xray")
        found = json.loads(chests.places.learnt("xray").read_text())["digest"]
        assert found == chests.prepared("xray").stamp["learnt_digest"]
        return str(found)

    cohort = pd.read_parquet(chests.places.cohort)
    cohort.loc[cohort["patient_id"] == cohort["patient_id"][0], "split"] = "test"
    cohort.to_parquet(chests.places.cohort, index=False)
    before = learnt()
    for part, same in ((["test", "calibration"], True), (["train", "val"], False)):
        changed = cohort.copy()
        changed.loc[changed["split"].isin(part), "label:Mass"] = 0.5
        assert not changed.equals(cohort)
        changed.to_parquet(chests.places.cohort, index=False)
        assert (learnt() == before) is same


def test_second_run_makes_nothing_anew_and_ends_with_the_same_digest(chests: Pipeline) -> None:
    first = chests.prepare("xray")
    before = arrays(chests)
    second = chests.prepare("xray")
    assert arrays(chests) == before
    assert (second.kept, second.digest) == (6, first.digest)


def test_array_that_was_changed_is_made_anew(chests: Pipeline) -> None:
    first = chests.prepare("xray")
    path = next(chests.places.arrays("xray").iterdir())
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"?")
    assert chests.prepare("xray").digest == first.digest
    assert path.read_bytes() == good


def test_changed_image_or_recipe_makes_arrays_anew(chests: Pipeline) -> None:
    first = chests.prepare("xray")
    other = chests.prepare("xray", {**RADIOGRAPH, "size": [8, 8]})
    assert other.digest != first.digest
    assert chests.prepared("xray").array(chests.prepared("xray").rows().sample_id[0]).shape == (8, 8)
    back = chests.prepare("xray")
    assert back.digest == first.digest
    image = chests.root / "raw" / "images" / "000_0.png"
    image.write_bytes((chests.root / "raw" / "images" / "001_0.png").read_bytes())
    assert chests.prepare("xray").digest != first.digest


def twins(pipeline: Pipeline) -> None:
    """Two sources of one list, so that everyone has two ids, and some are in two splits."""
    source = {**xray_table(pipeline.root / "raw", patients=24), "public": True}
    pipeline.sources({**source, "name": "first"}, {**source, "name": "second"})
    pipeline.cohort()


def test_images_of_two_splits_that_are_the_same_are_named(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    twins(pipeline)
    result = pipeline.prepare("xray")
    rows = pipeline.prepared("xray").rows()
    splits = rows.groupby("sha256")["split"].agg(set)
    leaked = splits[splits.map(len) > 1]
    assert pipeline.prepared("xray").stamp["twins_across_splits"] == len(leaked) > 5
    (said,) = (one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert f"LEAK? xray: {len(leaked)} prepared images are in more than one split" in said
    assert f"... and {len(leaked) - 5} more" in said
    assert "patient_namespace" in said
    lines = [line for line in said.splitlines() if line.startswith("  i")]
    assert len(lines) == 5
    known = rows.set_index("sample_id")
    for line in lines:
        one, other = (part.split(" ") for part in line.strip().split(" and "))
        assert known.loc[one[0], "sha256"] == known.loc[other[0], "sha256"]
        assert [one[1], other[1]] == [f"({known.loc[name, 'split']})" for name in (one[0], other[0])]
        assert one[1] != other[1]
    assert pipeline.prepare("xray").digest == result.digest


def test_images_of_one_split_may_be_the_same(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    source = {**xray_table(pipeline.root / "raw", patients=12), "patient_namespace": "hospital"}
    pipeline.sources({**source, "name": "first"}, {**source, "name": "second"})
    pipeline.cohort()
    pipeline.prepare("xray")
    assert pipeline.prepared("xray").stamp["twins_across_splits"] == 0
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


def test_command_warns_of_images_that_are_in_two_splits(pipeline: Pipeline) -> None:
    twins(pipeline)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pipelines import Toy\n"
        "from radfuse.engine import modality; modality.modality = Toy\n"
        "from radfuse.engine.cli import run\n"
        "sys.exit(run(['prepare', 'xray', '--params', sys.argv[2], '--set', 'prepare.workers=1']))"
    )
    words = [sys.executable, "-c", code, Path(__file__).parent / "helpers", pipeline.file]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "LEAK? xray" in ran.stderr


def relabelled(pipeline: Pipeline) -> None:
    table = pipeline.root / "raw" / "xray.csv"
    table.write_text(table.read_text().replace("000_0.png,0", "000_0.png,1"))
    pipeline.cohort()


def check(pipeline: Pipeline) -> None:
    toy = Toy("xray")
    freshness.check_prepared(pipeline.places, toy, toy.prepare_settings(), pipeline.prepared("xray"))


def test_labels_that_were_corrected_since_make_the_arrays_stale(chests: Pipeline) -> None:
    chests.prepare("xray")
    check(chests)
    relabelled(chests)
    with pytest.raises(StaleError, match=r"stale: .*label:Mass of 1 samples.*`radfuse prepare xray`"):
        check(chests)
    chests.prepare("xray")
    check(chests)


def test_samples_that_came_or_went_since_make_the_arrays_stale(chests: Pipeline) -> None:
    chests.prepare("xray")
    table = chests.root / "raw" / "xray.csv"
    whole = table.read_text()
    table.write_text("".join(line for line in whole.splitlines(keepends=True) if "001_1.png" not in line))
    chests.cohort()
    with pytest.raises(StaleError, match="1 of its samples are not in the cohort at hand"):
        check(chests)
    chests.prepare("xray")
    table.write_text(whole)
    chests.cohort()
    with pytest.raises(StaleError, match="the cohort has 1 samples that were not prepared"):
        check(chests)


def test_image_that_changed_hands_makes_the_arrays_stale(chests: Pipeline) -> None:
    """The same patients in the same splits, so that the split's digest is the same, too."""
    chests.prepare("xray")
    table = chests.root / "raw" / "xray.csv"
    table.write_text(table.read_text().replace("Patient-000,images/000_1", "Patient-001,images/000_1"))
    chests.cohort()
    with pytest.raises(StaleError, match=r"differs in patient_id of 1 samples"):
        check(chests)


def test_arrays_without_a_cohort_are_compared_with_nothing(chests: Pipeline) -> None:
    chests.prepare("xray")
    relabelled(chests)
    chests.places.cohort.unlink()
    check(chests)


def test_samples_that_could_not_be_read_do_not_make_the_arrays_stale(chests: Pipeline) -> None:
    (chests.root / "raw" / "images" / "001_1.png").write_bytes(b"nothing")
    chests.cohort()
    chests.prepare("xray", None, "prepare.max_skipped_fraction=0.2")
    check(chests)


def test_interrupted_run_keeps_what_was_finished(chests: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def stop_after_three(jobs: Sequence[Job]) -> list[Finished | Skipped]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.extend(job.sample_id for job in jobs)
        return decoding.carry_out(jobs)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "carry_out", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            chests.prepare("xray")
    assert not chests.places.manifest_stamp("xray").exists()
    before = arrays(chests)
    assert len(before) == 3
    result = chests.prepare("xray")
    assert (result.prepared, result.kept) == (6, 3)
    assert {name: time for name, time in arrays(chests).items() if name in before} == before


def test_leftovers_are_removed(chests: Pipeline) -> None:
    chests.prepare("xray")
    folder = chests.places.arrays("xray")
    (folder / f"{decoding.TEMPORARY}77-i000000000000.npy").write_bytes(b"half")
    (folder / "i000000000000.npy").write_bytes(b"of a patient who is gone")
    chests.prepare("xray")
    assert len(arrays(chests)) == 6


def test_processes_give_what_one_process_gives(chests: Pipeline) -> None:
    alone = chests.prepare("xray")
    for name in arrays(chests):
        (chests.places.arrays("xray") / name).unlink()
    together = chests.prepare("xray", None, "prepare.workers=2")
    assert (together.prepared, together.digest) == (6, alone.digest)


def children_of(process: int) -> set[int]:
    return {child.pid for child in psutil.Process(process).children(recursive=True)}


def at_work(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("whom", ["the group", "the parent alone"])
def test_killed_run_leaves_nobody_behind_and_the_next_one_finishes(
    pipeline: Pipeline, tmp_path: Path, whom: str
) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=60))
    pipeline.cohort()
    script = tmp_path / "prepare.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent / 'helpers')!r})\n"
        + pipeline.script("prepare('xray', None, 'prepare.workers=2')")
    )
    running = subprocess.Popen([sys.executable, script], start_new_session=True)
    journal = pipeline.places.data / "prepared" / ".xray.journal.jsonl"
    while running.poll() is None and not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.005)
    children = children_of(running.pid) if running.poll() is None else set()
    if whom == "the group":
        os.killpg(running.pid, signal.SIGKILL)
    else:
        running.kill()
    running.wait()
    until = time.monotonic() + 20
    while any(map(at_work, children)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(at_work, children))
    result = pipeline.prepare("xray")
    assert result.prepared == len(arrays(pipeline)) == 60
    assert result.kept >= 1


def test_a_preparation_that_was_killed_leaves_nothing_when_it_is_made_again(chests: Pipeline) -> None:
    chests.prepare("xray")
    again = partial(chests.prepare, "xray")
    names = [".xray.journal.jsonl", "manifest.parquet"]
    check_nothing_is_left(chests.root, names, chests.script("prepare('xray')"), again)


def job_of(sample: str, file: str, folder: Path) -> Job:
    return Job(sample, "recipe", {}, {"image": Path(file)}, None, (), None, folder)


def test_samples_of_one_scan_are_made_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[list[str]] = []

    def note(jobs: Sequence[Job]) -> list[Finished | Skipped]:
        together.append([job.sample_id for job in jobs])
        return [Skipped(job.sample_id, "noted") for job in jobs]

    monkeypatch.setattr(workers, "carry_out", note)
    files = {"i0": "a.nii", "i1": "b.nii", "i2": "a.nii", "i3": "c.nii", "i4": "a.nii"}
    jobs = [job_of(name, file, tmp_path) for name, file in files.items()]
    assert len(list(workers.carry_out_all(jobs, 1))) == 5
    assert together == [["i0", "i2", "i4"], ["i1"], ["i3"]]


def test_job_that_ends_its_process_is_skipped_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "carry_out", die_on_odd_ones)
    jobs = [job_of(f"i{n}", f"{n // 2 if n > 3 else n}.nii", tmp_path) for n in range(7)]
    outcomes = {one.sample_id: one for one in workers.carry_out_all(jobs, 2)}
    assert {name for name, one in outcomes.items() if isinstance(one, Skipped)} == {"i1", "i5"}
    assert len(outcomes) == 7


def test_second_process_at_the_same_modality_waits_for_the_first(
    chests: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    chests.prepare("xray")
    lock = FileLock(chests.places.data / "prepared" / ".xray.lock", thread_local=False)

    class Listener(logging.Handler):
        """The first process, which ends as soon as it is waited for."""

        def emit(self, record: logging.LogRecord) -> None:
            lock.release()

    listener = Listener()
    logging.getLogger(stage.__name__).addHandler(listener)
    try:
        with lock:
            assert chests.prepare("xray").kept == 6
    finally:
        logging.getLogger(stage.__name__).removeHandler(listener)
    (said,) = (one.getMessage() for one in caplog.records if one.name == stage.__name__)
    assert "another process prepares xray in data/prepared/xray; waiting for it to end, 60 s" in said


def test_second_process_at_the_same_modality_gives_up_when_the_first_does_not_end(
    chests: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "LONGEST_WAIT", 0.1)
    chests.prepare("xray")
    with (
        FileLock(chests.places.data / "prepared" / ".xray.lock"),
        pytest.raises(stage.Busy, match="wait for it"),
    ):
        chests.prepare("xray")


def test_unreadable_images_are_listed_and_counted(chests: Pipeline) -> None:
    (chests.root / "raw" / "images" / "001_1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with pytest.raises(TooManySkipped, match=r"xray: 1 of 6 .*\n  images/001_1\.png: "):
        chests.prepare("xray")
    assert not chests.places.manifest_stamp("xray").exists()
    assert len(arrays(chests)) == 5
    result = chests.prepare("xray", None, "prepare.max_skipped_fraction=0.2")
    assert (result.prepared, len(result.skipped)) == (5, 1)
    (row,) = pd.read_csv(chests.places.skipped("xray")).to_dict("records")
    assert set(row) == {"sample_id", "reason"}
    assert "001_1" not in row["reason"]


def test_samples_without_files_count_as_skipped(pipeline: Pipeline) -> None:
    source = xray_table(pipeline.root / "raw", patients=4)
    (pipeline.root / "raw" / "images" / "002_0.png").unlink()
    pipeline.sources(source, prepare={"max_skipped_fraction": 0.3})
    pipeline.cohort()
    pipeline.prepare("xray")
    assert len(pd.read_csv(pipeline.places.skipped("xray"))) == 1
    assert pipeline.prepared("xray").stamp["skipped"] == 1


def test_masks_of_both_conventions_become_class_indices(pipeline: Pipeline) -> None:
    root = pipeline.root / "raw"
    write_case(root, "A_1", labels=(1, 2, 4))
    write_case(root, "B_1", labels=(1, 2, 3), modern=True)
    pipeline.sources({"kind": "brats", "root": str(root), "public": True})
    pipeline.cohort()
    pipeline.prepare("mri")
    prepared = pipeline.prepared("mri")
    assert prepared.classes == {1: "core", 2: "oedema", 3: "enhancing"}
    for name in prepared.rows().sample_id:
        mask = prepared.mask(name)
        assert mask.shape == prepared.array(name).shape[1:]
        assert np.bincount(mask.ravel())[1:].tolist() == [1, 1, 1]
    assert prepared.rows().spacing_mm_d.tolist() == [1.0, 1.0]


def test_label_that_no_convention_has_is_a_reason_to_skip(pipeline: Pipeline) -> None:
    write_case(pipeline.root / "raw", "A_1", labels=(3, 4))
    pipeline.sources({"kind": "brats", "root": "raw", "public": True})
    pipeline.cohort()
    with pytest.raises(TooManySkipped, match=r"labels 0, 1, 2, 4 or 0, 1, 2, 3, got 0, 3, 4"):
        pipeline.prepare("mri")


def test_sequences_that_the_source_does_not_have_are_named(pipeline: Pipeline) -> None:
    write_case(pipeline.root / "raw", "A_1")
    pipeline.sources({"kind": "brats", "root": "raw", "public": True})
    pipeline.cohort()
    with pytest.raises(SettingsError, match=r"called adc.*source brats are called t1, t1ce, t2, flair"):
        pipeline.prepare("mri", {**MR_VOLUME, "sequences": ["adc"]})


def test_series_with_other_files_in_its_folder_is_prepared(pipeline: Pipeline) -> None:
    root = pipeline.root / "raw"
    write_series(root / "scan", slices=20)
    (root / "scan" / "LICENSE").write_text("Free for research.")
    (root / "ct.csv").write_text("path,x,y,z\nscan,8,8,5\n")
    pipeline.sources(
        {"kind": "table", "root": "raw", "modality": "ct", "csv": "ct.csv", "point_mm": ["x", "y", "z"]}
    )
    pipeline.cohort()
    assert pipeline.prepare("ct").prepared == 1


def test_nodules_of_one_series_become_patches_of_their_own(pipeline: Pipeline) -> None:
    root = pipeline.root / "raw"
    write_series(root / "scan", slices=20)
    rows = "path,x,y,z,malignant\nscan,8,8,5,1\nscan,6,9,12,0\n"
    (root / "ct.csv").write_text(rows)
    pipeline.sources(
        {"kind": "table", "root": "raw", "modality": "ct", "csv": "ct.csv", "labels": ["malignant"],
         "point_mm": ["x", "y", "z"]}
    )  # fmt: skip
    pipeline.cohort()
    pipeline.prepare("ct")
    first, second = pipeline.prepared("ct").rows().sample_id
    assert not np.array_equal(pipeline.prepared("ct").array(first), pipeline.prepared("ct").array(second))


def test_modality_without_samples_says_so(chests: Pipeline) -> None:
    with pytest.raises(MissingStage, match="no sample of ct"):
        chests.prepare("ct")


def test_cohort_without_its_private_table_says_where_to_go(chests: Pipeline) -> None:
    chests.places.identity.unlink()
    with pytest.raises(MissingStage, match="radfuse cohort"):
        chests.prepare("xray")


def test_reading_before_the_stage_ran_says_what_to_run(pipeline: Pipeline) -> None:
    with pytest.raises(MissingStage, match="radfuse prepare xray"):
        pipeline.prepared("xray").rows()
    with pytest.raises(MissingStage, match="radfuse prepare xray"):
        _ = pipeline.prepared("xray").digest


def test_journal_survives_a_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    entry = Finished("i1", "recipe", "sha", "mask", (1.0, 2.0, 3.0))
    Journal(path).add(entry)
    with open(path, "a") as stream:
        stream.write('{"sample_id": "i2", "rec')
    assert Journal(path).find("i1", "recipe") == entry
    assert Journal(path).find("i1", "another") is None
    assert Journal(path).find("i2", "recipe") is None


def test_nifti_and_png_of_one_picture_do_not_need_each_other(pipeline: Pipeline) -> None:
    write_nifti(pipeline.root / "raw" / "cube.nii.gz", np.arange(512, dtype=np.int16).reshape(8, 8, 8))
    (pipeline.root / "raw" / "ct.csv").write_text("path,patient_id,malignant\ncube.nii.gz,P,1\n")
    pipeline.sources(
        {"kind": "table", "root": "raw", "modality": "ct", "csv": "ct.csv", "labels": ["malignant"]}
    )
    pipeline.cohort()
    pipeline.prepare("ct")
    (name,) = pipeline.prepared("ct").rows().sample_id
    assert pipeline.prepared("ct").array(name).shape == (8, 8, 8)


def test_command_prepares_and_reports(
    chests: Pipeline, radfuse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("radfuse.engine.modality.modality", lambda name: Toy(name))
    arguments = ("prepare", "xray", "--params", chests.file, "--set", "prepare.workers=1")
    ran = radfuse(*arguments)
    assert (ran.code, "6 samples of xray" in ran.out) == (0, True)
    assert "6 of them from before" in radfuse(*arguments).out
    (chests.root / "raw" / "images" / "001_1.png").write_bytes(b"nothing")
    ran = radfuse(*arguments, "--set", "prepare.max_skipped_fraction=0.5")
    assert ran.code == 0
    assert "images/001_1.png" in ran.err
