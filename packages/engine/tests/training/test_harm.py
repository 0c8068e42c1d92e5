"""What befalls a training from outside: full disks, damaged arrays, a dead server, a clock set back."""

import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from datetime import datetime, timedelta

import numpy as np
import pytest
from outcomes import assert_same, result
from processes import environment, started
from stopping import stop_at
from trainable import stages, toy_pipeline

import ckptcore
from ckptcore.signals import TrainingInterrupted
from radfuse.engine import tracking
from radfuse.engine.errors import DamagedArray, RadfuseError
from radfuse.engine.prepared import Prepared

SET_BACK = """
import ctypes, datetime, gc, os, time

BACK = int(os.environ["SECONDS_BACK"])
now, now_ns = time.time, time.time_ns
time.time = lambda: now() - BACK
time.time_ns = lambda: now_ns() - BACK * 10**9

def of_datetime(name, act):
    gc.get_referents(datetime.datetime.__dict__)[0][name] = classmethod(act)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))

of_datetime("now", lambda cls, tz=None: cls.fromtimestamp(time.time(), tz))
of_datetime("utcnow", lambda cls: cls.utcfromtimestamp(time.time()))

def dated(act):
    # The system stamps what is written by its own clock, which must stay as it is for all the others.
    def give(source, target, **options):
        if os.path.isfile(source):
            os.utime(source, (time.time(), time.time()))
        return act(source, target, **options)
    return give

os.replace, os.rename, os.link = dated(os.replace), dated(os.rename), dated(os.link)
"""
"""A sitecustomize.py: Python's clock is behind, and so are the times of the files that get their name."""


def finish(pipeline, **variables):
    """Train in a process to its end; what it said."""
    with started(pipeline, **variables) as running:
        _, said = running.communicate(timeout=120)
    return running.returncode, said


def test_on_a_full_disk_training_goes_on_and_what_could_not_be_saved_is_made_up_for(
    tmp_path, small_disk, fill
):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train()
    root = {"RADFUSE_WORK_ROOT": str(small_disk)}
    with started(torn, **root) as running:
        steps = []
        for line in running.stdout:
            steps.append(line.strip())
            if line == "2\n":
                filler = fill()
        said = running.stderr.read()
    # What could not be saved at last is the one thing that ends it.
    assert (running.returncode, steps[-1]) == (1, "12")
    assert "Training goes on; the next save tries again" in said
    assert "log and pictures cannot be written" in said
    assert "Traceback" not in said
    assert "needs 1" in said and "0 are free" in said
    assert not (torn.models / "tiny_best.pth").exists()
    filler.unlink()
    code, said = finish(torn, **root)
    assert code == 0, said
    assert ckptcore.read_header(torn.models / "tiny_best.pth").model_digest == result(whole)[2]


def test_a_read_only_disk_is_told_and_nothing_is_lost(tmp_path, small_disk):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train()
    root = {"RADFUSE_WORK_ROOT": str(small_disk)}
    with started(torn, **root) as running:
        for line in running.stdout:
            if line == "8\n":
                os.killpg(running.pid, signal.SIGTERM)
        running.communicate(timeout=60)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, said = finish(torn, **root)
    assert code == 1
    assert "Read-only file system" in said and "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert finish(torn, **root)[0] == 0
    assert ckptcore.read_header(torn.models / "tiny_best.pth").model_digest == result(whole)[2]


