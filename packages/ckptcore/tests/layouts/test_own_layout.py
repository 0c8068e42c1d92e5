"""The how-to on a layout of one's own: its code runs as printed."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "own-layout.md"


@pytest.fixture
def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_a_sixth_layout_takes_ten_lines(blocks):
    code = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(code) <= 10


def test_the_page_runs_as_printed(blocks, tmp_path, monkeypatch, names_in):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names_in(tmp_path / "checkpoints") == {
        *("newest.pt", "champion_ppl12.34.pt"),
        *("step_000040.pt", "step_000050.pt"),
    }
    assert torch.load(tmp_path / "checkpoints" / "newest.pt")["tokens_seen"] == 50 * 4096
