"""MLflow's side of a training."""

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from stopping import stop_at
from trainable import Pipeline, toy_pipeline

import ckptcore
from ckptcore.signals import TrainingInterrupted
from radfuse.engine import tracking
from radfuse.engine.places import Places
from radfuse.engine.promoting import promote

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

CONNECT = """
import sys, time
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from radfuse.engine import tracking
from radfuse.engine.places import Places
@event.listens_for(Engine, "after_cursor_execute")
def stay(connection, cursor, statement, *rest):
    if "CREATE TABLE _alembic_tmp_params" in statement:
        print("half made", flush=True)
        time.sleep(600)
tracking.connect(Places(Path(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def own_database(monkeypatch):
    monkeypatch.delenv(tracking.URI, raising=False)


def test_one_run_a_key_survives_a_stop_and_has_every_point_once(tmp_path, monkeypatch):
    pipeline = toy_pipeline(tmp_path, block={"mlflow": True})
    stop_at(monkeypatch, [8])
    with pytest.raises(TrainingInterrupted):
        pipeline.train()
    outcome = pipeline.train()
    client = tracking.connect(pipeline.places)
    experiment = client.get_experiment_by_name("radfuse-toy")
    (run,) = client.search_runs([experiment.experiment_id])
    checkpoint = ckptcore.load(pipeline.models / "tiny_best.pth")
    assert checkpoint["provenance"]["mlflow_run_id"] == run.info.run_id
    assert run.data.tags[tracking.RUN_KEY] == outcome.key and run.info.status == "FINISHED"
    assert run.data.tags["model_digest"] == checkpoint.header.model_digest
    assert run.data.params["train.batch_size"] == "4"
    points = client.get_metric_history(run.info.run_id, "val_auc")
    latest = ckptcore.load(pipeline.works()[0] / "tiny_latest.pth")
    assert [(point.step, point.value) for point in points] == list(enumerate(latest["history"]["val_auc"], 1))
    assert [point.timestamp for point in points] == [
        round(t * 1000) for t in latest["history"]["finished_at"]
    ]
    pictures = {item.path for item in client.list_artifacts(run.info.run_id, "pictures")}
    assert "pictures/epoch_001_batch_001.png" in pictures and "pictures/learning_curves.png" in pictures
    # A second writing of the same points, as after a crash, is no second point.
    again = tracking.Tracker(pipeline.places, "toy", outcome.key)
    again.begin({}, {})
    again.log_epochs(latest["history"], 2)
    assert len(client.get_metric_history(run.info.run_id, "val_auc")) == 2

    card = promote(pipeline.params(), pipeline.places, "toy", version="1.0.0", notes="first")
    second = promote(pipeline.params(), pipeline.places, "toy", bump="minor")
    champion = client.get_model_version_by_alias("radfuse-toy", "champion")
    assert (card.version, second.version) == ("1.0.0", "1.1.0")
    assert champion.tags["semver"] == "1.1.0" and champion.run_id == run.info.run_id
    assert champion.tags["sha256"] == second.sha256
    files = {item.path for item in client.list_artifacts(run.info.run_id, "versions/1.1.0")}
    assert files == {"versions/1.1.0/tiny_v1.1.0_best.pth", "versions/1.1.0/tiny_v1.1.0_best.json"}


def points_of(pipeline, key):
    """Every point of the runs of a key, a run each: (metric, step, value)."""
    client = tracking.connect(pipeline.places)
    experiment = client.get_experiment_by_name("radfuse-toy")
    runs = client.search_runs([experiment.experiment_id], f"tags.`{tracking.RUN_KEY}` = '{key}'")
    return [
        sorted(
            (name, point.step, point.value)
            for name in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, name)
        )
        for run in runs
    ]


def test_epochs_that_are_trained_again_have_every_point_once(tmp_path):
    pipeline = toy_pipeline(tmp_path, block={"mlflow": True}, save_every=1)
    key = pipeline.train().key
    (before,) = points_of(pipeline, key)
    assert pipeline.train(resume="tiny_epoch_1.pth").trained
    assert points_of(pipeline, key) == [before]


def test_a_training_that_begins_anew_has_a_run_of_its_own(tmp_path):
    pipeline = toy_pipeline(tmp_path, block={"mlflow": True})
    key = pipeline.train().key
    (before,) = points_of(pipeline, key)
    pipeline.train(resume="none")
    assert points_of(pipeline, key) == [before]
    client = tracking.connect(pipeline.places)
    experiment = client.get_experiment_by_name("radfuse-toy")
    keys = [run.data.tags[tracking.RUN_KEY] for run in client.search_runs([experiment.experiment_id])]
    assert len(keys) == len(set(keys)) == 2


def test_one_that_begins_anew_while_mlflow_is_away_has_a_run_of_its_own_when_it_is_back(
    tmp_path, monkeypatch
):
    pipeline = toy_pipeline(tmp_path, block={"mlflow": True})
    key = pipeline.train().key
    (before,) = points_of(pipeline, key)
    with monkeypatch.context() as patch:
        patch.setenv(tracking.URI, "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        pipeline.train(resume="none")
    for _ in range(2):
        assert not pipeline.train().trained
    assert points_of(pipeline, key) == [before]
    client = tracking.connect(pipeline.places)
    assert len(client.search_runs([client.get_experiment_by_name("radfuse-toy").experiment_id])) == 2


def test_a_training_that_ended_while_mlflow_was_away_is_told_to_it_when_it_is_back(tmp_path, monkeypatch):
    pipeline = toy_pipeline(tmp_path, block={"mlflow": True})
    with monkeypatch.context() as patch:
        patch.setenv(tracking.URI, "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        key = pipeline.train().key
    for _ in range(2):
        assert not pipeline.train().trained
        (found,) = points_of(pipeline, key)
    history = ckptcore.load(pipeline.works()[0] / "tiny_latest.pth")["history"]
    told = [(step, value) for name, step, value in found if name == "val_auc"]
    assert told == list(enumerate(history["val_auc"], 1))
    client = tracking.connect(pipeline.places)
    (run,) = client.search_runs([client.get_experiment_by_name("radfuse-toy").experiment_id])
    best = ckptcore.read_header(pipeline.models / "tiny_best.pth")
    assert (run.info.status, run.data.tags["model_digest"]) == ("FINISHED", best.model_digest)
    pipeline.places.mlflow_database.rename(tmp_path / "moved_away.db")
    assert not pipeline.train().trained
    assert points_of(pipeline, key) == [found]
    client = tracking.connect(pipeline.places)
    promote(pipeline.params(), pipeline.places, "toy", version="1.0.0")
    assert client.get_model_version_by_alias("radfuse-toy", "champion").tags["semver"] == "1.0.0"


def test_an_unreachable_tracker_is_told_once_and_the_local_files_are_complete(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(tracking.URI, "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    pipeline = toy_pipeline(tmp_path, block={"mlflow": True})
    with caplog.at_level(logging.WARNING, "radfuse"):
        assert pipeline.train().epochs_finished == 2
    assert sum("MLflow cannot be written" in record.getMessage() for record in caplog.records) == 1
    (work,) = pipeline.works()
    assert list(work.glob("training_*.json")) and (pipeline.models / "tiny_best.pth").is_file()
    assert ckptcore.load(pipeline.models / "tiny_best.pth")["provenance"]["mlflow_run_id"] is None
    with caplog.at_level(logging.WARNING, "radfuse"):
        assert promote(pipeline.params(), pipeline.places, "toy", version="1.0.0").version == "1.0.0"
    assert "version 1.0.0 is made, but MLflow's registry cannot be written" in caplog.text


def test_a_process_that_is_killed_while_it_makes_the_database_leaves_nothing_in_the_way(tmp_path):
    command = [sys.executable, "-c", CONNECT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as making:
        assert making.stdout.readline() == "half made\n"
        os.killpg(making.pid, signal.SIGKILL)
    client = tracking.connect(Places(tmp_path))
    assert [one.name for one in client.search_experiments()] == ["Default"]
    client.create_experiment("another")
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}


def test_what_sqlite_left_beside_a_database_that_was_moved_away_is_not_taken_for_the_new_one(tmp_path):
    for name in ("mlflow.db-journal", "mlflow.db.unfinished", "mlflow.db.unfinished-journal"):
        (tmp_path / name).write_bytes(b"of another database")
    assert tracking.connect(Places(tmp_path)).search_experiments()
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}


def test_a_database_that_mlflow_cannot_open_is_told_with_what_to_do(tmp_path, caplog):
    pipeline = toy_pipeline(tmp_path / "old", block={"mlflow": True})
    with closing(sqlite3.connect(pipeline.places.mlflow_database)) as half_made:
        half_made.execute("CREATE TABLE _alembic_tmp_params (key TEXT)")
        half_made.execute("CREATE TABLE params (key TEXT)")
    with caplog.at_level(logging.WARNING, "radfuse"):
        assert pipeline.train().epochs_finished == 2
    (told,) = [one.getMessage() for one in caplog.records if "MLflow cannot be written" in one.getMessage()]
    assert "mlflow.db cannot be opened" in told and "move it away" in told and "local history" in told
    # Elsewhere, as this process has the old one open: MLflow keeps its connections.
    shutil.copytree(tmp_path / "old", tmp_path / "new", ignore=shutil.ignore_patterns("mlflow.db*"))
    pipeline = Pipeline(tmp_path / "new", "toy", {"size": 8}, {"mlflow": True})
    pipeline.train(resume=str(pipeline.works()[0] / "tiny_latest.pth"))
    client = tracking.connect(pipeline.places)
    (run,) = client.search_runs([client.get_experiment_by_name("radfuse-toy").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "val_auc")) == 2


def test_nested_values_become_dotted_ones():
    assert tracking.flat({"a": {"b": [1, {"c": 2}]}, "d": [], "e": None}) == {
        "a.b.0": 1,
        "a.b.1.c": 2,
        "d": [],
        "e": None,
    }
