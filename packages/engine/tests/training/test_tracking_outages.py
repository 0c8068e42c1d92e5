"""MLflow that is away for a while: what it has in the end, and what that costs."""

import logging
import math
import re
import shlex

import pytest
from trainable import toy_pipeline

import ckptcore
from radfuse.engine import cli, tracking
from radfuse.engine.places import Places

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
EPOCHS = 2
HISTORY = {
    "train_loss": [0.9, 0.8],
    "val_auc": [math.nan, 0.6],
    tracking.FINISHED_AT: [1.7e9, 1.7e9 + 60],
}
POINTS = sorted(
    (name, epoch + 1, HISTORY[name][epoch], round(HISTORY[tracking.FINISHED_AT][epoch] * 1000))
    for name in ("train_loss", "val_auc")
    for epoch in range(EPOCHS)
    if math.isfinite(HISTORY[name][epoch])
)


class Away(ConnectionError):
    """MLflow did not answer."""


class Line:
    """The line to MLflow.

    Attributes:
        calls: how many there were.
        cut: whether a call of this number, from 0, does not get there.
        lost: whether its answer does not get back.
    """

    def __init__(self, monkeypatch):
        self.calls = 0
        self.cut = self.lost = lambda number: False
        connect = tracking.connect
        self.client = connect
        monkeypatch.setattr(tracking, "connect", lambda places: Client(self, self.pass_on(connect, places)))

    def pass_on(self, act, *arguments, **options):
        number = self.calls
        self.calls += 1
        if self.cut(number):
            raise Away("cut off")
        answer = act(*arguments, **options)
        if self.lost(number):
            raise Away("no answer")
        return answer


class Client:
    """MLflow's client at the end of a line."""

    def __init__(self, line, client):
        self._line, self._client = line, client

    def __getattr__(self, name):
        act = getattr(self._client, name)
        return lambda *arguments, **options: self._line.pass_on(act, *arguments, **options)


@pytest.fixture
def line(monkeypatch):
    monkeypatch.delenv(tracking.URI, raising=False)
    return Line(monkeypatch)


def runs(line, places, key):
    """The runs whose key begins so, by key: status, tags, parameters, points and files."""
    client = line.client(places)
    experiment = client.get_experiment_by_name("radfuse-toy")
    found = {}
    for run in client.search_runs([experiment.experiment_id], f"tags.`{tracking.RUN_KEY}` LIKE '{key}%'"):
        key = run.data.tags[tracking.RUN_KEY]
        assert key not in found, "two runs of one key"
        points = sorted(
            (name, point.step, point.value, point.timestamp)
            for name in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, name)
        )
        files = [file.path for file in client.list_artifacts(run.info.run_id, "pictures")]
        tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        found[key] = (run.info.status, tags, run.data.params, points, files)
    return found


def tell(places, key, picture, anew=False):
    """A training as the recorder tells of it; the clock stands, so that no moment is left out."""
    tracker = tracking.Tracker(places, "toy", key, clock=lambda: 0.0)
    tracker.begin({"rate": 0.1}, {"device": "cpu"}, anew)
    for epoch in range(EPOCHS):
        tracker.log_file(picture, "pictures")
        tracker.log_epochs({name: values[: epoch + 1] for name, values in HISTORY.items()}, epoch)
    tracker.log_epochs(HISTORY, EPOCHS)
    tracker.tag({"outcome": "finished"})
    tracker.end("FINISHED")


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("fault", ["cut", "lost"])
def test_whichever_call_fails_or_loses_its_answer_there_is_one_run_with_every_point_once(
    tmp_path, line, caplog, fault, anew
):
    places, picture = Places(tmp_path), tmp_path / "picture.png"
    picture.write_bytes(b"a picture")
    tell(places, "whole." if anew else "first.", picture)
    line.calls = 0
    tell(places, "whole.", picture, anew)
    calls = line.calls
    whole = runs(line, places, "whole.")["whole."]
    assert whole[3] == POINTS and whole[4] == ["pictures/picture.png"]
    left = []
    for number in range(calls):
        key = f"{number}."
        if anew:
            tell(places, key, picture)
        caplog.clear()
        line.calls = 0
        with caplog.at_level(logging.WARNING, "radfuse"):
            setattr(line, fault, lambda call, number=number: call == number)
            tell(places, key, picture, anew)
            setattr(line, fault, lambda call: False)
        assert "MLflow cannot be written" in caplog.text
        if "MLflow lacks a part of this training" in caplog.text:
            left.append(number)
            tell(places, key, picture)
        found = runs(line, places, key)
        status, tags, *rest = found.pop(key)
        assert (status, *rest) == ("FINISHED", *whole[2:]), number
        assert tags == {**whole[1], tracking.RUN_KEY: key}
        assert [other.startswith(f"{key} until ") for other in found] == [True] * anew
    # Only what fails in the very last try is left for the next command.
    assert left == [calls - 1]


