"""The manager as a training loop meets it."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from managed import bytes_on_disk, names, opened, run, state

import ckptcore
from ckptcore import CheckpointManager, durable, load, read_header, save, verify
from ckptcore import manager as manager_module
from ckptcore.errors import FolderBusy, UsageError
from ckptcore.folder import write_pins
from ckptcore.layouts import Layout, plain
from ckptcore.rules import (
    Best,
    EveryEpochs,
    EveryMinutes,
    EverySteps,
    Final,
    KeepRule,
    LastK,
    Nothing,
    SaveRule,
    StageEnds,
)
from ckptcore.versions import promote

# One file, many names


def test_the_names_of_one_epoch_cost_one_files_bytes(tmp_path: Path) -> None:
    with opened(tmp_path, total_epochs=1) as manager:
        manager.step(state(1.0, 100_000), epoch=0, metrics={"loss": 0.5})
    assert names(tmp_path) == ["best.pt", "epoch_1.pt", "final.pt", "latest.pt"]
    assert len({path.stat().st_ino for path in tmp_path.glob("*.pt")}) == 1
    assert bytes_on_disk(tmp_path) == (tmp_path / "best.pt").stat().st_blocks * 512


def test_an_in_place_overwrite_of_latest_does_not_reach_a_version(tmp_path: Path) -> None:
    run(tmp_path, [0.5])
    card = promote(tmp_path / "best.pt", version="1.0.0")
    with open(tmp_path / "latest.pt", "r+b") as file:
        file.write(b"overwritten by some tool")
    assert not verify(tmp_path / "best.pt").ok  # the same file
    assert verify(card.path).ok
    assert card.path.stat().st_nlink == 1


def test_without_hard_links_names_become_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    run(tmp_path, [0.5, 0.4])
    assert names(tmp_path) == ["best.pt", "epoch_1.pt", "epoch_2.pt", "latest.pt"]
    assert all(verify(tmp_path / name).ok for name in names(tmp_path))


def test_files_replaced_keep_their_mode(tmp_path: Path) -> None:
    run(tmp_path, [0.5])
    (tmp_path / "latest.pt").chmod(0o640)
    run(tmp_path, [0.5])
    assert (tmp_path / "latest.pt").stat().st_mode & 0o777 in (0o640, 0o644)
    assert (tmp_path / "epoch_2.pt").stat().st_mode & 0o400


# Best


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([math.nan, 0.5, math.nan, 0.7], 2),
        ([0.5, 0.5, 0.5], 1),
        ([-math.inf, 0.5, math.inf], 2),
        ([math.nan, math.nan], None),
    ],
)
def test_nan_is_never_best_and_ties_keep_the_earlier(
    tmp_path: Path, losses: list[float], best: int | None
) -> None:
    run(tmp_path, losses)
    if best is None:
        assert "best.pt" not in names(tmp_path)
    else:
        assert load(tmp_path / "best.pt").epochs_finished == best


def test_the_best_on_disk_is_to_be_beaten_after_a_restart(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.3])
    run(tmp_path, [0.4])
    assert load(tmp_path / "best.pt").epochs_finished == 2
    run(tmp_path, [0.2])
    assert load(tmp_path / "best.pt").epochs_finished == 4


def test_two_best_files_of_two_metrics_each_follow_their_own(tmp_path: Path) -> None:
    layout = Layout(
        name="two",
        templates={"latest": "latest.pt", "best": "best_loss.pt", "best_auc": "best_auc.pt"},
        save=(
            EveryEpochs(1, role="latest"),
            Best("loss", "min"),
            Best("auc", "max", role="best_auc"),
        ),
        metric="loss",
        mode="min",
    )
    values = [(0.5, 0.6), (0.6, 0.9), (0.4, 0.7), (0.7, 0.8), (0.3, 0.5)]
    for part in (values[:2], values[2:4], values[4:]):
        with opened(tmp_path, layout) as manager:
            found = manager.resume()
            for epoch, (loss, auc) in enumerate(part, 0 if found is None else found.epochs_finished or 0):
                manager.step(state(), epoch=epoch, metrics={"loss": loss, "auc": auc})
    assert load(tmp_path / "best_auc.pt").epochs_finished == 2
    assert load(tmp_path / "best_loss.pt").epochs_finished == 5


def test_a_best_deleted_by_hand_is_made_anew_by_the_next_measured_epoch(tmp_path: Path) -> None:
    with opened(tmp_path) as manager:
        manager.step(state(1), epoch=0, metrics={"loss": 0.1})
        (tmp_path / "best.pt").unlink()
        manager.step(state(2), epoch=1, metrics={"loss": 0.5})
        manager.step(state(3), epoch=2, metrics={"loss": 0.4})
    assert load(tmp_path / "best.pt").epochs_finished == 3


def test_the_best_stays_when_its_epochs_file_is_rotated_away(tmp_path: Path) -> None:
    run(tmp_path, [0.1, 0.5, 0.5, 0.5])
    assert names(tmp_path) == ["best.pt", "epoch_3.pt", "epoch_4.pt", "latest.pt"]
    assert load(tmp_path / "best.pt").epochs_finished == 1


def test_a_layout_that_keeps_nothing_still_has_best_latest_and_final(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4, 0.6], plain("loss", "min").with_rules(keep=Nothing()), total_epochs=3)
    assert names(tmp_path) == ["best.pt", "epoch_3.pt", "final.pt", "latest.pt"]


# Resume


def test_resume_none_starts_afresh_and_moves_the_former_run_away(tmp_path: Path) -> None:
    first = run(tmp_path, [0.5, 0.4])
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    second = run(tmp_path, [0.9], resume="none")
    assert first != second
    assert names(tmp_path) == ["best.pt", "epoch_1.pt", "latest.pt"]
    (moved,) = (tmp_path / "archived").iterdir()
    assert {path.name: path.read_bytes() for path in moved.iterdir()} == before


def test_opening_and_resuming_moves_and_deletes_nothing(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4, 0.3])
    before = names(tmp_path)
    with opened(tmp_path, plain("loss", "min", last=1)) as manager:
        manager.resume("none")
    assert names(tmp_path) == before
    with opened(tmp_path) as manager:
        manager.resume()
    assert names(tmp_path) == before


def test_resume_of_a_file_elsewhere_is_a_run_of_its_own_that_names_its_parent(tmp_path: Path) -> None:
    key = run(tmp_path / "first", [0.5])
    with opened(tmp_path / "second") as manager:
        found = manager.resume(tmp_path / "first" / "best.pt")
        assert found is not None
        manager.step(state(2), epoch=1, metrics={"loss": 0.4})
    header = read_header(tmp_path / "second" / "latest.pt")
    assert header.run_key not in (None, key)
    assert header.metadata["parent"] == {
        "run_key": key,
        "model_digest": found.header.model_digest,
        "file": "best.pt",
    }


def test_history_and_stages_go_on_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as manager:
        manager.step(state(), epoch=0, metrics={"loss": 0.5}, stage="head")
        manager.step(state(), epoch=1, metrics={"loss": 0.4}, stage="layer4")
    with opened(tmp_path) as manager:
        manager.resume()
        assert manager.history == {"loss": [0.5, 0.4]}
        manager.step(state(), epoch=2, metrics={"loss": math.nan, "auc": 0.7}, stage="layer4")
    found = load(tmp_path / "latest.pt")
    assert found["history"]["loss"][:2] == [0.5, 0.4] and math.isnan(found["history"]["loss"][2])
    assert math.isnan(found["history"]["auc"][0]) and found["history"]["auc"][2] == 0.7
    assert found.header.metadata["stages"] == ["head", "layer4"]


def test_an_epoch_that_is_run_again_stands_in_the_history_once(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4, 0.3])
    with opened(tmp_path) as manager:
        manager.resume(tmp_path / "epoch_2.pt")
        manager.step(state(), epoch=2, metrics={"loss": 0.35})
        assert manager.history == {"loss": [0.5, 0.4, 0.35]}


def test_going_back_to_an_older_file_leaves_the_later_ones_behind(tmp_path: Path) -> None:
    layout = plain("loss", "min", last=9)
    key = run(tmp_path, [0.5, 0.4, 0.3, 0.2, 0.6], layout)
    with opened(tmp_path, layout) as manager:
        manager.resume(tmp_path / "epoch_2.pt")
        manager.step(state(30), epoch=2, metrics={"loss": 0.45})
        assert manager.run_key == key
    # The best of the run stays the best: the new line has not beaten it.
    assert names(tmp_path) == ["best.pt", "epoch_1.pt", "epoch_2.pt", "epoch_3.pt", "latest.pt"]
    assert load(tmp_path / "best.pt").epochs_finished == 4
    (moved,) = (tmp_path / "archived").iterdir()
    assert names(moved) == ["epoch_4.pt", "epoch_5.pt", "latest.pt"]  # the third is run again
    # The next session goes on with the new line, though the best says a later epoch.
    with opened(tmp_path, layout) as manager:
        found = manager.resume()
    assert found is not None and found.epochs_finished == 3
    assert float(found["model_state_dict"]["w"][0]) == 30.0


def test_a_run_key_that_is_given_finds_its_files_and_counts_their_best(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.1], run_key="mine")
    with opened(tmp_path, run_key="mine") as manager:  # resumed by other means: the loop knows where it is
        manager.step(state(3), epoch=2, metrics={"loss": 0.3})
    assert names(tmp_path) == ["best.pt", "epoch_2.pt", "epoch_3.pt", "latest.pt"]
    assert load(tmp_path / "best.pt").epochs_finished == 2
    assert {read_header(tmp_path / name).run_key for name in names(tmp_path)} == {"mine"}


def test_an_extended_run_gets_a_new_final_file(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4], total_epochs=2)
    assert load(tmp_path / "final.pt").epochs_finished == 2
    run(tmp_path, [0.3], total_epochs=4)
    assert load(tmp_path / "final.pt").epochs_finished == 2
    run(tmp_path, [0.3], total_epochs=4)
    assert load(tmp_path / "final.pt").epochs_finished == 4
    assert not (tmp_path / "archived").exists()


def test_a_cut_off_save_gets_its_other_names_at_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, [0.5, 0.4])
    real, done = durable.replace, []

    def killed(source: Path, target: Path) -> None:
        if done:
            raise KeyboardInterrupt
        if target.suffix == ".pt":
            done.append(target)
        real(source, target)

    monkeypatch.setattr(durable, "replace", killed)
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as manager:
        manager.resume()
        manager.step(state(3), epoch=2, metrics={"loss": 0.3})
    monkeypatch.undo()
    assert "epoch_3.pt" not in names(tmp_path)
    with opened(tmp_path) as manager:
        found = manager.resume()
    assert found is not None and found.epochs_finished == 3
    assert {load(tmp_path / name).epochs_finished for name in ("best.pt", "latest.pt", "epoch_3.pt")} == {3}
    assert len({(tmp_path / name).stat().st_ino for name in ("best.pt", "latest.pt", "epoch_3.pt")}) == 1


# Weights alone


light = Layout(
    name="light",
    templates={"latest": "latest.pt", "best": "best.pt"},
    save=(EveryEpochs(1, role="latest"), Best("loss", "min")),
    metric="loss",
    mode="min",
    weights_only=frozenset({"best"}),
)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_weights_only_role_has_no_optimizer_and_is_not_resumed_from(
    tmp_path: Path, asynchronous: bool
) -> None:
    run(tmp_path, [0.5, 0.4], light, asynchronous=asynchronous)
    best, latest = load(tmp_path / "best.pt"), load(tmp_path / "latest.pt")
    assert "optimizer_state_dict" not in best and "optimizer_state_dict" in latest
    assert best.header.model_digest == latest.header.model_digest
    assert (best.header.roles, latest.header.roles) == (("best",), ("latest",))
    with opened(tmp_path, light) as manager:
        found = manager.resume()
    assert found is not None and found.path.name == "latest.pt"


# What others put there


def test_files_the_manager_did_not_write_are_never_touched(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "mine.pt")
    save(tmp_path / "epoch_by_hand.pt", state())
    (tmp_path / "notes.txt").write_text("do not delete")
    (tmp_path / "epoch_7.ckpt.bak").write_text("nor this")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run(tmp_path, [0.5] * 8)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_foreign_file_put_under_a_name_the_run_needs_is_moved_not_overwritten(tmp_path: Path) -> None:
    with opened(tmp_path) as manager:
        manager.step(state(1), epoch=0)
        torch.save({"theirs": 1}, tmp_path / "epoch_2.pt")
        content = (tmp_path / "epoch_2.pt").read_bytes()
        manager.step(state(2), epoch=1)
    (moved,) = (tmp_path / "archived").glob("*/epoch_2.pt")
    assert moved.read_bytes() == content
    assert load(tmp_path / "epoch_2.pt").epochs_finished == 2


def test_a_pinned_file_outlives_rotation(tmp_path: Path) -> None:
    with opened(tmp_path) as manager:
        manager.step(state(), epoch=0)
        write_pins(tmp_path, {"epoch_1.pt": "for the paper"})
        for epoch in range(1, 6):
            manager.step(state(), epoch=epoch)
    assert names(tmp_path) == ["epoch_1.pt", "epoch_5.pt", "epoch_6.pt", "latest.pt"]


def test_broken_pins_end_rotation_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as manager:
        manager.step(state(), epoch=0)
        (tmp_path / ".ckptcore" / "pins.json").write_text("{")
        for epoch in range(1, 4):
            manager.step(state(), epoch=epoch)
    assert [f"epoch_{n}.pt" in names(tmp_path) for n in range(1, 5)] == [True] * 4
    assert "nothing was rotated away" in caplog.text


def test_a_version_is_neither_rotated_nor_moved_when_a_new_run_starts(tmp_path: Path) -> None:
    layout = plain("loss", "min", last=1)
    run(tmp_path, [0.5], layout)
    card = promote(tmp_path / "best.pt", version="1.0.0")
    run(tmp_path, [0.4, 0.3, 0.2], layout)
    run(tmp_path, [0.4], layout, resume="none")
    assert verify(card.path).ok and card.card_path.exists()


# One writer


def test_a_second_manager_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    text = """
import sys, time
from pathlib import Path
from ckptcore.lease import Lease
lease = Lease(Path(sys.argv[1]))
lease.acquire()
print("held", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(FolderBusy) as caught:
            opened(tmp_path)
        assert caught.value.holder["pid"] == process.pid
        assert f"pid {process.pid}" in str(caught.value)
    assert process.wait(timeout=20) == 0
    opened(tmp_path).close()


def test_a_closed_manager_saves_nothing_more(tmp_path: Path) -> None:
    manager = opened(tmp_path)
    manager.step(state(), epoch=0)
    manager.close()
    manager.close()
    with pytest.raises(UsageError, match="closed"):
        manager.step(state(), epoch=1)
    assert names(tmp_path) == ["epoch_1.pt", "latest.pt"]


def test_a_folder_whose_opening_failed_is_free_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(manager_module.rotation, "drop_former_bests", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            opened(tmp_path)
    opened(tmp_path).close()


# Exceptions and reasons


def test_an_exception_saves_the_state_under_its_own_name_and_resume_passes_it_over(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(tmp_path, asynchronous=True) as manager:
        for epoch in range(3):
            manager.step(lambda: state(epoch + 1), epoch=epoch, metrics={"loss": 0.5})  # noqa: B023
        epoch = 9
        raise ZeroDivisionError
    found = load(tmp_path / "exception.pt")
    assert found.header.reason == "exception" and found.header.roles == ("exception",)
    assert float(found["model_state_dict"]["w"][0]) == 10.0
    with opened(tmp_path) as manager:
        resumed = manager.resume()
    assert resumed is not None and resumed.path.name == "latest.pt" and resumed.epochs_finished == 3


def test_an_exception_never_replaces_the_latest(tmp_path: Path) -> None:
    rules: list[SaveRule] = [*plain().save, EveryMinutes(1e-9), EverySteps(1)]
    with pytest.raises(ZeroDivisionError), opened(tmp_path, save=rules) as manager:
        manager.step(lambda: state(1), epoch=0)
        raise ZeroDivisionError
    assert load(tmp_path / "latest.pt").header.reason is None
    assert load(tmp_path / "exception.pt").header.reason == "exception"


def test_an_exception_of_a_loop_that_gave_its_state_ready_made_saves_nothing_torn(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(tmp_path) as manager:
        manager.step(state(1), epoch=0)
        raise ZeroDivisionError
    assert "exception.pt" not in names(tmp_path)


def test_a_state_that_cannot_be_made_does_not_hide_the_exception(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter([state(1)])
    with pytest.raises(ZeroDivisionError), opened(tmp_path) as manager:
        manager.step(lambda: next(calls), epoch=0)
        raise ZeroDivisionError
    assert "could not be saved" in caplog.text
    opened(tmp_path).close()


def test_a_nonfinite_state_is_kept_as_latest_and_training_resumes_before_it(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4])
    with opened(tmp_path) as manager:
        manager.resume()
        manager.step(state(math.nan), epoch=2, metrics={"loss": 0.1}, reason="nonfinite")
    assert load(tmp_path / "latest.pt").header.reason == "nonfinite"
    assert load(tmp_path / "best.pt").epochs_finished == 2
    with opened(tmp_path) as manager:
        found = manager.resume()
    assert found is not None and found.epochs_finished == 2


def test_a_finite_state_that_was_saved_before_a_nonfinite_step_is_gone_on_from(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4])
    with opened(tmp_path) as manager:
        manager.resume()
        manager.step(state(0.3), epoch=2, global_step=7, epoch_end=False, reason="nonfinite")
    with opened(tmp_path) as manager:
        found = manager.resume()
    assert found is not None and (found.header.reason, found.header.global_step) == ("nonfinite", 7)


# Steps and epochs


def test_steps_within_an_epoch_count_as_given(tmp_path: Path) -> None:
    layout = Layout(
        name="steps",
        templates={"latest": "latest.pt", "periodic": "step_{global_step}.pt"},
        save=(EverySteps(2), EverySteps(2, role="periodic")),
        keep=LastK(2),
    )
    with opened(tmp_path, layout) as manager:
        for step in range(8):
            manager.step(state(step), epoch=0, epoch_end=False, global_step=step)
    assert names(tmp_path) == ["latest.pt", "step_4.pt", "step_6.pt"]
    with opened(tmp_path, layout) as manager:
        found = manager.resume()
        assert found is not None
        assert (found.epochs_finished, found.header.global_step, found["epoch"]) == (0, 6, -1)
        assert manager.step(state(), epoch=0, epoch_end=False, global_step=7) is None
        assert manager.step(state(), epoch=0, epoch_end=False, global_step=8) is not None


@pytest.mark.parametrize(
    ("given", "epoch_end", "expected"),
    [(0, False, 0), (0, True, 0), (None, True, 4), (None, False, 3), (np.int64(9), True, 9)],
)
def test_the_step_in_the_file_is_the_one_given(
    tmp_path: Path, given: Any, epoch_end: bool, expected: int
) -> None:
    with opened(tmp_path, save=[EveryMinutes(1e-9)]) as manager:
        manager.step(state(), epoch=3, global_step=given, epoch_end=epoch_end)
    header = read_header(tmp_path / "latest.pt")
    assert (header.global_step, header.epochs_finished) == (expected, 4 if epoch_end else 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": -1},
        {"epoch": 0.5},
        {"epoch": 0, "global_step": -1},
        {"epoch": 0, "metrics": {"loss": "low"}},
        {"epoch": 0, "metrics": ["loss"]},
        {"epoch": 0, "metadata": ["note"]},
        {"epoch": 0, "stage": 3},
        {"epoch": 0, "state": lambda: None},
        {"epoch": 0, "state": 3},
    ],
)
def test_impossible_steps_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with opened(tmp_path) as manager, pytest.raises(UsageError, match="expected"):
        manager.step(**{"state": state()} | wrong)


@pytest.mark.parametrize("source", [None, 3, b"latest.pt"])
def test_a_source_that_is_no_name_is_refused(tmp_path: Path, source: Any) -> None:
    with opened(tmp_path) as manager, pytest.raises(UsageError, match="file to resume from"):
        manager.resume(source)


@pytest.mark.parametrize("key", [7, "", 0, b"mine"])
def test_a_run_key_by_which_no_run_is_ever_found_is_refused(tmp_path: Path, key: Any) -> None:
    with pytest.raises(UsageError, match="run_key"):
        opened(tmp_path / "run", run_key=key)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_folder_means_no_checkpoints_and_training_goes_on(
    nothing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with CheckpointManager(nothing) as manager:
        assert manager.resume() is None
        assert manager.step(lambda: 1 / 0, epoch=0, metrics={"loss": 0.5}) is None  # type: ignore[arg-type, return-value]
        assert manager.history == {"loss": [0.5]}
    assert list(tmp_path.iterdir()) == []


# Clocks


def test_a_clock_that_goes_backwards_does_not_make_an_older_epoch_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, datetime

    class Backwards(datetime):
        hours = 23

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            cls.hours -= 1
            return datetime(2020, 1, 1, cls.hours, tzinfo=UTC)

    monkeypatch.setattr("ckptcore.writing.datetime", Backwards)
    layout = plain("loss", "min", last=3).with_rules(save=(EveryEpochs(1), Best("loss", "min")))
    run(tmp_path, [0.5, 0.4, 0.45], layout)
    for number, path in enumerate(sorted(tmp_path.glob("*.pt"))):
        os.utime(path, (1e9 - number, 1e9 - number))
    created = [read_header(tmp_path / f"epoch_{n}.pt").created or "" for n in (1, 2, 3)]
    assert created == sorted(created, reverse=True)
    with opened(tmp_path, layout) as manager:
        found = manager.resume()
    assert found is not None and found.epochs_finished == 3
    run(tmp_path, [0.6, 0.7], layout)
    assert names(tmp_path) == ["best.pt", "epoch_3.pt", "epoch_4.pt", "epoch_5.pt"]


def test_a_rule_and_a_keep_rule_given_to_the_manager_replace_the_layouts(tmp_path: Path) -> None:
    keep: KeepRule = LastK(1)
    with opened(tmp_path, plain(), save=EveryEpochs(2) | Final(role="periodic"), keep=keep) as manager:
        for epoch in range(5):
            manager.step(state(), epoch=epoch, final=epoch == 4)
    assert names(tmp_path) == ["epoch_5.pt"]


def test_what_is_saved_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ckptcore")
    run(tmp_path, [0.5])
    assert "epoch_1.pt" in caplog.text and str(tmp_path) in caplog.text


def test_text_in_a_file_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    layout = Layout(
        "by stage", {"stage": "{stage}_{metric_name}.pt"}, (StageEnds(),), metric="val/f1", mode="max"
    )
    with opened(tmp_path / "in", layout) as manager:
        manager.step(state(), epoch=0, stage="../../out", stage_end=True, metrics={"val/f1": 1.0})
    assert names(tmp_path / "in") == ["_.._out_val_f1.pt"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_last_step_with_a_reason_writes_the_final_file_too(tmp_path: Path) -> None:
    with opened(tmp_path) as manager:
        manager.step(state(), epoch=0, final=True, reason="stopped early")
    assert {"final.pt", "latest.pt"} <= set(names(tmp_path))


def test_a_pin_keeps_a_file_until_it_is_taken_back(tmp_path: Path) -> None:
    run(tmp_path, [3, 2])
    ckptcore.pin(tmp_path / "epoch_1.pt", "figure 3 of the paper")
    run(tmp_path, [3, 2, 1, 1, 1, 1])
    assert "epoch_1.pt" in names(tmp_path)
    ckptcore.unpin(tmp_path / "epoch_1.pt")
    run(tmp_path, [3, 2, 1, 1, 1, 1, 1])
    assert "epoch_1.pt" not in names(tmp_path)
    with pytest.raises(UsageError, match="reason"):
        ckptcore.pin(tmp_path / "best.pt", " ")


def test_a_file_says_what_it_was_made_with_and_not_by_whom(tmp_path: Path) -> None:
    run(tmp_path, [1])
    provenance = load(tmp_path / "latest.pt")["provenance"]
    assert provenance["torch"] == torch.__version__
    assert set(provenance) <= {"ckptcore", "python", "platform", "machine", "torch", "numpy", "lightning"}
