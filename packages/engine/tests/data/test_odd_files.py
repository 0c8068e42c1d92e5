"""The odd files of public libraries as a source: each is prepared, or listed with a reason and no name."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pipelines import RADIOGRAPH, Pipeline, Toy, write_csv

from radfuse.engine import cohort, identity
from radfuse.engine.preparing.workers import ENDED

CT_SLAB = {"kind": "ct_patch", "size": [4, 256, 256], "spacing_mm": None, "window_hu": None}
"""Large enough that a slice of 512 x 512 pixels passes for a patch."""


@pytest.fixture
def odd(pipeline: Pipeline, real_data: Path) -> list[str]:
    """Names of the files, which lie below the source's root in the folder `odd`."""
    folder = real_data / "odd_files"
    (pipeline.root / "raw").mkdir()
    (pipeline.root / "raw" / "odd").symlink_to(folder)
    with open(folder / "index.csv", newline="") as stream:
        return [row["file"] for row in csv.DictReader(stream)]


def prepare_all(
    pipeline: Pipeline,
    radfuse: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    modality: str,
    spec: Mapping[str, Any],
) -> None:
    monkeypatch.setattr("radfuse.engine.modality.modality", lambda name: Toy(name, spec))
    write_csv(pipeline.root / "raw" / "list.csv", ("path",), [(f"odd/{name}",) for name in names])
    pipeline.sources(
        {"kind": "table", "root": "raw", "modality": modality, "csv": "list.csv"},
        prepare={"max_skipped_fraction": 1.0, "workers": 2},
    )
    for stage in (("cohort",), ("prepare", modality)):
        ran = radfuse(*stage, "--params", pipeline.file)
        assert ran.code == 0, ran.err
        assert "Traceback" not in ran.err


def check_each_is_prepared_or_has_a_reason(pipeline: Pipeline, modality: str, names: list[str]) -> None:
    listed = set(cohort.read(pipeline.places).sample_id)
    prepared = pipeline.prepared(modality).rows().sample_id
    skipped = pd.read_csv(pipeline.places.skipped(modality))
    assert len(listed) == len(names) == 307
    assert sorted([*prepared, *skipped.sample_id]) == sorted(listed)
    assert len(prepared) == len(list(pipeline.places.arrays(modality).iterdir())) > 30
    assert skipped.reason.str.len().min() > 20
    assert ENDED not in set(skipped.reason)


def check_no_output_names_a_file(pipeline: Pipeline, modality: str, names: list[str]) -> None:
    """Skipped.csv, and every other output but the private table."""
    assert len(identity.read(pipeline.places)) == len(names)
    said = pipeline.places.skipped(modality).read_text()
    # A file called 7136 or 0.dcm would be found in many an id or reason.
    telling = {part for name in names for part in Path(name).parts if len(part) > 7 and not part.isdigit()}
    assert [part for part in telling if part in said] == []
    for path in pipeline.places.data.rglob("*"):
        if path.is_file() and path != pipeline.places.identity and path.suffix != ".npy":
            content = path.read_bytes()
            assert not [name for name in (*names, str(pipeline.root)) if name.encode() in content], path


@pytest.mark.parametrize(("modality", "spec"), [("xray", RADIOGRAPH), ("ct", CT_SLAB)])
def test_every_odd_file_is_prepared_or_listed_with_a_reason_that_names_nobody(
    pipeline: Pipeline,
    radfuse: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    odd: list[str],
    modality: str,
    spec: Mapping[str, Any],
) -> None:
    prepare_all(pipeline, radfuse, monkeypatch, odd, modality, spec)
    check_each_is_prepared_or_has_a_reason(pipeline, modality, odd)
    check_no_output_names_a_file(pipeline, modality, odd)