@pytest.mark.parametrize("harm", ["cut", "gone", "other shape", "other bytes"])
def test_an_array_that_was_harmed_is_named_with_what_to_do_and_training_goes_on_when_it_is_back(
    tmp_path, harm
):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train()
    rows = Prepared(torn.places, "toy").rows()
    sample = rows.loc[rows["split"] == "train", "sample_id"].iloc[-1]
    path = torn.root / "data" / "prepared" / "toy" / "arrays" / f"{sample}.npy"
    good = path.read_bytes()
    if harm == "cut":
        path.write_bytes(good[:-20])
    elif harm == "gone":
        path.unlink()
    elif harm == "other shape":
        np.save(path, np.zeros((9, 9), np.uint8))
    else:
        path.write_bytes(good[:-5] + bytes(255 - byte for byte in good[-5:]))
    with pytest.raises(RadfuseError, match=rf"{sample}.*radfuse prepare"):
        torn.train()
    path.write_bytes(good)
    torn.train()
    assert_same(result(whole), result(torn))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_held_out_sample_is_predicted_from_an_array_that_was_changed(tmp_path, workers):
    pipeline = toy_pipeline(tmp_path)
    pipeline.train()
    sample = Prepared(pipeline.places, "toy").samples("test")[-1]
    path = pipeline.places.arrays("toy") / f"{sample}.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-5] + bytes(255 - byte for byte in good[-5:]))
    with pytest.raises(DamagedArray, match=rf"{sample}.*not those that were prepared.*radfuse prepare toy"):
        pipeline.predict(f"predict.workers={workers}")
    path.write_bytes(good)
    pipeline.predict(f"predict.workers={workers}")


def test_of_two_commands_at_once_one_trains_and_the_other_publishes_the_same(tmp_path):
    whole, both = (toy_pipeline(tmp_path / name) for name in ("whole", "both"))
    whole.train()
    first, second = started(both), started(both)
    told = [running.communicate(timeout=120) for running in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), told
    steps = sorted(len([line for line in said.splitlines() if line.isdigit()]) for said, _ in told)
    assert steps == [0, 12]
    assert any("another process trains exactly this" in errors for _, errors in told)
    assert len(both.works()) == 1
    assert_same(result(whole), result(both))


def test_a_training_that_waits_for_another_says_who_that_is(tmp_path, caplog):
    pipeline = toy_pipeline(tmp_path)
    with started(pipeline, SECONDS_A_SAMPLE="0.05") as running:
        assert running.stdout.readline() == "1\n"
        with caplog.at_level(logging.WARNING, "radfuse"):
            assert not pipeline.train().trained
        running.communicate(timeout=120)
    assert running.returncode == 0
    assert re.search(rf"another process trains exactly this, \w+ \(pid {running.pid}, host ", caplog.text)


