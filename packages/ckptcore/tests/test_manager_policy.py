"""The files that random runs leave, against a model that says which they should be."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptcore import CheckpointManager, load, read_header
from ckptcore.layouts import Layout, plain
from ckptcore.rules import Best, BestK, EveryEpochs, Final, KeepRule, LastK, Mode

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# Few values, so that ties are common; -0.0 and 0.0 are one.
values = st.sampled_from([0.5, 0.5, 0.25, 0.75, 0.0, -0.0, -1.5, math.nan, math.inf, -math.inf, None])


@dataclass(frozen=True)
class Session:
    """One start of the program: what its epochs measure, the run's length, what was dropped in before."""

    measured: list[float | None]
    total: int | None
    dropped: str | None


@dataclass(frozen=True)
class Case:
    sessions: list[Session]
    mode: Mode
    every: int
    last: int
    best: int
    scored: bool

    def layout(self) -> Layout:
        keep: KeepRule = (
            LastK(self.last) | BestK(self.best, "m", self.mode) if self.best else LastK(self.last)
        )
        names = {
            "periodic": "epoch_{epochs_finished}.pt",
            "best": "best_{metric}.pt" if self.scored else "best.pt",
            "latest": "latest.pt",
            "final": "final.pt",
        }
        rules = (EveryEpochs(1, role="latest"), EveryEpochs(self.every), Best("m", self.mode), Final())
        return Layout("policy", names, rules, keep, metric="m", mode=self.mode)


sessions = st.builds(
    Session,
    st.lists(values, max_size=6),
    st.none() | st.integers(1, 12),
    st.sampled_from([None, None, "notes.pt", "epoch_900.pt", "final.pt.bak", "weights.safetensors"]),
)
cases = st.builds(
    Case,
    st.lists(sessions, min_size=1, max_size=4),
    st.sampled_from(["min", "max"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
)


def expected(case: Case) -> dict[str, int]:
    """File name to the finished epochs it must hold, by brute force."""
    files: dict[str, int] = {}
    measured: list[float] = []
    periodic: list[int] = []
    for session in case.sessions:
        for value in session.measured:
            measured.append(math.nan if value is None else value)
            epochs = len(measured)
            files["latest.pt"] = epochs
            if session.total is not None and epochs >= session.total:
                files["final.pt"] = epochs
            if epochs % case.every == 0:
                periodic.append(epochs)
            ranked = [e for e in periodic if math.isfinite(measured[e - 1])]
            ranked.sort(key=lambda e: (measured[e - 1] if case.mode == "min" else -measured[e - 1], e))
            periodic = [e for e in periodic if e in periodic[-case.last :] or e in ranked[: case.best]]
    finite = [value for value in measured if math.isfinite(value)]
    if finite:
        best = min(finite) if case.mode == "min" else max(finite)
        at = measured.index(best)  # of equal ones the first
        files[f"best_{measured[at]}.pt" if case.scored else "best.pt"] = at + 1
    return files | {f"epoch_{e}.pt": e for e in periodic}


def play(case: Case, folder: Path, asynchronous: bool) -> set[str]:
    """Run the sessions for real; returns the names of what was dropped in."""
    epochs = 0
    dropped = set()
    for session in case.sessions:
        if session.dropped is not None and session.dropped not in dropped:
            torch.save({"theirs": torch.ones(1)}, folder / session.dropped)
            dropped.add(session.dropped)
        with CheckpointManager(
            folder, case.layout(), asynchronous=asynchronous, handle_signals=False, total_epochs=session.total
        ) as manager:
            found = manager.resume("auto")
            assert (0 if found is None else found.epochs_finished or 0) == epochs
            for value in session.measured:
                state = {"model_state_dict": {"w": torch.full((4,), float(epochs + 1))}}
                manager.step(state, epoch=epochs, metrics={} if value is None else {"m": value})
                epochs += 1
    return dropped


@pytest.mark.parametrize("asynchronous", [False, True])
@given(case=cases)
def test_a_folder_holds_what_the_model_says_and_nothing_foreign_is_lost(
    asynchronous: bool, case: Case
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        dropped = play(case, folder, asynchronous)
        ours = {p.name: p for p in folder.glob("*.pt") if p.name not in dropped}
        assert {name: read_header(path).epochs_finished for name, path in ours.items()} == expected(case)
        for path in ours.values():
            found = load(path)
            assert float(found["model_state_dict"]["w"][0]) == found.epochs_finished
        for name in dropped:
            assert len([p for p in folder.rglob(name) if p.is_file()]) == 1


@given(st.lists(values, min_size=1, max_size=8), st.data())
def test_a_run_cut_into_sessions_leaves_what_an_uninterrupted_one_leaves(
    measured: list[float | None], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(measured)))
    halves = [Session(measured[:at], None, None), Session(measured[at:], None, None)]
    found = []
    for parts in ([Session(measured, None, None)], halves):
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            play(Case(parts, "min", 1, 2, 0, False), Path(name), asynchronous=False)
            headers = {p.name: read_header(p) for p in Path(name).glob("*.pt")}
            found.append({n: (h.epochs_finished, h.model_digest, str(h.metrics)) for n, h in headers.items()})
    assert found[0] == found[1]


def test_the_plain_layout_is_the_one_modelled() -> None:
    case = Case([], "min", 1, 3, 0, False)
    assert case.layout().templates.items() <= plain("m").templates.items()
