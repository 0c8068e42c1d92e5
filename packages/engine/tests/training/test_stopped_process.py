"""`radfuse train` as a process that is stopped from outside, and started again."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time

import psutil
import pytest
from outcomes import assert_same, result
from processes import TRAIN, environment, started, stopped
from stopping import steps_done
from trainable import toy_pipeline

import ckptcore


@pytest.mark.parametrize(
    ("how", "code", "workers"),
    [
        (signal.SIGTERM, 143, 0),
        (signal.SIGTERM, 143, 2),
        (signal.SIGINT, 130, 2),
        pytest.param(signal.SIGINT, 130, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, 2, marks=pytest.mark.slow),
    ],
)
def test_row_5_3_a_signal_to_all_processes_saves_the_step_under_way_and_the_next_start_ends_the_same(
    tmp_path, monkeypatch, how, code, workers
):
    whole, torn = (toy_pipeline(tmp_path / name, block={"workers": workers}) for name in ("whole", "torn"))
    whole.train()
    # The second time the signal comes while the training waits for those who load.
    for step, seconds in ((3, "0"), (8, "0.1")):
        returned, last, said = stopped(torn, step, how, SECONDS_A_SAMPLE=seconds)
        assert returned == code
        header = ckptcore.read_header(torn.works()[0] / "tiny_latest.pth")
        assert (header.reason, header.global_step) == ("signal", last)
        assert "Traceback" not in said
        assert f"all until step {last} " in said and "the same command goes on from there" in said
    done = steps_done(monkeypatch)
    torn.train()
    assert done[0] == last + 1
    assert_same(result(whole), result(torn))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no terminals of this kind")
def test_a_terminal_that_is_closed_is_one_signal_and_what_it_cannot_show_any_more_stops_nothing(tmp_path):
    whole, torn = (toy_pipeline(tmp_path / name, block={"progress": "auto"}) for name in ("whole", "torn"))
    whole.train()
    # As in a window: a shell, and the training in front of it. Steps go to a file, all else to the window.
    steps = tmp_path / "steps"
    window, inside = os.openpty()
    shell = subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1" "$2" > "$3"; exit $?', sys.executable, TRAIN, str(torn.file), str(steps)],
        cwd=torn.root, env={**environment(), "SECONDS_A_SAMPLE": "0.05"}, stdin=inside, stdout=inside,
        stderr=inside, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(inside)
    try:
        until = time.monotonic() + 60
        while "3" not in (steps.read_text().split() if steps.exists() else ()):
            assert time.monotonic() < until and shell.poll() is None
            # Somebody looks at it: one that is full would hold the training up.
            if select.select([window], [], [], 0.01)[0]:
                os.read(window, 65536)
        inner = psutil.Process(shell.pid).children()
    finally:
        os.close(window)
    for one in inner:
        # As bash does, besides what the kernel sends.
        time.sleep(0.001)
        one.send_signal(signal.SIGHUP)
    shell.wait(timeout=60)
    assert psutil.wait_procs(inner, timeout=60)[1] == []
    header = ckptcore.read_header(torn.works()[0] / "tiny_latest.pth")
    assert (header.reason, header.global_step) == ("signal", int(steps.read_text().split()[-1]))
    torn.train()
    assert_same(result(whole), result(torn))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere DVC's end is noticed later")
def test_a_scheduler_that_stops_dvc_and_all_it_started_is_no_second_signal(tmp_path):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train()
    parent = [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"]
    child = [
        "-c",
        f"from radfuse.engine.cli.training_process import end_with_parent\nend_with_parent()\n{TRAIN}",
    ]
    with subprocess.Popen(
        [*parent, *child, str(torn.file)], cwd=torn.root, env={**environment(), "DVC_STAGE": "train_toy"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as dvc:  # fmt: skip
        steps = []
        for line in dvc.stdout:
            steps.append(int(line))
            if steps[-1] == 8:
                os.killpg(dvc.pid, signal.SIGTERM)
        said = dvc.stderr.read()
    header = ckptcore.read_header(torn.works()[0] / "tiny_latest.pth")
    assert (header.reason, header.global_step) == ("signal", steps[-1]), said
    assert f"all until step {steps[-1]} " in said
    torn.train()
    assert_same(result(whole), result(torn))


def test_a_second_signal_ends_at_once_and_what_was_committed_stays_whole(tmp_path):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train()
    returned, _, _ = stopped(torn, 8, signal.SIGINT, signal.SIGINT)
    assert returned in (130, -signal.SIGINT)
    assert all(ckptcore.verify(path).ok for path in torn.works()[0].glob("*.pth"))
    torn.train()
    assert_same(result(whole), result(torn))


def those_who_load(running):
    """The processes that load for a training, once it has made two steps."""
    assert any(line.startswith("2") for line in running.stdout)
    return psutil.Process(running.pid).children(recursive=True)


def test_a_training_whose_process_that_loads_is_killed_says_so(tmp_path):
    pipeline = toy_pipeline(tmp_path, block={"workers": 1})
    with started(pipeline, SECONDS_A_SAMPLE="0.05") as running:
        [loading] = those_who_load(running)
        loading.kill()
        _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "a process that loads samples was killed" in said and "fewer train.workers" in said
    assert "Traceback" not in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere no such server is to be had")
def test_processes_that_load_are_the_trainings_own_where_python_would_have_a_server_start_them(tmp_path):
    pipeline = toy_pipeline(tmp_path, block={"workers": 1})
    with started(pipeline, START_METHOD="forkserver") as running:
        _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere torch needs seconds to notice")
def test_who_loads_ends_with_a_training_that_is_killed(tmp_path):
    pipeline = toy_pipeline(tmp_path, block={"workers": 2})
    with started(pipeline, SECONDS_A_SAMPLE="0.05") as running:
        loading = those_who_load(running)
        assert len(loading) >= 2
        running.kill()
        running.communicate(timeout=60)
    _, left = psutil.wait_procs(loading, timeout=5)
    assert left == []


def test_a_killed_process_loses_what_came_after_the_last_save_alone(tmp_path):
    whole = toy_pipeline(tmp_path / "whole")
    whole.train()
    torn = toy_pipeline(tmp_path / "torn", block={"save_every_steps": 2})
    for step in (3, 9):
        returned, last, _ = stopped(torn, step, signal.SIGKILL)
        assert returned == -signal.SIGKILL
        # A save may still be under way when the process ends.
        latest = torn.works()[0] / "tiny_latest.pth"
        saved = ckptcore.read_header(latest).global_step if latest.exists() else 0
        assert last - 4 <= saved <= last
    torn.train()
    assert_same(result(whole), result(torn))
