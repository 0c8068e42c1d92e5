"""Fixtures that test modules of ckptcore share, and the folder of their helper modules on the path."""

import sys
from pathlib import Path
from typing import Any

import pytest

HELPERS = Path(__file__).parent / "helpers"
sys.path.insert(0, str(HELPERS))


@pytest.fixture
def small_state() -> dict[str, Any]:
    """A training state with everything that is hard to store: model, AdamW, odd types, tied weights."""
    from states import small_state

    return small_state()


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """The smallest checkpoint that has a model, an optimizer entry and metrics: about 3 KB."""
    from states import tiny_state

    import ckptcore

    return ckptcore.save(tmp_path / "tiny.pt", tiny_state(), {"roles": ["latest"]})


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Holds the writer thread of managers while it writes."""
    from managed import Gate

    from ckptcore import manager

    found = Gate(manager.write)
    monkeypatch.setattr(manager, "write", found)
    return found
