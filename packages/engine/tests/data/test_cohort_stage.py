import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from killed_stage import check_nothing_is_left
from pipelines import Pipeline, write_csv, write_png, xray_table
from volumes import write_case, write_series

from ckptcore import durable
from radfuse.engine import agreement, cohort, counts, identity, split
from radfuse.engine.errors import LeakageError, MissingStage, SettingsError, SourceError, TooManySkipped
from radfuse.engine.keys import PUBLIC
from radfuse.engine.scanning import KeyChanged

NAMES = ("Patient-00", "images/", "MRN-77", "Muster", "Erika", "1970", "Case_A_1")


def two_modalities(pipeline: Pipeline) -> None:
    """Three patients with a radiograph, one of whom has a CT, too, and a brain of somebody else."""
    raw = pipeline.root / "raw"
    xray = xray_table(raw, patients=3)
    write_series(raw / "scans" / "1")
    write_csv(
        raw / "ct.csv", ("path", "patient_id", "x", "y", "z", "malignant", "copd"),
        [("scans/1", "Patient-001", 8, 8, 5, 1, 1)],
    )  # fmt: skip
    ct = {
        "kind": "table", "name": "lung", "root": "raw", "modality": "ct", "csv": "ct.csv",
        "labels": ["malignant"], "point_mm": ["x", "y", "z"], "diseases": ["copd"],
    }  # fmt: skip
    write_case(raw / "brains", "Case_A_1")
    brains = {"kind": "brats", "root": "raw/brains", "public": True}
    hospital = {"patient_namespace": "hospital"}
    pipeline.sources({**xray, "name": "chest", **hospital}, {**ct, **hospital}, brains)


def test_tables_have_the_columns_of_the_contract(pipeline: Pipeline) -> None:
    two_modalities(pipeline)
    made = pipeline.cohort()
    assert list(made.samples.columns) == [
        "patient_id", "study_id", "sample_id", "modality", "source", "split", "age_years", "sex", "view",
        "scanner_model", "site", "label:malignant", "label:Mass",
    ]  # fmt: skip
    assert list(made.patients.columns) == ["patient_id", "split", "disease:copd", "age_years", "sex", "site"]
    assert list(made.samples.modality) == ["ct", "mri", "xray", "xray", "xray"]
    assert len(made.patients) == 4
    pd.testing.assert_frame_equal(cohort.read(pipeline.places), made.samples)
    pd.testing.assert_frame_equal(cohort.read_patients(pipeline.places), made.patients)
    assert counts.labels_of(made.samples, "ct") == ["malignant"]


def test_patient_of_two_sources_with_one_namespace_is_one_patient(pipeline: Pipeline) -> None:
    two_modalities(pipeline)
    made = pipeline.cohort()
    (of_ct,) = made.samples.loc[made.samples.modality == "ct", "patient_id"]
    assert of_ct in set(made.samples.loc[made.samples.modality == "xray", "patient_id"])
    assert made.patients.set_index("patient_id").loc[of_ct, "disease:copd"] == 1
    assert made.patients["disease:copd"].isna().sum() == 3
    assert made.patients.set_index("patient_id").loc[of_ct, "sex"] == "F"


def test_references_are_columns_of_numbers_and_no_labels(pipeline: Pipeline) -> None:
    raw = pipeline.root / "raw"
    chest = {**xray_table(raw, patients=2), "name": "chest"}
    write_series(raw / "scan")
    write_csv(raw / "ct.csv", ("path", "patient_id", "size"), [("scan", "P", "7")])
    lung = {"kind": "table", "name": "lung", "root": "raw", "modality": "ct", "csv": "ct.csv"}
    pipeline.sources(chest, {**lung, "references": ["size"]})
    pipeline.cohort()
    samples = cohort.read(pipeline.places).set_index("modality")
    assert list(samples.columns)[-2:] == ["label:Mass", "reference:size"]
    assert samples["reference:size"].dtype == float
    assert samples.loc["ct", "reference:size"] == 7
    assert samples.loc["xray", "reference:size"].isna().all()
    pipeline.prepare("xray")
    assert "reference:size" not in pipeline.prepared("xray").rows().columns
    assert counts.labels_of(cohort.read(pipeline.places), "ct") == []


