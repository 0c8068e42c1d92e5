"""What a manager knows of its run: a history of bounded length, and metrics that never come."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptcore import CheckpointManager, load
from ckptcore.errors import UsageError
from ckptcore.layouts import plain
from ckptcore.record import RunRecord
from ckptcore.rules import Progress

STATE = {"model_state_dict": {"w": torch.ones(2)}}


def opened(folder: Path) -> CheckpointManager:
    return CheckpointManager(folder, plain("loss"), asynchronous=False, handle_signals=False)


def measured(record: RunRecord, epoch: int, **metrics: float) -> None:
    record.measure(Progress(epoch, True, epoch, metrics=metrics))


def test_a_very_long_history_forgets_its_oldest_epochs_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = {"loss": 1.0, "a": 2.0, "b": 3.0, "c": 4.0}
    with opened(tmp_path) as manager:
        for epoch in (260_000, 260_001):
            manager.step(STATE, epoch=epoch, metrics=metrics)
    assert caplog.text.count("keeps the last 50000 epochs") == 1
    with opened(tmp_path) as manager:
        manager.resume()
        manager.step(STATE, epoch=260_002, metrics=metrics | {"loss": 0.5})
        assert manager.history["loss"][-3:] == [1.0, 1.0, 0.5]
        assert {len(values) for values in manager.history.values()} == {50_000}


def test_many_metrics_share_the_room(tmp_path: Path) -> None:
    record = RunRecord(plain("m0"))
    for epoch in (100_000, 100_001):
        measured(record, epoch, **{f"m{number}": 1.0 for number in range(40)})
    assert {len(values) for values in record.history.values()} == {10_000}


def test_going_back_before_what_is_remembered_begins_the_lists_again() -> None:
    record = RunRecord(plain("loss"))
    measured(record, 100_000, loss=1.0)
    measured(record, 2, loss=2.0)
    assert record.history["loss"][2:] == [2.0]
    assert all(map(math.isnan, record.history["loss"][:2]))


def test_a_metric_that_is_misspelt_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    record = RunRecord(plain("val_auc", "max"))
    for epoch in range(3):
        measured(record, epoch, auc=0.5)
    assert caplog.text.count("'val_auc'") == 1
    assert "it gave 'auc'" in caplog.text


def test_a_metric_that_is_measured_now_and_then_is_not_missed_after_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = RunRecord(plain("loss"))
    measured(record, 0, loss=1.0)
    measured(record, 1, other=1.0)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "wrong",
    [{"epoch": 1 << 53}, {"epoch": 10**5000}, {"global_step": 1 << 64}, {"metrics": {"a": 10**400}}],
    ids=["epoch", "a very long epoch", "step", "metric"],
)
def test_numbers_beyond_reach_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with opened(tmp_path) as manager, pytest.raises(UsageError, match="expected"):
        manager.step(STATE, **({"epoch": 0} | wrong))


def test_the_largest_epoch_is_saved(tmp_path: Path) -> None:
    with opened(tmp_path) as manager:
        manager.step(STATE, epoch=(1 << 53) - 2, metrics={"loss": 1.0})
    assert load(tmp_path / "latest.pt").epochs_finished == (1 << 53) - 1
