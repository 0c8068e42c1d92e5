"""MLflow's side of the ensemble, in a database of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptcore.signals import TrainingInterrupted
from radfuse.engine import tracking
from radfuse.engine.cli import run
from radfuse.engine.places import Places
from radfuse.ensemble import artefacts, running

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def own_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking.URI, raising=False)


def fit(places: Places) -> int:
    return run(["ensemble", "--params", str(places.root / "params.yaml"), "--set", "train.mlflow=true"])


def runs(places: Places) -> tuple[Any, list[Any]]:
    """The client, and every run of the ensemble."""
    client = tracking.connect(places)
    experiment = client.get_experiment_by_name("radfuse-ensemble")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def test_a_finished_run_has_its_points_files_and_pictures(copied: Places) -> None:
    assert fit(copied) == 0
    client, (one,) = runs(copied)
    assert one.info.status == "FINISHED"
    assert len(client.get_metric_history(one.info.run_id, "val_auc")) == 20
    pictures = {item.path: item.file_size for item in client.list_artifacts(one.info.run_id, "pictures")}
    assert set(pictures) == {"pictures/learning_curves.png", "pictures/weights.png"}
    assert min(pictures.values()) > 5000
    files = {item.path for item in client.list_artifacts(one.info.run_id, "ensemble")}
    assert files == {"ensemble/weighted_average.json", "ensemble/ensemble_history.json"}


@pytest.mark.parametrize(
    ("raised", "status"),
    [(ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (TrainingInterrupted(15), "KILLED")],
)
def test_a_run_that_does_not_finish_says_whether_it_failed_or_was_stopped(
    copied: Places, monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: str
) -> None:
    def stops(*_: Any) -> None:
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(running, "fit", stops)
        with pytest.raises(type(raised)):
            running.run(params_of(copied), copied)
    _, (one,) = runs(copied)
    assert one.info.status == status
    assert fit(copied) == 0
    _, (again,) = runs(copied)
    assert (again.info.run_id, again.info.status) == (one.info.run_id, "FINISHED")


def test_what_cannot_be_written_ends_the_run_as_failed(
    copied: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(artefacts, "write", full)
    with pytest.raises(OSError, match="no space left"):
        running.run(params_of(copied), copied)
    _, (one,) = runs(copied)
    assert one.info.status == "FAILED"


def params_of(places: Places) -> Any:
    from radfuse.engine import config

    return config.load(Path(places.root / "params.yaml"), ["train.mlflow=true"])