def test_a_clock_that_was_set_back_changes_nothing_but_times(tmp_path, monkeypatch):
    block = {"save_every_steps": 1}
    whole, torn = (toy_pipeline(tmp_path / name, block=block, save_every=1, keep_last=1) for name in "wt")
    for pipeline in (whole, torn):
        # Another training, which ended a moment ago: its folder is in nobody's way.
        pipeline.train(f"train.toy.stages={stages(1)}")
    three = f"train.toy.stages={stages(3)}"
    whole.train(three)
    with monkeypatch.context() as patch:
        stop_at(patch, [8])
        with pytest.raises(TrainingInterrupted):
            torn.train(three, "train.mlflow=true")
    options = ["--set", three, "--set", "train.mlflow=true"]
    with started(torn, *options, **set_back(tmp_path, days=1)) as running:
        for line in running.stdout:
            if line == "14\n":
                os.killpg(running.pid, signal.SIGKILL)
        running.communicate(timeout=60)
    (work,) = (work for work in torn.works() if len(sessions(work)) == 2)
    left = ckptcore.read_header(work / "tiny_latest.pth")
    assert 8 < left.global_step < 16
    command = [sys.executable, "-m", "radfuse.engine.cli", "train", "toy", "--params", str(torn.file)]
    ran = subprocess.run(
        [*command, *options], env={**environment(), **set_back(tmp_path, days=2)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr

    times = [datetime.fromisoformat(one["started"]) for one in sessions(work)]
    assert times[0] - times[1] > timedelta(hours=23) and times[1] - times[2] > timedelta(hours=23)
    assert (work / "tiny_latest.pth").stat().st_mtime < time.time() - 1.9 * 86_400
    # The last one went on from what the one before had saved, though that is the older file by its times.
    assert sessions(work)[2]["goes_on_from"]["model_digest"] == left.model_digest
    (straight,) = (one for one in whole.works() if one.name == work.name)
    assert_same(result(whole, straight), result(torn, work))
    assert [one.name for one in whole.works()] == [one.name for one in torn.works()]
    for one, other in ((straight, work), (whole.models, torn.models)):
        assert files(one) == files(other)
    assert "tiny_epoch_3.pth" in files(torn.models) and "tiny_epoch_2.pth" not in files(torn.models)

    client = tracking.connect(torn.places)
    (run,) = client.search_runs([client.get_experiment_by_name("radfuse-toy").experiment_id])
    for name in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, name)
        points.sort(key=lambda point: (point.timestamp, point.step))
        assert [point.step for point in points] == [1, 2, 3], name


def set_back(folder, days):
    """Variables by which Python's clock, and what it writes, is days behind."""
    place = folder / "clock"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(SET_BACK)
    path = f"{place}{os.pathsep}{environment()['PYTHONPATH']}"
    return {"PYTHONPATH": path, "SECONDS_BACK": str(days * 86_400)}


def sessions(work):
    """What the log of a work folder tells of its sessions."""
    (log,) = work.glob("training_2*.json")
    return json.loads(log.read_text())["sessions"]


def files(folder):
    """Names of what lies in it, without those that tell a time."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("training_2"))


def test_a_loss_that_is_no_number_ends_the_command_with_1_and_says_what_to_do(tmp_path):
    pipeline = toy_pipeline(tmp_path)
    with started(pipeline, "--set", f"train.toy.stages={stages(2, rate=1e30)}") as running:
        steps, said = running.communicate(timeout=120)
    assert running.returncode == 1, said
    assert "the loss is" in said and "lower the learning rate" in said and "Traceback" not in said
    header = ckptcore.read_header(pipeline.works()[0] / "tiny_latest.pth")
    assert (header.reason, header.global_step) == ("nonfinite", len(steps.splitlines()))
    assert not (pipeline.models / "tiny_best.pth").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("back", ["during the training", "after it"])
def test_a_server_that_dies_during_a_training_has_every_point_when_it_is_back(tmp_path, back):
    epochs = f"train.toy.stages={stages(6)}"
    pipeline = toy_pipeline(tmp_path / "torn", block={"mlflow": True})
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = serve(tmp_path, port)
    variables = {
        tracking.URI: f"http://127.0.0.1:{port}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    }
    try:
        with started(pipeline, "--set", epochs, **variables) as running:
            for line in running.stdout:
                if line == "8\n":
                    end(server)
                if line == "20\n" and back == "during the training":
                    # Two epochs have ended meanwhile; it takes longer to start than the training has left.
                    os.killpg(running.pid, signal.SIGSTOP)
                    server = serve(tmp_path, port)
                    os.killpg(running.pid, signal.SIGCONT)
            said = running.stderr.read()
        assert running.returncode == 0, said
        assert said.count("MLflow cannot be written") == 1
        if back == "during the training":
            assert "MLflow lacks" not in said
        else:
            assert "MLflow lacks a part of this training" in said and "`radfuse train toy` tells it" in said
            server = serve(tmp_path, port)
            with started(pipeline, "--set", epochs, **variables) as running:
                _, said = running.communicate(timeout=120)
            assert running.returncode == 0, said
    finally:
        end(server)
    latest = ckptcore.load(pipeline.works()[0] / "tiny_latest.pth")
    assert len(latest["history"]["val_auc"]) == 6
    (log,) = pipeline.works()[0].glob("training_2*.json")
    assert len(json.loads(log.read_text())["epochs"]) == 6
    with closing(sqlite3.connect(tmp_path / "s.db")) as database:
        wanted = "select step, value from metrics where key = 'val_auc' order by step"
        told = database.execute(wanted).fetchall()
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    assert told == list(enumerate(latest["history"]["val_auc"], 1))


def serve(folder, port):
    """An MLflow server on this machine, once it answers."""
    files = ["--backend-store-uri", f"sqlite:///{folder}/s.db", "--artifacts-destination", str(folder / "s")]
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *place, *files],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 90
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return server
        except OSError:
            time.sleep(0.2)
    end(server)
    raise AssertionError("the server did not start")


def end(server):
    """Kill a server and its workers."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