def test_same_sources_give_the_same_bytes(pipeline: Pipeline) -> None:
    two_modalities(pipeline)
    pipeline.cohort()
    files = sorted(path for path in pipeline.places.data.rglob("*") if path.is_file())
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    pipeline.cohort()
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in files] == before


def test_splits_json_says_what_the_split_is(pipeline: Pipeline) -> None:
    two_modalities(pipeline)
    made = pipeline.cohort("split.seed=3")
    stamp = json.loads(pipeline.places.splits.read_text())
    assigned = dict(zip(made.patients.patient_id, made.patients.split, strict=True))
    assert stamp["digest"] == split.digest(assigned)
    assert stamp["seed"] == 3
    assert stamp["classes"] == {"mri": {"1": "core", "2": "oedema", "3": "enhancing"}}
    assert sum(stamp["counts"]["xray"][name]["patients"] for name in stamp["counts"]["xray"]) == 3
    assert stamp["key_fingerprints"]["brats"] == "public"
    assert stamp["key_fingerprints"]["chest"] == stamp["key_fingerprints"]["lung"] != "public"
    assert stamp == cohort.read_stamp(pipeline.places)


def test_private_table_is_the_owners_alone_and_nothing_else_names_anybody(pipeline: Pipeline) -> None:
    two_modalities(pipeline)
    pipeline.cohort()
    table = pipeline.places.identity
    assert table.stat().st_mode & 0o777 == 0o600
    assert table.parent.stat().st_mode & 0o777 == 0o700
    for path in pipeline.places.data.rglob("*"):
        if path.is_file() and path != table:
            data = path.read_bytes()
            assert not [name for name in (*NAMES, str(pipeline.root)) if name.encode() in data], path


def test_private_table_leads_back_to_the_files(pipeline: Pipeline) -> None:
    two_modalities(pipeline)
    made = pipeline.cohort()
    (sample,) = made.samples.loc[made.samples.modality == "ct", "sample_id"]
    rows, unknown = identity.who_is(pipeline.places, [sample, "p000000000000"])
    assert unknown == ["p000000000000"]
    (row,) = rows.to_dict("records")
    images = identity.images(pipeline.places, row)
    assert row["original_patient_id"] == "Patient-001"
    assert images.point_mm == (8, 8, 5)
    assert len(images.path("image")) == 10
    assert all(path.is_file() for path in images.path("image"))


def test_sample_listed_twice_is_refused(pipeline: Pipeline) -> None:
    root = pipeline.root / "raw"
    write_png(root / "a.png")
    write_csv(root / "list.csv", ("path", "patient_id"), [("a.png", "P1"), ("a.png", "P2")])
    pipeline.sources({"kind": "table", "root": str(root), "modality": "xray", "csv": "list.csv"})
    with pytest.raises(SourceError, match=r"a\.png twice"):
        pipeline.cohort()


@pytest.mark.parametrize("absolute", [False, True])
def test_sample_listed_twice_in_two_spellings_is_refused(pipeline: Pipeline, absolute: bool) -> None:
    root = pipeline.root / "raw"
    write_png(root / "a.png")
    other = str(root / "a.png") if absolute else "./a.png"
    write_csv(root / "list.csv", ("path", "patient_id"), [("a.png", "P1"), (other, "P2")])
    pipeline.sources({"kind": "table", "root": str(root), "modality": "xray", "csv": "list.csv"})
    with pytest.raises(SourceError, match=r"a\.png twice"):
        pipeline.cohort()


def test_replaced_key_is_refused_before_anything_is_written(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=2))
    pipeline.cohort()
    before = pipeline.places.cohort.read_bytes()
    (tmp_path / "home" / ".config" / "radfuse" / "key").unlink()
    with pytest.raises(KeyChanged, match="Bring the right key back"):
        pipeline.cohort()
    assert pipeline.places.cohort.read_bytes() == before


