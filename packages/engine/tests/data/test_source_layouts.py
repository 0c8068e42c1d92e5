import json
import math
from pathlib import Path
from typing import Any

import pytest
from pipelines import Pipeline, write_csv, write_png
from volumes import write_case, write_series

from radfuse.engine.errors import SettingsError, SourceError
from radfuse.engine.sources import LeftOut, Record, Source, kinds, open_source, open_sources
from radfuse.engine.sources.attributes import age_years
from radfuse.engine.sources.nih_chestxray14 import FINDINGS
from radfuse.engine.sources.source import DEVELOPMENT

NIH_HEADER = (
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
    "View Position", "",
)  # fmt: skip


def source(root: Path, kind: str, **options: Any) -> Source:
    return open_source({"kind": kind, "root": str(root), **options}, root, "params.yaml")


def records(found: Source) -> list[Record]:
    items = list(found.scan())
    assert all(isinstance(item, Record) for item in items)
    return [item for item in items if isinstance(item, Record)]


def test_built_in_kinds_are_known() -> None:
    assert {"phantom", "nih_chestxray14", "brats", "decathlon", "table"} <= set(kinds())


def test_unknown_kind_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"sources\.0\.kind 'brast'.*'brats'"):
        source(tmp_path, "brast")


def test_unknown_option_names_source_and_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"sources\.0\.offcial.*'official'"):
        source(tmp_path, "nih_chestxray14", offcial=True)


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="two sources are named brats"):
        open_sources(
            [{"kind": "brats", "root": "."}, {"kind": "brats", "root": "."}], tmp_path, "params.yaml"
        )


def test_no_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least one"):
        open_sources([], tmp_path, "params.yaml")


# --- ChestX-ray14


def nih(root: Path, folder: str = "images", rows: tuple[tuple[object, ...], ...] = ()) -> None:
    rows = rows or (
        ("00000001_000.png", "Cardiomegaly|Emphysema", 0, 1, "058Y", "M", "PA", ""),
        ("00000002_000.png", "No Finding", 0, 2, 411, "F", "AP", ""),
    )
    write_csv(root / "Data_Entry_2017.csv", NIH_HEADER, rows)
    for row in rows:
        write_png(root / folder / str(row[0]))


@pytest.mark.parametrize("folder", ["images", "images_003", "images_012/images", "."])
def test_nih_images_are_found_wherever_the_publisher_puts_them(tmp_path: Path, folder: str) -> None:
    nih(tmp_path, folder)
    first, second = records(source(tmp_path, "nih_chestxray14"))
    assert (tmp_path / first.files["image"][0]).is_file()
    assert [name for name, value in first.labels.items() if value] == ["Cardiomegaly", "Emphysema"]
    assert list(second.labels) == list(FINDINGS)
    assert (first.attributes.age_years, first.attributes.sex, first.attributes.view) == (58, "M", "PA")
    assert math.isnan(second.attributes.age_years)
    assert source(tmp_path, "nih_chestxray14").public


def test_nih_lists_place_patients_when_official(tmp_path: Path) -> None:
    nih(tmp_path)
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n")
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n")
    assert [one.split for one in records(source(tmp_path, "nih_chestxray14", official=True))] == [
        DEVELOPMENT,
        "test",
    ]
    assert [one.split for one in records(source(tmp_path, "nih_chestxray14"))] == [None, None]


def test_nih_without_its_lists_cannot_be_official(tmp_path: Path) -> None:
    nih(tmp_path)
    with pytest.raises(SourceError, match=r"test_list\.txt"):
        records(source(tmp_path, "nih_chestxray14", official=True))


def test_nih_finding_that_is_none_is_named_with_its_line(tmp_path: Path) -> None:
    nih(tmp_path, rows=(("1.png", "Cardiomegly", 0, 1, 1, "M", "PA", ""),))
    with pytest.raises(SourceError, match=r"line 2.*'Cardiomegly'.*'Cardiomegaly'"):
        records(source(tmp_path, "nih_chestxray14"))


# --- BraTS


def test_brats_cases_of_both_conventions_and_nested_folders(tmp_path: Path) -> None:
    write_case(tmp_path / "HGG", "Brats18_2013_11_1")
    write_case(tmp_path, "BraTS-GLI-00005-100", modern=True)
    write_case(tmp_path, "BraTS20_Training_001")
    found = records(source(tmp_path, "brats"))
    assert sorted(one.patient for one in found) == [
        "BraTS-GLI-00005",
        "BraTS20_Training_001",
        "Brats18_2013_11",
    ]
    assert all(set(one.files) == {"t1", "t1ce", "t2", "flair", "mask"} for one in found)


