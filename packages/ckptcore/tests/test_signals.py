"""Signals: one saves and ends the run, two end it at once; the handlers go back to whoever had them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckptcore import CheckpointManager, durable, load, signals, verify
from ckptcore.errors import DiskFull
from ckptcore.layouts import plain, trainer_node
from ckptcore.rules import EveryEpochs
from ckptcore.signals import SignalFlag, TrainingInterrupted

LOOP = """
import signal, sys, time, torch
# Who runs the tests may ignore it, as nohup does, and the child would then, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from ckptcore import CheckpointManager, manager
from ckptcore.layouts import plain, trainer_node
from ckptcore.rules import EveryEpochs
write = manager.write
begun = 0
def slow(*args):
    global begun
    begun += 1  # writes, not epochs: the loop may be further than its writer
    if sys.argv[2] == "slow" and begun > 3:
        time.sleep(30)
    return write(*args)
manager.write = slow
every = EveryEpochs(1 if sys.argv[2] == "slow" else 1000)
with CheckpointManager(sys.argv[1], plain(), save=every) as m:
    m.resume()
    for epoch in range(100000):
        print("epoch", epoch + 1, flush=True)
        m.step({"model_state_dict": {"w": torch.full((3,), float(epoch + 1))}}, epoch=epoch)
        time.sleep(0.002)
print("not reached", flush=True)
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that saves only when it must; the group is its own."""
    yield from _process(tmp_path, "fast")


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training whose saves, after the third, take half a minute."""
    yield from _process(tmp_path, "slow")


def _process(folder: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(folder), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def await_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"the process ended before it said {line!r}")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_the_latest_state_and_ends_with_its_code(
    number: signal.Signals, code: int, started: subprocess.Popen[str], tmp_path: Path
) -> None:
    await_line(started, "epoch 5")
    os.killpg(started.pid, number)
    assert started.stdout is not None
    last = [line.split() for line in started.stdout]
    assert started.wait(timeout=30) == code
    assert ["not", "reached"] not in last
    epochs = max([5, *(int(words[1]) for words in last if words[0] == "epoch")])
    found = load(tmp_path / "latest.pt")
    assert found.epochs_finished == epochs  # the last step that was begun
    assert found.header.reason == "signal"
    assert float(found["model_state_dict"]["w"][0]) == epochs
    assert not (tmp_path / ".ckptcore" / "writer.json").exists()


def test_a_second_signal_ends_a_slow_save_at_once_and_what_was_committed_stays(
    slow: subprocess.Popen[str], tmp_path: Path
) -> None:
    await_line(slow, "epoch 5")  # the fourth is being written, and the fifth waits for it
    os.killpg(slow.pid, signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):  # the first waits for the save in flight
        slow.wait(timeout=0.5)
    os.killpg(slow.pid, signal.SIGTERM)
    assert slow.wait(timeout=10) == -signal.SIGTERM
    assert all(verify(path).ok for path in tmp_path.glob("*.pt"))
    with CheckpointManager(tmp_path, plain(), handle_signals=False) as manager:
        found = manager.resume()
    assert found is not None and found.epochs_finished in (3, 4)
    assert not list(tmp_path.glob(".ckptcore-*"))


def test_a_terminal_that_is_closed_sends_more_than_one_signal_and_the_save_ends_all_the_same(
    started: subprocess.Popen[str], tmp_path: Path
) -> None:
    await_line(started, "epoch 5")
    for _ in range(3):
        os.killpg(started.pid, signal.SIGHUP)
        time.sleep(0.0005)
    started.communicate(timeout=30)
    assert started.returncode == 128 + signal.SIGHUP
    assert load(tmp_path / "latest.pt").header.reason == "signal"


def test_the_end_of_a_terminal_does_not_hurry_a_save_that_another_signal_asked_for(
    slow: subprocess.Popen[str], tmp_path: Path
) -> None:
    await_line(slow, "epoch 5")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
        os.killpg(slow.pid, number)
        with pytest.raises(subprocess.TimeoutExpired):
            slow.wait(timeout=0.3)
    os.killpg(slow.pid, signal.SIGTERM)
    assert slow.wait(timeout=10) == -signal.SIGTERM


def state() -> dict[str, object]:
    return {"model_state_dict": {"w": torch.ones(2)}}