def test_sources_of_one_namespace_must_be_alike_private(pipeline: Pipeline) -> None:
    chest = {**xray_table(pipeline.root / "raw", patients=2), "patient_namespace": "hospital"}
    pipeline.sources({**chest, "name": "a"}, {**chest, "name": "b", "public": True})
    with pytest.raises(SettingsError, match="all public or all private"):
        pipeline.cohort()


def test_public_sources_need_no_key(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.sources({**xray_table(pipeline.root / "raw", patients=1), "public": True, "name": "open"})
    made = pipeline.cohort()
    assert not (tmp_path / "home").exists()
    assert list(made.patients.patient_id) == [PUBLIC.patient("open", "Patient-000")]


def test_lock_moves_a_patient(pipeline: Pipeline) -> None:
    pipeline.sources({**xray_table(pipeline.root / "raw", patients=4), "public": True, "name": "open"})
    first = pipeline.cohort().patients.set_index("patient_id")["split"]
    moved = first.index[0]
    wanted = "test" if first[moved] != "test" else "train"
    write_csv(pipeline.root / "splits.lock.csv", ("patient_id", "split"), [(moved, wanted)])
    made = pipeline.cohort("split.lock=splits.lock.csv")
    second = made.patients.set_index("patient_id")["split"]
    assert second[moved] == wanted
    assert (second.drop(moved) == first.drop(moved)).all()
    assert made.stamp["lock_sha256"]


def split_table(pipeline: Pipeline, *rows: tuple[str, str]) -> dict[str, Any]:
    root = pipeline.root / "raw"
    listed = []
    for place, (patient, fold) in enumerate(rows):
        write_png(root / f"{place}.png", seed=place)
        listed.append((f"{place}.png", patient, fold))
    write_csv(root / "list.csv", ("path", "patient_id", "fold"), listed)
    return {
        "kind": "table", "root": str(root), "modality": "xray", "csv": "list.csv", "split": "fold",
        "public": True,
    }  # fmt: skip


def test_split_column_is_followed(pipeline: Pipeline) -> None:
    pipeline.sources(split_table(pipeline, ("P1", "test"), ("P2", "val"), ("P1", "")))
    patients = pipeline.cohort().patients.set_index("patient_id")["split"]
    assert patients[PUBLIC.patient("table", "P1")] == "test"
    assert patients[PUBLIC.patient("table", "P2")] == "val"


def test_patient_in_two_splits_within_a_modality_stops_the_run(pipeline: Pipeline) -> None:
    pipeline.sources(split_table(pipeline, ("P1", "test"), ("P2", "val"), ("P1", "train")))
    with pytest.raises(LeakageError, match=PUBLIC.patient("table", "P1")) as caught:
        pipeline.cohort()
    assert "P1" not in str(caught.value).replace(PUBLIC.patient("table", "P1"), "")
    assert not pipeline.places.cohort.exists()


def test_patient_in_two_splits_across_modalities_stops_the_run(pipeline: Pipeline) -> None:
    chest = split_table(pipeline, ("P1", "test"))
    write_series(pipeline.root / "raw" / "scan")
    write_csv(pipeline.root / "raw" / "ct.csv", ("path", "patient_id", "fold"), [("scan", "P1", "train")])
    lung = {**chest, "csv": "ct.csv", "modality": "ct"}
    namespace = {"patient_namespace": "hospital"}
    pipeline.sources({**chest, "name": "a", **namespace}, {**lung, "name": "b", **namespace})
    with pytest.raises(LeakageError, match=PUBLIC.patient("hospital", "P1")) as caught:
        pipeline.cohort()
    assert "xray of a" in str(caught.value)
    assert "ct of b" in str(caught.value)


def test_samples_without_files_are_listed_without_names(pipeline: Pipeline) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=4), prepare={"max_skipped_fraction": 0.3})
    (pipeline.root / "raw" / "images" / "002_0.png").unlink()
    made = pipeline.cohort()
    assert len(made.samples) == 3
    (lost,) = pd.read_csv(pipeline.places.left_out).to_dict("records")
    assert lost["reason"] == "a file that the table lists is missing"
    rows, _ = identity.who_is(pipeline.places, [lost["sample_id"]])
    assert rows.iloc[0]["original_patient_id"] == "Patient-002"
    assert "images/002_0.png" in rows.iloc[0]["files"]