def test_brats_case_without_a_sequence_is_left_out_with_its_reason(tmp_path: Path) -> None:
    write_case(tmp_path, "A_1")
    write_case(tmp_path, "B_1")
    (tmp_path / "A_1" / "A_1_t2.nii.gz").unlink()
    (tmp_path / "A_1" / "A_1_seg.nii.gz").unlink()
    left_out, kept = source(tmp_path, "brats").scan()
    assert isinstance(left_out, LeftOut)
    assert left_out.reason == "the case has no t2 sequence, no segmentation"
    assert isinstance(kept, Record)


def test_brats_patient_pattern_groups_visits(tmp_path: Path) -> None:
    for case in ("P7-visit1", "P7-visit2"):
        write_case(tmp_path, case)
    found = records(source(tmp_path, "brats", patient_pattern=r"(?P<patient>P\d+)"))
    assert {one.patient for one in found} == {"P7"}
    with pytest.raises(SourceError, match="does not match the case P7-visit1"):
        records(source(tmp_path, "brats", patient_pattern=r"(?P<patient>Q\d+)"))
    with pytest.raises(SettingsError, match=r"patient_pattern.*group"):
        source(tmp_path, "brats", patient_pattern=r"P\d+")


def test_folder_without_cases_is_no_brats_source(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="correct `root`"):
        records(source(tmp_path, "brats"))


# --- Decathlon


def decathlon(root: Path, **changes: Any) -> None:
    dataset = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "2": "Posterior", "1": "Anterior Part"},
        "training": [{"image": "./imagesTr/h_1.nii.gz", "label": "./labelsTr/h_1.nii.gz"}],
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(dataset))
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "h_1.nii.gz").touch()


def test_decathlon_gives_images_classes_and_labels_of_its_json(tmp_path: Path) -> None:
    decathlon(tmp_path)
    found = source(tmp_path, "decathlon")
    (one,) = records(found)
    assert one.files == {"mri": ("imagesTr/h_1.nii.gz",), "mask": ("labelsTr/h_1.nii.gz",)}
    assert (one.patient, one.modality) == ("h_1", "mri")
    assert found.classes("mri") == {1: "anterior_part", 2: "posterior"}
    assert found.conventions("mri") == ({0: 0, 1: 1, 2: 2},)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": []}, "'training'"),
        ({"training": [{"image": "../../etc/passwd", "label": "a"}]}, "below its folder"),
        ({"labels": {"1": "a"}}, "background"),
        ({"labels": {"x": "a"}}, "numbers"),
        ({"modality": {"0": "FLAIR", "1": "T1"}}, "2 sequences"),
    ],
)
def test_odd_dataset_json_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    decathlon(tmp_path, **changes)
    with pytest.raises(SourceError, match=said):
        found = source(tmp_path, "decathlon")
        list(found.scan())
        found.classes("mri")


def test_decathlon_without_its_json_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"dataset\.json"):
        records(source(tmp_path, "decathlon"))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(SourceError, match="no JSON"):
        records(source(tmp_path, "decathlon"))


# --- Table


def table(root: Path, header: tuple[str, ...], *rows: tuple[object, ...], **options: Any) -> Source:
    write_csv(root / "list.csv", header, rows)
    return source(root, "table", csv="list.csv", **{"modality": "xray", **options})


def test_table_columns_become_labels_and_attributes(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    header = (
        "path",
        "patient_id",
        "study_id",
        "age",
        "sex",
        "view",
        "site",
        "scanner_model",
        "Mass",
        "Nodule",
    )
    row = ("a.png", "P1", "S1", "061Y", "female", "pa", "North", "X1", "1", "")
    (one,) = records(table(tmp_path, header, row, labels={"mass": "Mass", "nodule": "Nodule"}))
    assert (one.patient, one.study) == ("P1", "S1")
    assert one.labels["mass"] == 1
    assert math.isnan(one.labels["nodule"])
    about = one.attributes
    assert (about.age_years, about.sex, about.view, about.site, about.scanner_model) == (
        61,
        "F",
        "PA",
        "North",
        "X1",
    )


def test_table_takes_from_the_dicom_header_what_it_has_no_column_for(tmp_path: Path) -> None:
    write_series(tmp_path / "scans" / "7")
    header = ("path", "x", "y", "z", "malignant")
    found = table(
        tmp_path, header, ("scans/7", 8, 8, 5, 1), ("scans/7/", 2, 8, 5, 0),
        modality="ct", labels=["malignant"], point_mm=["x", "y", "z"],
    )  # fmt: skip
    first, second = records(found)
    assert first.patient == "MRN-77"
    assert len(first.files["image"]) == 10
    assert (first.point_mm, second.point_mm) == ((8, 8, 5), (2, 8, 5))
    assert first.sample != second.sample
    about = first.attributes
    assert (about.age_years, about.sex, about.scanner_model) == (55, "F", "Toy Scanner")


def series_with_papers(root: Path, patient: str) -> None:
    """A series as an export program leaves it: with a licence, a preview and a table of contents."""
    write_series(root, about={"PatientID": patient})
    (root / "LICENSE").write_text("Free for research.")
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "00_preview.PNG").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")


