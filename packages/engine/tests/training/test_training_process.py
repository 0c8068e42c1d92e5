"""A training as a process: its commands, its log, its parent, and another one that wants the same."""

import logging
import os
import signal
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from radfuse.engine.cli import run
from radfuse.engine.cli.training_process import show_log

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's end"
)

CHILD = """
import signal, sys, threading
from radfuse.engine.cli.training_process import end_with_parent
def told(number, frame):
    print("told", number, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
end_with_parent()
print("ready", flush=True)
threading.Event().wait(30)
print("nobody told", flush=True)
"""
PARENT = """
import subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
threading.Event().wait(60)
"""


@LINUX
def test_under_dvc_a_training_is_told_to_stop_when_its_parent_is_killed():
    environment = {**os.environ, "DVC_STAGE": "train_toy"}
    command = [sys.executable, "-c", PARENT, CHILD]
    parent = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        # The pipe ends when the child has ended, too.
        assert parent.stdout.read() == f"told {int(signal.SIGTERM)}\n"
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if parent.poll() is None else parent.wait()
        parent.stdout.close()


def test_a_second_training_of_the_same_waits_for_the_first(toy, caplog):
    key = toy.train().key
    busy, told = threading.Event(), threading.Event()

    class Listener(logging.Handler):
        def emit(self, record):
            if "another process trains exactly this" in record.getMessage():
                told.set()

    def first():
        with FileLock(toy.places.work("toy") / f"{key}.lock"):
            busy.set()
            assert told.wait(20)

    listener = Listener()
    logging.getLogger("radfuse.engine.workfolder").addHandler(listener)
    holder = threading.Thread(target=first)
    holder.start()
    assert busy.wait(20)
    try:
        assert not toy.train().trained
    finally:
        logging.getLogger("radfuse.engine.workfolder").removeHandler(listener)
        holder.join()
    assert told.is_set()


def test_the_commands_train_predict_and_promote(toy, capsys):
    base = ["toy", "--params", str(toy.file), "--set", "train.mlflow=false"]
    assert run(["train", *base]) == 0
    assert "toy: 2 epochs; published in saved_models/toy" in capsys.readouterr().out
    assert run(["predict-split", *base]) == 0
    assert "toy: predictions in data/predictions/toy.parquet" in capsys.readouterr().out
    assert run(["promote", *base, "--version", "1.2.0", "--notes", "good"]) == 0
    assert "toy: version 1.2.0 is tiny_v1.2.0_best.pth" in capsys.readouterr().out
    assert run(["promote", *base, "--version", "1.1.0"]) == 1
    assert "1.1.0" in capsys.readouterr().err
    assert run(["promote", *base]) == 2
    capsys.readouterr()
    assert run(["promote", *base, "--version", "1.0"]) == 2
    assert "expected a version of three numbers such as 1.2.0, got '1.0'" in capsys.readouterr().err


def test_an_error_is_one_message_and_no_traceback(toy, capsys):
    assert run(["train", "toy", "--params", str(toy.file), "--resume", "nowhere.pth"]) == 2
    said = capsys.readouterr().err
    assert "expected a file, got nowhere.pth" in said and "Traceback" not in said
    assert run(["train", "tyo", "--params", str(toy.file)]) == 2
    assert "did you mean 'toy'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.toy.batchsize=8", "did you mean 'batch_size'?"),
        ("train.toy", "expected dotted.key=value, got 'train.toy'"),
        ("train.toy.batch_size=1", "train.toy.batch_size: expected at least 2"),
    ],
)
def test_a_setting_that_makes_no_sense_is_wrong_usage(toy, capsys, setting, said):
    assert run(["train", "toy", "--params", str(toy.file), "--set", setting]) == 2
    assert said in capsys.readouterr().err


def test_the_log_tells_no_path_that_begins_at_the_root(toy, capsys):
    with show_log():
        toy.train()
    said = capsys.readouterr().err
    assert "epoch 2/2, all: train_loss" in said and "saved best model: tiny_best.pth" in said
    assert str(toy.root) not in said


def test_after_a_log_the_loggers_are_as_they_were():
    before = {
        name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers))
        for name in ("radfuse", "ckptcore")
    }
    with show_log():
        pass
    for name, (level, handlers) in before.items():
        assert logging.getLogger(name).level == level and logging.getLogger(name).handlers == handlers
