"""A training that is killed at any moment loses nothing that was committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from killing import PHASES, Server, Storm
from trainee import digest_of, first_state, train_an_epoch


def storm(root: Path, kills: int, least: int, seed: int, show: Callable[[str, object], None]) -> None:
    found = Storm(root, seed)
    with Server() as server:
        try:
            found.rage(server, kills, least)
        finally:
            show("shown", found.table())
    assert sum(found.at_death.values()) >= kills
    assert all(found.at_death[phase] >= least for phase in PHASES)
    assert all(found.held[phase] > 0 for phase in PHASES)


def test_the_digest_that_is_compared_sees_every_tensor_and_every_value() -> None:
    torch.manual_seed(3)
    state = first_state()
    train_an_epoch(state, float("nan"))
    seen = {digest_of(state)}
    assert digest_of(state) in seen
    for tensor in (*state["model_state_dict"].values(), state["momentum"]):
        tensor.view(torch.uint8).view(-1)[-1] ^= 1
        seen.add(digest_of(state))
    values = state["values"]
    for path, value in (
        ("losses", [0.5]),
        ("sizes", [256, 256]),
        ("on", 1),
        ("none", 0),
        (5, {"rate": 0.1 + 1e-17}),
    ):
        values[path] = value
        seen.add(digest_of(state))
    assert len(seen) == 1 + 3 + 5


def test_nothing_committed_is_lost_by_60_kills_in_every_phase(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    storm(tmp_path, kills=60, least=5, seed=1, show=record_property)


@pytest.mark.slow
def test_nothing_committed_is_lost_by_1000_kills_in_every_phase(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    storm(tmp_path, kills=1000, least=100, seed=2, show=record_property)