def test_one_that_is_away_for_days_takes_a_fiftieth_of_the_time_and_is_not_given_up(
    tmp_path, monkeypatch, caplog
):
    now, spent, tries = [0.0], [0.0], [0]

    def silent(places):
        now[0] += 66
        spent[0] += 66
        tries[0] += 1
        raise Away("timed out")

    monkeypatch.setattr(tracking, "connect", silent)
    tracker = tracking.Tracker(Places(tmp_path), "toy", "key", clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, "radfuse"):
        tracker.begin({}, {})
        while now[0] < 3 * 86_400:
            now[0] += 300
            tracker.log_file(tmp_path / "picture.png", "pictures")
            tracker.log_epochs({}, 1)
        assert tries[0] > 50 and spent[0] <= 66 + now[0] / 50
        assert len(caplog.records) == 1
        before = tries[0]
        # Who is told to stop has little time, and the next session tells it.
        now[0] += 86_400
        tracker.hurry()
        tracker.log_epochs({}, 2)
        tracker.end("KILLED")
        assert tries[0] == before and len(caplog.records) == 1
        tracker.end("FINISHED")
    assert tries[0] == before + 1
    assert "radfuse train toy" in caplog.messages[-1]


def test_one_that_comes_back_has_the_run_in_the_checkpoints_and_every_point_without_another_command(
    tmp_path, line, monkeypatch
):
    monkeypatch.setattr(tracking, "_SHARE", 0)
    pipeline = toy_pipeline(tmp_path)
    pipeline.train("train.mlflow=true")
    (key,) = runs(line, pipeline.places, "")
    # Away until the second epoch is validated.
    line.calls, line.cut = 0, lambda number: number < 3
    pipeline.train("train.mlflow=true", resume="none")
    assert line.calls > 3
    found = runs(line, pipeline.places, "")
    assert sorted(found)[0] == key and sorted(found)[1].startswith(f"{key} until ")
    status, tags, _, points, files = found[key]
    latest = ckptcore.load(pipeline.works()[0] / "tiny_latest.pth")
    assert status == "FINISHED" and tags["outcome"] == "finished"
    told = [(step, value) for name, step, value, _ in points if name == "val_auc"]
    assert told == list(enumerate(latest["history"]["val_auc"], 1))
    assert {"pictures/epoch_001_batch_001.png", "pictures/learning_curves.png"} <= set(files)
    (run,) = line.client(pipeline.places).search_runs(
        [line.client(pipeline.places).get_experiment_by_name("radfuse-toy").experiment_id],
        f"tags.`{tracking.RUN_KEY}` = '{key}'",
    )
    assert latest["provenance"]["mlflow_run_id"] == run.info.run_id
    # It is known that the run is that of what began anew: the next command opens no third one.
    assert not pipeline.train("train.mlflow=true").trained
    assert runs(line, pipeline.places, "").keys() == found.keys()


def test_the_command_that_is_named_at_the_end_tells_what_was_lacking(tmp_path, line, caplog):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train("train.mlflow=true")
    (expected,) = runs(line, whole.places, "").values()
    # Away from the first picture on.
    line.calls, line.cut = 0, lambda number: number > 6
    with caplog.at_level(logging.WARNING, "radfuse"):
        torn.train("train.mlflow=true")
    ((status, *_, points, _),) = runs(line, torn.places, "").values()
    assert status == "RUNNING" and points == []
    (named,) = re.findall("`(radfuse .*)` tells it", caplog.text)
    line.cut = lambda number: False
    assert cli.run([*shlex.split(named)[1:], "--set", "train.mlflow=true"]) == 0
    ((status, tags, _, points, files),) = runs(line, torn.places, "").values()
    values = [[point[:3] for point in points] for points in (points, expected[3])]
    assert status == "FINISHED" and values[0] == values[1]
    assert tags["model_digest"] == expected[1]["model_digest"]
    assert set(files) == set(expected[4])


def test_a_picture_that_could_not_be_made_keeps_nothing_else_from_mlflow(tmp_path, line, caplog):
    with caplog.at_level(logging.WARNING, "radfuse"):
        tell(Places(tmp_path), "key", tmp_path / "not there.png")
    ((status, _, _, points, files),) = runs(line, Places(tmp_path), "key").values()
    assert (status, points, files, caplog.text) == ("FINISHED", POINTS, [], "")
