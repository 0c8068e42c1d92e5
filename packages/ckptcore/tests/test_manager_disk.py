"""The manager on disks that are full, and in folders that cannot be written."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from managed import Gate, names, opened, run, state, weight

from ckptcore import durable, load, verify
from ckptcore.errors import DiskFull, FolderNotWritable


def test_a_save_that_does_not_fit_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as manager:
        manager.step(state(1), epoch=0, metrics={"loss": 0.5})
        before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
        with monkeypatch.context() as patched:
            patched.setattr(durable, "free_bytes", lambda _: 10)
            manager.step(state(2), epoch=1, metrics={"loss": 0.4})
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
        assert "10 are free" in caplog.text
        manager.step(state(3), epoch=2, metrics={"loss": 0.45})
    assert load(tmp_path / "best.pt").epochs_finished == 3  # the second was never there
    assert names(tmp_path) == ["best.pt", "epoch_1.pt", "epoch_3.pt", "latest.pt"]


def test_a_best_that_did_not_fit_is_not_what_the_next_has_to_beat(tmp_path: Path, gate: Gate) -> None:
    full = [True]
    inner = gate.call

    def write(*args: Any) -> Any:
        if full.pop() if full else False:
            raise OSError(28, "No space left on device")
        return inner(*args)

    gate.call = write
    with opened(tmp_path, asynchronous=True) as manager:
        manager.step(state(1), epoch=0, metrics={"loss": 0.1})
        threading.Timer(0.1, gate.free.set).start()
        # Asked while the first is still being written; that it fails shows only then.
        manager.step(state(2), epoch=1, metrics={"loss": 0.5})
    assert load(tmp_path / "best.pt").epochs_finished == 2


@pytest.mark.parametrize("how", ["final", "total", "close"])
def test_a_last_save_that_does_not_fit_is_an_error(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = opened(tmp_path, asynchronous=True, total_epochs=2 if how == "total" else None)
    manager.step(state(1), epoch=0)
    manager.wait()
    monkeypatch.setattr(durable, "free_bytes", lambda _: 10)
    with pytest.raises(DiskFull, match="10 are free"):
        manager.step(state(2), epoch=1, final=how == "final")
        assert how == "close"
        manager.close()
    manager.close()
    assert load(tmp_path / "latest.pt").epochs_finished == 1


WRITING = ("open", "pwrite", "write", "ftruncate", "fsync", "fchmod", "link", "replace")


def test_no_space_at_any_call_in_turn_leaves_the_old_files_and_the_next_save_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]
    failing = [0]

    def failing_call(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **named: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **named)
            calls[0] += 1
            if calls[0] == failing[0]:
                raise OSError(28, "No space left on device")
            return real(*args, **named)

        return call

    folders = (tmp_path / str(number) for number in range(1000))
    for failing[0] in range(1, 1000):
        folder = next(folders)
        with opened(folder) as manager:
            manager.step(state(1), epoch=0, metrics={"loss": 0.5})
            calls[0] = 0
            with monkeypatch.context() as patched:
                for name in WRITING:
                    patched.setattr(os, name, failing_call(name))
                manager.step(state(2), epoch=1, metrics={"loss": 0.4})
            reached = calls[0] >= failing[0]
            for name in names(folder):
                assert verify(folder / name).ok, (failing[0], name)
            assert load(folder / "best.pt").epochs_finished in ((1, 2) if reached else (2,))
            manager.step(state(3), epoch=2, metrics={"loss": 0.3})
        assert names(folder) in (
            ["best.pt", "epoch_1.pt", "epoch_3.pt", "latest.pt"],
            ["best.pt", "epoch_2.pt", "epoch_3.pt", "latest.pt"],
        )
        assert load(folder / "best.pt").epochs_finished == 3
        assert not list(folder.glob("**/*.tmp"))
        if not reached:
            break
    assert 8 < failing[0] < 100


@pytest.mark.parametrize("asynchronous", [False, True])
def test_on_a_disk_that_is_really_full_nothing_old_is_lost_and_training_goes_on(
    asynchronous: bool, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = small_disk / "run"
    with opened(folder, asynchronous=asynchronous) as manager:
        manager.step(state(1.0, 50_000), epoch=0, metrics={"loss": 0.5})
        manager.wait()
        (small_disk / "ballast").write_bytes(bytes(durable.free_bytes(small_disk) - 120_000))
        manager.step(state(2.0, 50_000), epoch=1, metrics={"loss": 0.4})
        manager.wait()
        assert "no space for" in caplog.text
        assert weight(folder / "best.pt") == weight(folder / "latest.pt") == 1.0
        (small_disk / "ballast").unlink()
        manager.step(state(3.0, 50_000), epoch=2, metrics={"loss": 0.3})
    assert weight(folder / "best.pt") == 3.0
    assert not list(folder.glob("**/*.tmp"))


def test_a_disk_that_fills_while_the_file_is_written_loses_nothing(small_disk: Path) -> None:
    folder = small_disk / "run"
    with opened(folder) as manager:
        manager.step(state(1.0, 50_000), epoch=0)
        (small_disk / "ballast").write_bytes(bytes(durable.free_bytes(small_disk) - 120_000))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                durable, "free_bytes", lambda _: 1 << 40
            )  # somebody else takes the space after the check
            manager.step(state(2.0, 50_000), epoch=1)
        assert weight(folder / "latest.pt") == 1.0
        assert not list(folder.glob("**/*.tmp"))
        (small_disk / "ballast").unlink()
        manager.step(state(3.0, 50_000), epoch=2)
    assert weight(folder / "latest.pt") == 3.0


def test_a_run_on_a_full_disk_can_be_opened_and_resumed(small_disk: Path) -> None:
    folder = small_disk / "run"
    run(folder, [0.5])
    (folder / ".ckptcore" / "policy.json").unlink()
    with open(small_disk / "ballast", "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(4096))
    with opened(folder) as manager:
        found = manager.resume()
    assert found is not None and found.epochs_finished == 1


def test_a_read_only_folder_is_refused_with_what_to_do(small_disk: Path) -> None:
    run(small_disk / "run", [0.5])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(FolderNotWritable, match="another folder"):
        opened(small_disk / "run")
    with pytest.raises(FolderNotWritable, match="may write to"):
        opened(small_disk / "other")
    assert load(small_disk / "run" / "latest.pt").epochs_finished == 1


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(FolderNotWritable):
        opened(tmp_path / "taken")
