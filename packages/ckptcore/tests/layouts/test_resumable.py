"""The layout of the resumable segmentation training. Test names give the requirement."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import ckptcore
from ckptcore import layouts
from ckptcore.catalogue import Catalogue
from ckptcore.manager import CheckpointManager
from ckptcore.rotation import plan_folder
from ckptcore.rules import LastK


def measured(epoch):
    return {"train_loss": 1 / (epoch + 1), "val_dice": 0.7 - abs(epoch - 8) / 100}


def backups(folder):
    return sorted(path.name for path in folder.glob("epoch_*_checkpoint.pt"))


def test_row_5_1_fifty_epochs_leave_a_backup_at_each_fifth_the_best_and_the_latest(
    tmp_path, training, names_in
):
    training.run(tmp_path, layouts.resumable(), 50, measured)
    assert names_in(tmp_path) == {
        *("latest_checkpoint.pt", "best_model.pt"),
        *(f"epoch_{n:03d}_checkpoint.pt" for n in (10, 20, 30, 40, 50)),
    }
    assert torch.load(tmp_path / "best_model.pt")["epoch"] == 9
    latest = (tmp_path / "latest_checkpoint.pt").stat()
    assert latest.st_ino == (tmp_path / "epoch_050_checkpoint.pt").stat().st_ino


def test_row_5_1_latest_is_of_the_epoch_that_has_just_ended(tmp_path, training):
    told = []
    training.run(
        tmp_path,
        layouts.resumable(),
        4,
        measured,
        after_save=lambda *_: told.append(torch.load(tmp_path / "latest_checkpoint.pt")["epoch"]),
    )
    assert told == [1, 2, 3, 4]


def test_row_5_1_without_the_length_of_the_run_a_warning_says_what_is_missing(tmp_path, training, caplog):
    training.run(tmp_path, layouts.resumable(), 2, measured, total_epochs=None)
    assert "give total_epochs" in caplog.text


def test_row_5_2_the_keys_of_the_page(tmp_path, training):
    training.run(tmp_path, layouts.resumable(), 10, measured)
    found = torch.load(tmp_path / "epoch_010_checkpoint.pt", weights_only=True)
    assert found["epoch"] == 10
    assert {"model_state_dict", "optimizer_state_dict", "scheduler_state_dict"} <= set(found)
    assert found["history"] == {
        "train_loss": [1 / (epoch + 1) for epoch in range(10)],
        "val_dice": [0.7 - abs(epoch - 8) / 100 for epoch in range(10)],
        "best_val_dice": 0.7,
        "best_epoch": 9,
    }


def test_row_5_2_before_anything_was_measured_there_is_no_best_epoch(tmp_path, training):
    training.run(tmp_path, layouts.resumable(), 1, lambda epoch: {"train_loss": 1.0})
    history = torch.load(tmp_path / "latest_checkpoint.pt")["history"]
    assert history["val_dice"] == [] and history["best_epoch"] == 0


LOOP = textwrap.dedent(
    """
    import os, sys, torch, ckptcore
    from ckptcore import layouts, manager
    write = manager.write
    def announced(*args):
        os.write(1, b"writing\\n")
        return write(*args)
    manager.write = announced
    model = torch.nn.Linear(512, 512)
    with ckptcore.CheckpointManager(sys.argv[1], layouts.resumable(), total_epochs=100000) as manager:
        found = manager.resume("auto")
        start = found.epochs_finished if found else 0
        if found:
            ckptcore.restore(found, model=model, rng=False)
        for epoch in range(start, 100000):
            with torch.no_grad():
                model.weight.fill_(float(epoch))
            state = lambda: ckptcore.capture(model=model, rng=False)
            manager.step(state, epoch=epoch, metrics={"val_dice": 0.5})
            os.write(1, b"%d\\n" % epoch)
    """
)
FORKING = textwrap.dedent(
    """
    import os, sys, torch, ckptcore
    from ckptcore import layouts
    with ckptcore.CheckpointManager(sys.argv[1] + "/warm", layouts.resumable(), total_epochs=1) as warm:
        warm.step(ckptcore.capture(model=torch.nn.Linear(1, 1)), epoch=0, metrics={"val_dice": 0.5})
        ckptcore.restore(warm.resume(), model=torch.nn.Linear(1, 1), rng=False)
    loop = compile(sys.argv[2], "loop", "exec")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.write(1, b"born %d\\n" % os.getpid())
            exec(loop, {})
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, b"ended %d\\n" % ended)
    """
)


@dataclass
class Run:
    """A training in a process of its own: what it says, how to interrupt it, what it left."""

    folder: Path
    process: subprocess.Popen[str]
    group: int
    epochs: list[int] = field(default_factory=list)

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line.isdigit():
            self.epochs.append(int(line))
        return line

    def await_epochs(self, count: int) -> None:
        while len(self.epochs) < count:
            assert self.hear()

    def await_write(self) -> None:
        while self.hear() != "writing":
            pass

    def interrupt(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # the first signal of two was enough
            os.killpg(self.group, signal.SIGINT)

    def left(self) -> int:
        """Epochs finished in the latest file, which is whole and holds its epoch's weights; 0 for none."""
        path = self.folder / "latest_checkpoint.pt"
        if not path.exists():
            return 0
        assert ckptcore.verify(path).ok
        latest = ckptcore.load(path)
        wanted = torch.full((512, 512), latest["epoch"] - 1.0)
        assert torch.equal(latest["model_state_dict"]["weight"], wanted)
        return int(latest["epoch"])