def test_two_series_of_one_patient_stay_together_whatever_else_their_folders_hold(tmp_path: Path) -> None:
    for name in ("a", "b"):
        series_with_papers(tmp_path / name, "MRN-5")
    found = records(table(tmp_path, ("path",), ("a",), ("b",), modality="ct"))
    assert [one.patient for one in found] == ["MRN-5", "MRN-5"]
    assert {one.attributes.scanner_model for one in found} == {"Toy Scanner"}
    assert [len(one.files["image"]) for one in found] == [10, 10]


def test_series_whose_first_slice_is_damaged_keeps_its_patient_and_the_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    (tmp_path / "a" / "slice00.dcm").write_bytes(b"")
    (one,) = records(table(tmp_path, ("path",), ("a",), modality="ct"))
    assert one.patient == "MRN-77"
    assert one.files["image"][0] == "a/slice00.dcm"


def test_slices_without_ending_and_preamble_are_found(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        path.with_suffix("").write_bytes(path.read_bytes()[132:])
        path.unlink()
    (tmp_path / "a" / "README").write_text("Free for research.")
    (one,) = records(table(tmp_path, ("path",), ("a",), modality="ct"))
    assert (one.patient, len(one.files["image"])) == ("MRN-77", 10)


def test_folder_without_slices_is_left_out_with_its_reason(tmp_path: Path) -> None:
    series_with_papers(tmp_path / "a", "MRN-5")
    for path in (tmp_path / "a").glob("*.dcm"):
        path.unlink()
    (tmp_path / "b").mkdir()
    found = list(table(tmp_path, ("path",), ("a",), ("b",), modality="ct").scan())
    assert [one.reason for one in found if isinstance(one, LeftOut)] == 2 * [
        "the folder that the table lists holds no DICOM image that can be read"
    ]


def test_table_carries_references_and_knows_what_is_empty(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name)
    rows = (("a.png", "P1", "5.75", "3"), ("b.png", "P2", "", "n/a"))
    found = table(
        tmp_path, ("path", "patient_id", "d", "x"), *rows, references={"diameter_mm": "d", "extra": "x"}
    )
    first, second = records(found)
    assert first.references == {"diameter_mm": 5.75, "extra": 3}
    assert all(map(math.isnan, second.references.values()))
    assert first.labels == {}


def test_table_reads_sequences_masks_and_their_classes(tmp_path: Path) -> None:
    write_case(tmp_path, "A", labels=(1, 4))
    paths = tuple(f"A/A_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair", "seg"))
    found = table(
        tmp_path, ("id", "a", "b", "c", "d", "e"), ("P1", *paths),
        modality="mri", images={"t1": "a", "t1ce": "b", "t2": "c", "flair": "d"}, mask="e",
        mask_classes={1: "core", 4: "enhancing"}, patient_id="id",
    )  # fmt: skip
    (one,) = records(found)
    assert set(one.files) == {"t1", "t1ce", "t2", "flair", "mask"}
    assert found.classes("mri") == {1: "core", 2: "enhancing"}
    assert found.conventions("mri") == ({0: 0, 1: 1, 4: 2},)


def test_table_gives_diseases_of_patients(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name)
    rows = (("a.png", "P1", 1), ("b.png", "P1", ""))
    found = table(tmp_path, ("path", "patient_id", "copd"), *rows, diseases=["copd"])
    assert found.diseases() == {"P1": {"copd": 1}}
    clash = table(tmp_path, ("path", "patient_id", "copd"), rows[0], ("b.png", "P1", 0), diseases=["copd"])
    with pytest.raises(SourceError, match=r"line 3.*earlier line"):
        clash.diseases()