def test_too_many_absent_files_stop_the_run_and_keep_what_was_there(pipeline: Pipeline) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=4))
    pipeline.cohort()
    before = pipeline.places.cohort.read_bytes()
    (pipeline.root / "raw" / "images" / "002_0.png").unlink()
    with pytest.raises(TooManySkipped, match=r"xray: 1 of 4.*\n.*line 4: images/002_0\.png"):
        pipeline.cohort()
    assert pipeline.places.cohort.read_bytes() == before


@pytest.mark.parametrize("limit", [0, 1])
def test_files_that_are_all_absent_are_named_with_the_root(pipeline: Pipeline, limit: int) -> None:
    xray_table(pipeline.root / "raw", patients=1)
    rows = [(f"P{place}", f"images/{place}.PNG") for place in range(7)]
    write_csv(pipeline.root / "raw" / "xray.csv", ("patient_id", "path"), rows)
    pipeline.sources({"kind": "table", "root": "raw", "modality": "xray", "csv": "xray.csv"})
    with pytest.raises((SourceError, TooManySkipped)) as caught:
        pipeline.cohort(f"prepare.max_skipped_fraction={limit}")
    said = str(caught.value)
    assert "line 2: images/0.PNG: a file that the table lists is missing\n" in said
    assert "... and 2 more" in said
    assert "Not one was found below raw of the source table: correct `root`, or the listed names" in said


def test_splits_below_their_minimums_are_refused(pipeline: Pipeline) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=3))
    with pytest.raises(counts.TooFewPatients, match=r"split\.minimum_patients 2"):
        pipeline.cohort("split.minimum_patients.train=2", "split.minimum_patients.test=2")
    with pytest.raises(counts.TooFewPatients, match=r"patients with Mass"):
        pipeline.cohort("split.minimum_positives=2")


def frame(numbers: dict[str, int]) -> pd.DataFrame:
    """So many positive patients in each split, and a negative one."""
    rows = [(name, f"{name}{place}", 1.0) for name, number in numbers.items() for place in range(number)]
    rows += [(name, f"{name}-", 0.0) for name in numbers]
    made = pd.DataFrame(rows, columns=["split", "patient_id", "label:a"])
    return made.assign(modality="xray", sample_id=made.patient_id)


def test_few_positives_in_calibration_merge_it_with_val() -> None:
    settings = cohort.Params().split
    nobody = pd.DataFrame({"patient_id": [], "split": []})
    enough = counts.count(frame({"train": 20, "val": 0, "calibration": 10, "test": 5}), nobody)
    assert counts.few_positives(enough) == {}
    with pytest.raises(counts.TooFewPatients, match="xray: val has 0 patients with a"):
        counts.check(enough, settings)
    few = counts.count(frame({"train": 20, "val": 1, "calibration": 9, "test": 5}), nobody)
    assert counts.few_positives(few) == {"xray": ["a"]}
    counts.check(few, settings)


def test_val_that_nothing_can_be_chosen_on_is_refused_though_calibration_has_positives() -> None:
    nobody = pd.DataFrame({"patient_id": [], "split": []})
    numbers = {"train": 20, "val": 0, "calibration": 9, "test": 5}
    with pytest.raises(counts.TooFewPatients, match="xray: val has no label with both positives and negativ"):
        counts.check(counts.count(frame(numbers), nobody), cohort.Params().split)
    relaxed = cohort.Params().split.model_copy(update={"minimum_positives": 0})
    counts.check(counts.count(frame(numbers), nobody), relaxed)
    other = frame({"train": 20, "val": 3, "calibration": 12, "test": 5})
    both = frame(numbers).merge(other.rename(columns={"label:a": "label:b"}), how="outer")
    counts.check(counts.count(both, nobody), cohort.Params().split)