def test_row_5_3_control_c_at_any_time_leaves_a_good_latest(tmp_path):
    before = 0
    for stop_after in (1, 4, 12):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            run = Run(tmp_path, process, process.pid)
            run.await_epochs(stop_after)
            run.interrupt()
            while run.hear():
                pass
            assert process.wait(timeout=60) == 130
        assert run.epochs[0] == before  # the epoch after the one that was finished when Ctrl-C came
        before = run.left()
        assert before > run.epochs[-1]


def test_row_5_3_control_c_while_python_and_torch_are_still_starting_harms_nothing(tmp_path):
    chance = random.Random(53)
    for delay in (chance.uniform(0, 0.3), chance.uniform(0.3, 1.2)):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        ) as process:
            run = Run(tmp_path, process, process.pid)
            time.sleep(delay)
            run.interrupt()
            while run.hear():
                pass
            assert process.wait(timeout=60) in (130, -signal.SIGINT, 1)
        assert run.left() > max([-1, *run.epochs])


@pytest.fixture
def forking(tmp_path):
    """A process with torch loaded that forks a training for each line that it is given."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, tmp_path, LOOP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


def interrupt_at_random(run: Run, where: str, chance: random.Random) -> None:
    """Ctrl-C while the training opens its folder, between epochs, in a write, or twice in one write."""
    if where == "start":
        time.sleep(chance.uniform(0, 0.03))
    elif where == "epochs":
        run.await_epochs(chance.randint(1, 6))
        time.sleep(chance.uniform(0, 0.02))
    else:
        for _ in range(chance.randint(1, 5)):
            run.await_write()
        time.sleep(chance.uniform(0, 0.004))
    run.interrupt()
    if where == "two in a write":
        time.sleep(chance.uniform(0, 0.002))
        run.interrupt()


def test_row_5_3_control_c_at_random_moments_and_twice_in_one_write(tmp_path, forking):
    chance, before, codes = random.Random(5), 0, set()
    for where in ("start", "epochs", "write", "two in a write") * 4:
        forking.stdin.write("go\n")
        forking.stdin.flush()
        run = Run(tmp_path, forking, int(forking.stdout.readline().removeprefix("born ")))
        interrupt_at_random(run, where, chance)
        while not (line := run.hear()).startswith("ended"):
            pass
        code = int(line.removeprefix("ended "))
        codes.add((where, code))
        # Before the manager is open Ctrl-C is Python's own; a second one ends the run at once.
        assert code == 130 or (where in ("start", "two in a write") and code == -signal.SIGINT)
        assert run.epochs[:1] in ([], [before])
        last = max([before - 1, *run.epochs])
        after = run.left()
        assert after > last if code == 130 else after >= max(before, last)
        before = after
    assert ("two in a write", -signal.SIGINT) in codes and before > 10


def test_row_5_4_list_latest_resume_and_clean_have_what_they_need(tmp_path, new_training):
    new_training().run(tmp_path, layouts.resumable(), 50, measured)
    listed = {f.name: f.header.epochs_finished for f in Catalogue.scan(tmp_path) if f.header}
    assert listed["epoch_030_checkpoint.pt"] == 30 and listed["latest_checkpoint.pt"] == 50
    assert Catalogue.scan(tmp_path)[-1].name == "latest_checkpoint.pt"
    doomed = plan_folder(tmp_path, layouts.resumable(), None, LastK(2)).doomed
    assert doomed == [f"epoch_{n:03d}_checkpoint.pt" for n in (10, 20, 30)]


@pytest.mark.parametrize(("source", "goes_on_at"), [("auto", 5), ("epoch_002_checkpoint.pt", 2)])
def test_row_5_4_resume_from_the_latest_or_from_one(tmp_path, new_training, source, goes_on_at):
    new_training().run(tmp_path, layouts.resumable(), 5, measured, total_epochs=10)
    resumed = new_training(1)
    given = source if source == "auto" else tmp_path / source
    resumed.run(tmp_path, layouts.resumable(), 7, measured, total_epochs=10, resume=given)
    assert resumed.seen == list(range(goes_on_at, 7))
    assert torch.load(tmp_path / "latest_checkpoint.pt")["epoch"] == 7


def test_row_5_6_a_run_of_fifty_extended_to_a_hundred_goes_on_at_fifty_one(tmp_path, new_training):
    new_training().run(tmp_path, layouts.resumable(), 50, measured)
    resumed = new_training(1)
    resumed.run(tmp_path, layouts.resumable(), 100, measured)
    assert resumed.seen[0] == 50 and resumed.seen[-1] == 99  # indices: the 51st to the 100th
    assert backups(tmp_path) == [f"epoch_{n:03d}_checkpoint.pt" for n in (10, 20, 30, 40, 50, 60, 80, 100)]
    assert len(torch.load(tmp_path / "latest_checkpoint.pt")["history"]["val_dice"]) == 100


def test_row_5_6_the_length_may_also_change_while_the_run_goes_on(tmp_path, training):
    def extend(epoch, manager):
        if epoch == 4:
            manager.total_epochs = 20

    training.run(tmp_path, layouts.resumable(), 9, measured, total_epochs=10, after_save=extend)
    assert backups(tmp_path) == [f"epoch_{n:03d}_checkpoint.pt" for n in (2, 4, 8)]


def test_row_5_8_whether_a_checkpoint_is_valid_is_answered_byte_by_byte(tmp_path, training):
    training.run(tmp_path, layouts.resumable(), 1, measured)
    path = tmp_path / "latest_checkpoint.pt"
    assert ckptcore.verify(path).ok
    data = bytearray(path.read_bytes())
    data[data.index(training.model.weight.detach().numpy().tobytes())] ^= 1
    path.write_bytes(data)
    torch.load(path)  # which is all that the segmentation training had to check a file, and it is content
    report = ckptcore.verify(path)
    assert not report.ok and "model_state_dict/weight" in " ".join(report.findings)


def test_row_5_9_best_may_hold_weights_alone(tmp_path, training):
    training.model = torch.nn.Linear(300, 300)
    training.__post_init__()
    training.epoch = lambda: None
    training.model(torch.randn(2, 300)).sum().backward()
    training.optimizer.step()
    training.run(tmp_path, layouts.resumable(best_weights_only=True), 1, measured)
    best, latest = tmp_path / "best_model.pt", tmp_path / "latest_checkpoint.pt"
    assert best.stat().st_size < 0.36 * latest.stat().st_size  # AdamW holds two numbers for each weight
    found = torch.load(best)
    assert "optimizer_state_dict" not in found and "scheduler_state_dict" not in found
    assert found["epoch"] == 1 and found["history"]["best_val_dice"] == measured(0)["val_dice"]
    assert ckptcore.verify(best).ok
    assert ckptcore.read_header(best).model_digest == ckptcore.read_header(latest).model_digest


def test_row_5_9_no_run_goes_on_from_weights_alone_while_there_is_a_whole_file(tmp_path, new_training):
    layout = layouts.resumable(best_weights_only=True)
    new_training().run(tmp_path, layout, 4, lambda epoch: {"val_dice": epoch / 10}, total_epochs=10)
    (tmp_path / "latest_checkpoint.pt").unlink()
    with CheckpointManager(tmp_path, layout) as manager:
        found = manager.resume()
    assert found is not None and "optimizer_state_dict" in found and found.epochs_finished == 4


def test_a_recorded_policy_gives_every_preset_back(tmp_path):
    for layout in (
        layouts.plain("loss"),
        layouts.staged(),
        layouts.trainer_node("7"),
        layouts.run_folder(),
        layouts.saved_models("resnet50"),
        layouts.resumable(best_weights_only=True, latest=False),
    ):
        policy = json.loads(json.dumps(layout.policy()))
        assert layouts.Layout.from_policy(policy).policy() == layout.policy()
