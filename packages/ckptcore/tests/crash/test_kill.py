"""A training that is killed at any moment loses nothing that was committed."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import PHASES, Server, Storm


def storm(root: Path, kills: int, least: int, seed: int) -> None:
    found = Storm(root, seed)
    with Server() as server:
        try:
            found.rage(server, kills, least)
        finally:
            print(found.table())
    assert sum(found.at_death.values()) >= kills
    assert all(found.at_death[phase] >= least for phase in PHASES)
    assert all(found.held[phase] > 0 for phase in PHASES)


def test_nothing_committed_is_lost_by_60_kills_in_every_phase(tmp_path: Path) -> None:
    storm(tmp_path, kills=60, least=5, seed=1)


@pytest.mark.slow
def test_nothing_committed_is_lost_by_1000_kills_in_every_phase(tmp_path: Path) -> None:
    storm(tmp_path, kills=1000, least=100, seed=2)