def test_a_split_of_positives_alone_is_refused() -> None:
    nobody = pd.DataFrame({"patient_id": [], "split": []})
    table = frame({"train": 20, "val": 3, "calibration": 12, "test": 5})
    alone = table[(table["split"] != "train") | (table["label:a"] == 1)]
    with pytest.raises(counts.TooFewPatients, match="xray: train has no label with both"):
        counts.check(counts.count(alone, nobody), cohort.Params().split)


def test_unknown_labels_count_for_nothing() -> None:
    known = frame({"train": 3, "test": 2})
    known["label:a"] = math.nan
    assert counts.labels_of(known, "xray") == []


def test_reading_before_the_stage_ran_says_what_to_run(pipeline: Pipeline) -> None:
    for read in (cohort.read, cohort.read_patients, cohort.read_stamp, identity.read):
        with pytest.raises(MissingStage, match="radfuse cohort"):
            read(pipeline.places)


@pytest.mark.parametrize("written", range(5))
def test_a_cohort_whose_writing_was_stopped_is_no_cohort(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Tables of one split beside the digest of another would make models that claim the wrong one."""
    pipeline.sources({**xray_table(pipeline.root / "raw", patients=4), "public": True})
    before = pipeline.cohort().stamp["digest"]
    pipeline.prepare("xray")
    publish, left = durable.publish, [None] * written

    def stop(temporary: Path, names: list[Path]) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        publish(temporary, names)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.cohort("split.seed=7")
    for use in (cohort.read, cohort.read_stamp, agreement.agreeing_tables):
        with pytest.raises(MissingStage, match=r"splits\.json.*`radfuse cohort`"):
            use(pipeline.places)
    with pytest.raises(MissingStage, match=r"splits\.json.*`radfuse cohort`"):
        pipeline.prepare("xray")
    assert pipeline.prepared("xray").split_digest == before, "nothing was prepared again in vain"
    assert pipeline.cohort("split.seed=7").stamp["digest"] != before


def test_a_cohort_that_was_killed_leaves_nothing_when_it_is_made_again(pipeline: Pipeline) -> None:
    pipeline.sources({**xray_table(pipeline.root / "raw", patients=4), "public": True})
    pipeline.cohort()
    names = ["splits.json", "identity.parquet"]
    check_nothing_is_left(pipeline.root, names, pipeline.script("cohort()"), pipeline.cohort)


def test_command_shows_counts_and_what_was_left_out(pipeline: Pipeline, radfuse: Callable[..., Any]) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=4), prepare={"max_skipped_fraction": 0.3})
    (pipeline.root / "raw" / "images" / "002_0.png").unlink()
    ran = radfuse("cohort", "--params", pipeline.file)
    assert ran.code == 0
    assert "3 patients, 3 samples" in ran.out
    assert "Mass" in ran.out
    assert "Fewer than 10 positives in calibration" in " ".join(ran.out.split())
    assert "images/002_0.png" in ran.err


def test_whois_answers_in_a_table_and_in_json(pipeline: Pipeline, radfuse: Callable[..., Any]) -> None:
    two_modalities(pipeline)
    made = pipeline.cohort()
    patient = made.samples.patient_id[0]
    ran = radfuse("whois", patient, "--params", pipeline.file)
    assert (ran.code, "Patient-001" in ran.out) == (0, True)
    ran = radfuse("whois", patient, "i000000000000", "--params", pipeline.file, "--json")
    assert ran.code == 1
    answer = json.loads(ran.out)
    assert answer["unknown"] == ["i000000000000"]
    assert {row["original_patient_id"] for row in answer["found"]} == {"Patient-001"}
    assert sum(row["point_mm"] == [8, 8, 5] for row in answer["found"]) == 1
