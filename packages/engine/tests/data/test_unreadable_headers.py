"""DICOM files that cannot be read while the cohort is made: their patients must not pass for others."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import pytest
from pipelines import Pipeline, write_csv
from volumes import write_series

from radfuse.engine.sources.headers import is_dicom, read_header
from radfuse.serving.images import formats
from radfuse.serving.images.errors import UnreadableImage

BROKEN = "scans/2/slice00.dcm"


def of_one_patient(pipeline: Pipeline, **columns: str) -> None:
    """Three CT slices of MRN-77, in a table that does not say whose they are."""
    raw = pipeline.root / "raw"
    paths = [f"scans/{number}/slice00.dcm" for number in (1, 2, 3)]
    for path in paths:
        write_series((raw / path).parent, slices=1)
    rows = [(path, *columns.values(), 1) for path in paths]
    write_csv(raw / "ct.csv", ("path", *columns, "copd"), rows)
    source = {"kind": "table", "root": "raw", "modality": "ct", "csv": "ct.csv", "diseases": ["copd"]}
    pipeline.sources({**source, "public": True}, prepare={"max_skipped_fraction": 0.5})


def two_series(pipeline: Pipeline) -> list[Path]:
    """The folders of two CT series of three slices, each somebody's own."""
    raw, names = pipeline.root / "raw", ["scans/1", "scans/2"]
    for name in names:
        write_series(raw / name, slices=3)
    write_csv(raw / "ct.csv", ("path",), [(name,) for name in names])
    source = {"kind": "table", "root": "raw", "modality": "ct", "csv": "ct.csv", "public": True}
    pipeline.sources(source, prepare={"max_skipped_fraction": 0.5})
    return [raw / name for name in names]


def fails_at(of: Callable[..., Any], failure: Exception, broken: str = BROKEN) -> Callable[..., Any]:
    """A function that fails for the broken file."""

    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(broken):
            raise failure
        return of(path, *arguments, **options)

    return call


def no_permission(patch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, so the system is made to say so."""
    permitted = os.access
    patch.setattr(os, "access", lambda path, mode: permitted(path, mode) and not str(path).endswith(BROKEN))


def no_first_byte(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(formats, "open", fails_at(open, OSError(errno.EIO, "Input/output error")), raising=False)


def no_header(patch: pytest.MonkeyPatch) -> None:
    failing = fails_at(pydicom.dcmread, OSError(errno.ESTALE, "Stale file handle"))
    patch.setattr(pydicom, "dcmread", failing)


def no_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pydicom, "dcmread", fails_at(pydicom.dcmread, MemoryError()))


TROUBLES = [
    (no_permission, "permission to read it is missing"),
    (no_first_byte, "the file cannot be opened (OSError)"),
    (no_header, "the DICOM header cannot be read (OSError)"),
    (no_memory, "there is not enough memory for it"),
]


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
def test_file_that_cannot_be_read_is_left_out_with_its_reason_and_makes_no_other_patient(
    pipeline: Pipeline,
    radfuse: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    of_one_patient(pipeline)
    trouble(monkeypatch)
    ran = radfuse("cohort", "--params", pipeline.file)
    assert ran.code == 0, ran.err
    assert f"ct.csv, line 3: {BROKEN}: " in ran.err and reason in ran.err
    patients = pd.read_parquet(pipeline.places.patients)
    assert patients["disease:copd"].tolist() == [1.0]
    assert len(pd.read_parquet(pipeline.places.cohort)) == 2
    (left_out,) = pd.read_csv(pipeline.places.left_out).to_dict("records")
    assert reason in left_out["reason"] and BROKEN not in left_out["reason"]


def test_disease_of_a_patient_whom_the_table_names_is_known_though_a_file_cannot_be_read(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_one_patient(pipeline, patient_id="A-1")
    no_header(monkeypatch)
    made = pipeline.cohort()
    assert (len(made.samples), made.patients["disease:copd"].tolist()) == (2, [1.0])


def test_series_with_a_slice_that_cannot_be_read_is_left_out(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice without an ending is told from its first bytes; it must not go missing in silence."""
    for folder in two_series(pipeline):
        (folder / "slice00.dcm").rename(folder / "slice00")
    failing = fails_at(open, OSError(errno.EIO, "Input/output error"), "scans/2/slice00")
    monkeypatch.setattr(formats, "open", failing, raising=False)
    made = pipeline.cohort()
    assert len(made.samples) == 1
    assert "the file cannot be opened" in made.left_out["reason"][0]


def test_series_in_a_folder_that_nobody_may_look_into_is_left_out(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_series(pipeline)
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "iterdir", fails_at(Path.iterdir, denied, "scans/2"))
    made = pipeline.cohort()
    assert len(made.samples) == 1
    assert "permission to read it is missing" in made.left_out["reason"][0]


@pytest.mark.parametrize("damage", [KeyError("tag"), RecursionError(), EOFError()])
def test_damaged_header_is_no_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Exception
) -> None:
    """`prepare` says in full what is wrong with the image."""
    write_series(tmp_path / "scans" / "2", slices=1)
    assert read_header(tmp_path / BROKEN) is not None
    monkeypatch.setattr(pydicom, "dcmread", fails_at(pydicom.dcmread, damage))
    assert is_dicom(tmp_path / BROKEN)
    assert read_header(tmp_path / BROKEN) is None


def test_what_is_no_dicom_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "report.dcm").write_bytes(b"nothing of the kind")
    assert read_header(tmp_path / "report.dcm") is None


def test_file_that_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.dcm: there is no such file"):
        read_header(tmp_path / "gone.dcm")