def test_the_handlers_are_given_back_after_close(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    manager = CheckpointManager(tmp_path)
    assert signal.getsignal(signal.SIGTERM) not in before
    manager.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_saves_though_no_rule_says_so_and_close_gives_the_folder_back(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingInterrupted) as caught,
        CheckpointManager(tmp_path, save=EveryEpochs(100)) as manager,
    ):
        manager.step(state(), epoch=0)
        assert not manager.stop_requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert manager.stop_requested
        manager.step(state(), epoch=1)
    assert (caught.value.code, caught.value.signal_number) == (143, signal.SIGTERM)
    assert load(tmp_path / "latest.pt").epochs_finished == 2
    assert not (tmp_path / "exception.pt").exists()
    CheckpointManager(tmp_path).close()


def test_a_signal_whose_save_does_not_fit_ends_with_that_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DiskFull, match="10 are free"), CheckpointManager(tmp_path, plain()) as manager:
        manager.step({"w": torch.ones(2)}, epoch=0)
        manager.wait()
        monkeypatch.setattr(durable, "free_bytes", lambda _: 10)
        os.kill(os.getpid(), signal.SIGTERM)
        manager.step({"w": torch.zeros(2)}, epoch=1)
    assert load(tmp_path / "latest.pt").epochs_finished == 1


def test_a_signal_that_comes_within_a_step_that_saves_nothing_is_served_by_the_next(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted), CheckpointManager(tmp_path, save=EveryEpochs(100)) as manager:
        real = manager._record.due

        def due(progress: object) -> set[str]:
            os.kill(os.getpid(), signal.SIGTERM)
            manager._record.due = real  # type: ignore[method-assign]
            return set()

        manager._record.due = due  # type: ignore[method-assign, assignment]
        manager.step(state(), epoch=0)
        manager.step(state(), epoch=1)
    assert load(tmp_path / "latest.pt").epochs_finished == 2


def test_two_managers_both_hear_of_a_signal_and_may_close_in_any_order(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    first, second = CheckpointManager(tmp_path / "a"), CheckpointManager(tmp_path / "b")
    first.close()
    os.kill(os.getpid(), signal.SIGTERM)
    assert second.stop_requested and not first.stop_requested
    second.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_handler_can_ask_whether_training_was_told_to_stop(tmp_path: Path) -> None:
    assert signals.received() is None
    with pytest.raises(TrainingInterrupted), CheckpointManager(tmp_path, plain()) as manager:
        assert signals.received() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received() == signal.SIGTERM
        manager.step({"model_state_dict": {}}, epoch=0)
    assert signals.received() is None


def test_a_layout_told_to_keep_no_latest_still_saves_on_a_signal(tmp_path: Path) -> None:
    layout = trainer_node(100, latest=False)
    with pytest.raises(TrainingInterrupted), CheckpointManager(tmp_path, layout) as manager:
        manager.step(state(), epoch=0)
        os.kill(os.getpid(), signal.SIGTERM)
        manager.step(state(), epoch=1)
    assert load(tmp_path / "checkpoint_epoch_2.pt").epochs_finished == 2


def test_a_signal_after_the_last_step_ends_the_process_when_the_manager_closes(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.step(state(), epoch=0)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(TrainingInterrupted) as caught:
        manager.close()
    assert caught.value.code == 143
    CheckpointManager(tmp_path).close()


def test_a_loop_that_asks_and_stops_by_itself_closes_quietly(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        os.kill(os.getpid(), signal.SIGTERM)
        assert manager.stop_requested


def test_a_forked_child_ends_by_a_signal_as_if_there_were_no_manager(tmp_path: Path) -> None:
    forking = multiprocessing.get_context("fork")
    begun = forking.Event()

    def work() -> None:
        begun.set()
        time.sleep(60)

    with CheckpointManager(tmp_path):
        child = forking.Process(target=work)
        child.start()
        assert begun.wait(20)
        child.terminate()
        child.join(20)
        assert child.exitcode == -signal.SIGTERM


def test_a_loop_may_change_its_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with CheckpointManager("run") as manager:
        os.chdir("elsewhere")
        manager.step(state(), epoch=0)
    assert (tmp_path / "run" / "latest.pt").exists()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_handler_that_somebody_set_meanwhile_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    flag = SignalFlag()
    flag.install()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    flag.restore()
    try:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def train() -> None:
        with CheckpointManager(tmp_path) as manager:
            manager.step(state(), epoch=0)
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [before]
    assert load(tmp_path / "latest.pt").epochs_finished == 1


def test_a_run_that_ignores_the_end_of_its_terminal_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    flag = signals.SignalFlag()
    try:
        flag.install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert flag.received is None
        flag.restore()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        flag.restore()
        signal.signal(signal.SIGHUP, before)
