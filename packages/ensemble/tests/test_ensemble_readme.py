"""The README's code does what the README says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from radfuse.engine.places import Places

PACKAGE = Path(__file__).parents[1]


def test_the_example_prints_the_probabilities_of_patients(
    fitted: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fitted.root)
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    variables: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), variables)
    said = capsys.readouterr().out
    assert "patient_id" in said and "meta:fourth_disease" in said
    assert set(variables["tables"]) == {"xray", "ct", "mri"}
