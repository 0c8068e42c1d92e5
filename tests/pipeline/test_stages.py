"""The demo's stages are those that `radfuse init` writes, with the phantom before them."""

from __future__ import annotations

from pathlib import Path

from radfuse.engine import scaffold
from radfuse.engine.modality import modality

ROOT = Path(__file__).parents[2]


def test_the_demo_has_the_stages_that_init_writes_and_the_phantom() -> None:
    modalities = [modality(name) for name in ("xray", "ct", "mri")]
    made = scaffold.dvc_yaml(modalities, ["data/phantom"], phantom=True)
    assert (ROOT / "dvc.yaml").read_text(encoding="utf-8") == made
