from __future__ import annotations

import json
from pathlib import Path

import pytest

from radfuse.engine import ceilings

FOUND = {
    "findings": {"Mass": 0.8, "Edema": 0.9},
    "malignancy": 0.84,
    "diseases": {"flu": {"single": {"xray": 0.87}, "all": 0.95, "available": 0.93}},
}


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "ceilings.json").write_text(json.dumps(FOUND))
    return path


def test_the_ceilings_of_a_single_source_are_read(tmp_path: Path) -> None:
    found = ceilings.read([folder(tmp_path / "phantom")])
    assert found.label("malignant") == 0.84
    assert found.mean_label(["Mass", "Edema"]) == pytest.approx(0.85)
    assert found.disease("flu", "xray") == 0.87
    assert found.mean_disease(["flu"], ceilings.ALL) == 0.95


def test_what_nobody_knows_has_no_ceiling(tmp_path: Path) -> None:
    found = ceilings.read([folder(tmp_path / "phantom")])
    assert found.mean_label(["Mass", "Hernia"]) is None
    assert found.disease("flu", "ct") is None
    assert found.mean_disease([], ceilings.ALL) is None
    assert ceilings.read([tmp_path / "nothing"]) == ceilings.Ceilings()


def test_a_mixture_of_sources_has_not_the_ceilings_of_one(tmp_path: Path) -> None:
    assert ceilings.read([folder(tmp_path / "a"), folder(tmp_path / "b")]) == ceilings.Ceilings()


def test_what_a_phantom_writes_is_understood() -> None:
    phantom = pytest.importorskip("radfuse.phantom.ceilings")
    found = ceilings.from_dict(phantom.report(draws=1000))
    assert found.label("malignant") is not None
    assert len(found.labels) == 15
    for disease, one in found.diseases.items():
        assert one[ceilings.ALL] > max(one["xray"], one["ct"], one["mri"]), disease
        assert one[ceilings.AVAILABLE] < one[ceilings.ALL]