def test_table_places_patients_by_a_column(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name)
    header = ("path", "patient_id", "fold")
    found = table(tmp_path, header, ("a.png", "P1", "test"), ("b.png", "P2", ""), split="fold")
    assert [one.split for one in records(found)] == ["test", None]
    with pytest.raises(SourceError, match=r"line 2.*'tets'.*'test'"):
        records(table(tmp_path, header, ("a.png", "P1", "tets"), split="fold"))


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (
            ("path", "Mass"),
            ("a.png", "maybe"),
            "line 2: expected 0, 1 or nothing in column 'Mass', got 'maybe'",
        ),
        (("path", "Mass"), ("../a.png", "1"), "below the source's root"),
        (("path", "Mass"), ("/etc/passwd", "1"), "below the source's root"),
        (("path", "patient_id", "Mass"), ("a.png", "", "1"), "the patient's id"),
        (("path", "Mass", "Mass"), ("a.png", "1", "1"), "twice"),
        (("path", "Mass"), ("a.png", "1", "2"), "expected 2 fields"),
        (("path", "patient_id", "Mass"), ("a.png", "NaN", "1"), "the patient's id .* got 'NaN'"),
        (("path;Mass",), ("a.png;1",), "delimiter: ';'"),
    ],
)
def test_odd_table_says_what_is_wrong(
    tmp_path: Path, header: tuple[str, ...], row: tuple[str, ...], said: str
) -> None:
    write_png(tmp_path / "a.png")
    with pytest.raises(SourceError, match=said):
        records(table(tmp_path, header, row, labels=["Mass"]))


@pytest.mark.parametrize(
    "text",
    ['"path";"Mass"\n"a.png";"1"\n', 'path;Mass\n"a.png";"1"\n', '"a, b";"path";"Mass"\n"1";"a.png";"1"\n'],
)
def test_quoted_fields_apart_by_semicolons_bring_the_option_to_mind(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SourceError, match="set `delimiter: ';'`"):
        records(source(tmp_path, "table", csv="list.csv", modality="xray"))


def test_field_with_a_stray_quote_is_no_question_of_semicolons(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('path,Mass\n"a" b.png,1\n')
    with pytest.raises(SourceError, match="cannot be read as a CSV: ',' expected"):
        records(source(tmp_path, "table", csv="list.csv", modality="xray"))


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "null", "NA", "<NA>"])
def test_what_pandas_writes_for_nothing_is_nothing(tmp_path: Path, text: str) -> None:
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name)
    header = ("path", "patient_id", "study_id", "site", "view", "fold", "Mass")
    row = ("a.png", "P1", text, text, text, text, text)
    (one,) = records(table(tmp_path, header, row, labels=["Mass"], split="fold"))
    assert (one.study, one.attributes.site, one.attributes.view, one.split) == ("P1", "", "", None)
    assert math.isnan(one.labels["Mass"])
    nobody = table(tmp_path, header[:2], ("a.png", text), ("b.png", text))
    with pytest.raises(SourceError, match=r"line 2: expected the patient's id in 'patient_id', got"):
        records(nobody)


def test_one_path_has_one_name_however_it_is_spelt(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    spellings = ("a.png", "./a.png", ".//a.png", str(tmp_path / "a.png"))
    found = table(tmp_path, ("path", "patient_id"), *((name, "P") for name in spellings))
    assert {one.sample for one in records(found)} == {"a.png"}


def test_table_warns_when_nothing_tells_patients_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_png(tmp_path / "a.png")
    (one,) = records(table(tmp_path, ("path",), ("a.png",)))
    assert one.patient == "a.png"
    assert "two splits" in caplog.text


def test_modality_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    with pytest.raises(SettingsError, match="'xray'"):
        records(table(tmp_path, ("path",), ("a.png",), modality="xry"))


@pytest.mark.parametrize(
    ("text", "years"), [("58", 58), ("058Y", 58), ("006M", 0.5), ("104W", 2), ("000D", 0), ("120", 120)]
)
def test_ages_are_read_in_every_unit(text: str, years: float) -> None:
    assert age_years(text) == pytest.approx(years, abs=0.02)


@pytest.mark.parametrize("text", ["", "411", "abc", "-5", "12X"])
def test_what_is_no_age_is_unknown(text: str) -> None:
    assert math.isnan(age_years(text))


def test_relative_roots_begin_at_params_yaml(pipeline: Pipeline) -> None:
    write_png(pipeline.root / "raw" / "a.png")
    write_csv(pipeline.root / "raw" / "list.csv", ("path", "patient_id"), [("a.png", "P")])
    pipeline.sources({"kind": "table", "root": "raw", "modality": "xray", "csv": "list.csv"})
    assert len(pipeline.cohort().samples) == 1
