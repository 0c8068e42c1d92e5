"""The manager's writer thread: what it saves, when the loop waits for it, and how its errors are told."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from managed import Gate, names, opened, state, weight

from ckptcore import load, verify
from ckptcore import manager as manager_module
from ckptcore.errors import UnsavableValue
from ckptcore.rules import (
    EveryEpochs,
)


def test_what_is_saved_is_the_state_at_the_step_whatever_the_loop_does_next(
    tmp_path: Path, gate: Gate
) -> None:
    held = state(1.0)
    held["notes"] = {"list": [1, 2]}
    with opened(tmp_path, asynchronous=True) as manager:
        manager.step(held, epoch=0)
        held["model_state_dict"]["w"].fill_(2.0)
        held["notes"]["list"].append(3)
        held["later"] = 1
        gate.free.set()
    found = load(tmp_path / "latest.pt")
    assert torch.equal(found["model_state_dict"]["w"], torch.full((4,), 1.0))
    assert found["notes"] == {"list": [1, 2]} and "later" not in found


def test_the_loop_goes_on_while_a_save_is_written_and_waits_for_it_at_the_next(
    tmp_path: Path, gate: Gate
) -> None:
    with opened(tmp_path, asynchronous=True) as manager:
        first = manager.step(state(1.0), epoch=0)
        assert gate.entered.wait(20)
        assert names(tmp_path) == []
        threading.Timer(0.2, gate.free.set).start()
        second = manager.step(state(2.0), epoch=1)
        assert first is not None and second is not None
        assert second.stall_seconds > 0.1 > first.stall_seconds
    assert gate.most == 1
    assert names(tmp_path) == ["epoch_1.pt", "epoch_2.pt", "latest.pt"]


def test_an_error_of_the_writer_is_raised_at_the_next_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(5, "the disk is broken")

    with opened(tmp_path, asynchronous=True) as manager:
        with monkeypatch.context() as patched:
            patched.setattr(manager_module, "write", broken)
            manager.step(state(), epoch=0)
            with pytest.raises(OSError, match="broken"):
                manager.wait()
            manager.step(state(), epoch=1)
            manager._writer.wait()
        with pytest.raises(OSError, match="broken"):
            manager.step(state(), epoch=2)
        manager.step(state(), epoch=3)
    assert names(tmp_path) == ["epoch_4.pt", "latest.pt"]


def test_what_failed_does_not_count_as_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as manager:
        manager.step(state(1), epoch=0, metrics={"loss": 0.5})
        with monkeypatch.context() as patched:
            patched.setattr(manager_module, "write", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
            with pytest.raises(OSError, match="broken"):
                manager.step(state(2), epoch=1, metrics={"loss": 0.1})
        manager.step(state(3), epoch=2, metrics={"loss": 0.3})
    assert weight(tmp_path / "best.pt") == 3.0


def test_an_unsavable_state_is_named_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    with opened(tmp_path, asynchronous=True) as manager:
        with pytest.raises(UnsavableValue, match="model_state_dict/w/hook"):
            manager.step({"model_state_dict": {"w": {"hook": object()}}}, epoch=0)
        assert names(tmp_path) == []
        manager.step(state(), epoch=0)


def test_the_error_of_the_loop_is_seen_not_the_one_of_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "write", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(ZeroDivisionError), opened(tmp_path, asynchronous=True) as manager:
        manager.step(lambda: state(), epoch=0)
        manager._writer.wait()
        raise ZeroDivisionError
    opened(tmp_path).close()  # and the folder was given back


def test_a_state_is_made_only_when_something_is_saved(tmp_path: Path) -> None:
    calls = []

    def make() -> dict[str, Any]:
        calls.append(1)
        return state()

    with opened(tmp_path, save=[EveryEpochs(3)]) as manager:
        done = [manager.step(make, epoch=epoch) for epoch in range(6)]
    assert [saved is not None for saved in done] == [False, False, True, False, False, True]
    assert len(calls) == 2


def test_the_stall_is_measured(tmp_path: Path) -> None:
    def slow() -> dict[str, Any]:
        time.sleep(0.05)
        return state()

    with opened(tmp_path, asynchronous=True) as manager:
        saved = manager.step(slow, epoch=0)
    assert saved is not None and saved.stall_seconds >= 0.05
    assert saved.names == {"periodic": "epoch_1.pt", "latest": "latest.pt"}


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own group."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_interpreter_waits_at_exit_for_a_save_that_was_begun(tmp_path: Path) -> None:
    text = """
import sys, time, torch
from ckptcore import CheckpointManager, manager
write = manager.write
def slow(*args):
    time.sleep(0.3)
    return write(*args)
manager.write = slow
m = CheckpointManager(sys.argv[1])
m.step({"model_state_dict": {"w": torch.ones(3)}}, epoch=0)
"""
    process = script(text, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert verify(tmp_path / "latest.pt").ok
    opened(tmp_path).close()


def test_an_error_at_exit_is_said_though_nobody_closed_the_manager(tmp_path: Path) -> None:
    text = """
import sys, torch
from ckptcore import CheckpointManager, manager
def broken(*args):
    raise OSError(5, "the disk is broken")
manager.write = broken
m = CheckpointManager(sys.argv[1])
m.step({"model_state_dict": {"w": torch.ones(3)}}, epoch=0)
"""
    process = script(text, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert "the disk is broken" in errors
    assert list(tmp_path.glob("*.pt")) == []
