from pathlib import Path

import pytest
from pipelines import write_csv
from volumes import write_case, write_series

from radfuse.engine.errors import SourceError
from radfuse.engine.sources import LeftOut, Record, open_source
from radfuse.engine.sources.nih_chestxray14 import FINDINGS

STUDY = (
    "original_patient_id",
    "accession_number",
    "path",
    "study_date",
    "age_years",
    "sex",
    "site",
    "scanner_model",
)
ABOUT = ("2026-03-14", 56, "F", "North", "X1")


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    """One patient with a radiograph, a series with two nodules and a case, as the phantom's README has it."""
    root = tmp_path / "phantom"
    write_csv(
        root / "patients.csv",
        (
            "original_patient_id",
            "patient_name",
            "birth_date",
            "sex",
            "age_years",
            "site",
            "disease:a",
            "disease:b",
        ),
        [("PH1", "Muster^Erika", "1970-03-15", "F", 56, "North", 1, 0)],
    )
    (root / "xray" / "PH1").mkdir(parents=True)
    (root / "xray" / "PH1" / "A1.dcm").touch()
    write_csv(
        root / "xray" / "studies.csv", (*STUDY, "view", *FINDINGS),
        [("PH1", "A1", "xray/PH1/A1.dcm", *ABOUT, "PA", *[int(name == "Mass") for name in FINDINGS])],
    )  # fmt: skip
    write_series(root / "ct" / "PH1" / "A2", slices=3)
    write_csv(root / "ct" / "series.csv", (*STUDY, "slices"), [("PH1", "A2", "ct/PH1/A2", *ABOUT, 3)])
    write_csv(
        root / "ct" / "nodules.csv",
        (
            "original_patient_id",
            "accession_number",
            "nodule",
            "x_mm",
            "y_mm",
            "z_mm",
            "diameter_mm",
            "malignant",
        ),
        [("PH1", "A2", 1, 4, 5, 1, 6, 0), ("PH1", "A2", 2, 8, 9, 2, 9, 1)],
    )
    write_case(root / "mri", "PH1_A3")
    cases = [("PH1", "A3", "mri/PH1_A3", *ABOUT, "PH1_A3")]
    write_csv(root / "mri" / "cases.csv", (*STUDY, "case"), cases)
    return root


def test_every_study_of_the_phantom_is_a_record(phantom: Path) -> None:
    source = open_source({"kind": "phantom", "root": str(phantom)}, phantom, "params.yaml")
    items = list(source.scan())
    assert all(isinstance(item, Record) for item in items)
    film, first, second, case = (item for item in items if isinstance(item, Record))
    assert source.public
    assert [name for name, value in film.labels.items() if value] == ["Mass"]
    assert list(film.labels) == list(FINDINGS)
    assert (film.attributes.age_years, film.attributes.view, film.attributes.site) == (56, "PA", "North")
    assert (first.point_mm, second.point_mm) == ((4, 5, 1), (8, 9, 2))
    assert (first.labels, second.labels) == ({"malignant": 0}, {"malignant": 1})
    assert len(first.files["image"]) == 3
    assert set(case.files) == {"t1", "t1ce", "t2", "flair", "mask"}
    assert {item.patient for item in (film, first, second, case)} == {"PH1"}
    assert source.diseases() == {"PH1": {"a": 1, "b": 0}}
    assert source.classes("mri") == {1: "core", 2: "oedema", 3: "enhancing"}
    assert source.classes("ct") == {}


def test_lost_files_of_the_phantom_are_left_out(phantom: Path) -> None:
    (phantom / "xray" / "PH1" / "A1.dcm").unlink()
    (phantom / "mri" / "PH1_A3" / "PH1_A3_t1.nii.gz").unlink()
    for path in (phantom / "ct" / "PH1" / "A2").iterdir():
        path.unlink()
    source = open_source({"kind": "phantom", "root": str(phantom)}, phantom, "params.yaml")
    items = list(source.scan())
    assert [item.modality for item in items if isinstance(item, LeftOut)] == ["xray", "ct", "ct", "mri"]


def test_missing_phantom_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="radfuse phantom"):
        open_source({"kind": "phantom", "root": "data/phantom"}, tmp_path, "params.yaml")
