"""MLflow: one experiment a modality, one run a key. A tracker that fails is told once; training goes on."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ckptcore import durable
from radfuse.engine.errors import RadfuseError
from radfuse.engine.places import Places

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)
URI = "MLFLOW_TRACKING_URI"
RUN_KEY = "radfuse.run_key"
FINISHED_AT = "finished_at"
"""Metric that tells when an epoch ended, in seconds since 1970: the time of its points, however often
written."""
_MOST = 90
"""Values in one call; the server takes 100 parameters."""
_LONGEST = 500
_BESIDE = ("-journal", "-wal", "-shm")
"""What SQLite puts beside a database, and would take for a new one's where it was left behind."""


class UnusableDatabase(RadfuseError):
    """MLflow cannot open the pipeline's own database."""


def experiment_name(modality: str) -> str:
    """Also the name of the modality's registered model."""
    return f"radfuse-{modality}"


def connect(places: Places) -> MlflowClient:
    """A client of the server that the environment names, else of the pipeline's own database.

    The database is made under a lock: of several processes that make its tables at once all but one die. And
    it has its name only when it is whole: one whose making was killed MLflow could never open again.

    Raises:
        UnusableDatabase: there is a database, and MLflow cannot open it.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # An unreachable server must not hold up a training for the many minutes of the defaults.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # Without git the client warns; which commit it was is not what names our runs.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if os.environ.get(URI):
        return MlflowClient(tracking_uri=os.environ[URI])
    database = places.mlflow_database.resolve()
    with FileLock(f"{database}.lock"):
        if not database.exists():
            _make(database, places.mlflow_artifacts.resolve())
        try:
            client = MlflowClient(tracking_uri=f"sqlite:///{database}")
            client.search_experiments(max_results=1)
        except Exception as error:
            raise UnusableDatabase(
                f"{database.name} cannot be opened: {_first_line(error)}. If no other program uses it, move "
                "it away: a new one is made, and a training that goes on is told to it again from its local "
                "history"
            ) from error
    return client


def _make(database: Path, artifacts: Path) -> None:
    """Make the database under another name, and rename it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished = database.with_name(f"{database.name}.unfinished")
    durable.remove(unfinished)
    for path in (unfinished, database):
        for ending in _BESIDE:
            durable.remove(path.with_name(path.name + ending))
    store = SqlAlchemyStore(f"sqlite:///{unfinished}", artifacts.as_uri())
    store.engine.dispose()
    os.replace(unfinished, database)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:_LONGEST] or type(error).__name__


class Tracker:
    """Writes one training to MLflow.

    Args:
        places: of the pipeline.
        modality: whose training.
        run_key: of the training; the run that has it is gone on with.
        enabled: False to write nothing.

    Attributes:
        run_id: of MLflow's run; None while there is none.
        enabled: whether it is written; False from the first failure on.
    """

    def __init__(self, places: Places, modality: str, run_key: str, enabled: bool = True) -> None:
        self.run_id: str | None = None
        self._places = places
        self._modality = modality
        self._run_key = run_key
        self.enabled = enabled
        self._client: MlflowClient | None = None
        self._logged = 0
        self._there: dict[str, set[int]] = {}
        self._newest = 0

    def begin(self, parameters: Mapping[str, Any], tags: Mapping[str, str], anew: bool = False) -> None:
        """Open the run, a new one or that of this key.

        Args:
            parameters: what was asked for, flat.
            tags: digests, device and the like.
            anew: leave a run of this key as it is, under another key, and open a new one.
        """
        self._attempt(lambda: self._begin(parameters, tags, anew))

    def log_epochs(self, history: Mapping[str, Sequence[float]], until: int) -> None:
        """Write the metrics of epochs that were not yet written in this session.

        Points that the run has are not written again, though the epoch was trained again: its time would be
        another, and MLflow would keep both.

        Args:
            history: values by metric, one for each epoch.
            until: how many epochs to write; only those whose checkpoint is durable.
        """
        if until > self._logged:
            self._attempt(lambda: self._log_epochs(history, until))

    def log_file(self, path: Path, folder: str) -> None:
        """Copy a file to the run."""
        self._attempt(lambda: self._open().log_artifact(self._id(), str(path), folder))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._attempt(lambda: self._tag(tags))

    def end(self, status: str) -> None:
        """Close the run: ``FINISHED``, ``FAILED``, or ``KILLED`` when it was stopped and may go on."""
        if self.run_id is not None:
            self._attempt(lambda: self._open().set_terminated(self._id(), status))

    def _attempt(self, act: Callable[[], object]) -> None:
        if not self.enabled:
            return
        try:
            act()
        except Exception as error:
            # Whatever a tracker or its server raises: it is an addition, not a need.
            self.enabled = False
            _log.warning(
                "MLflow cannot be written (%s); training goes on, the local files are complete.",
                _first_line(error),
            )

    def _open(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self._places)
        return self._client

    def _id(self) -> str:
        if self.run_id is None:
            raise LookupError("no run was opened")
        return self.run_id

    def _begin(self, parameters: Mapping[str, Any], tags: Mapping[str, str], anew: bool) -> None:
        from mlflow.entities import Param

        client, now = self._open(), datetime.now(UTC)
        experiment = self._experiment(client)
        found = client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{self._run_key}'", max_results=1)
        if found and anew:
            set_aside = f"{self._run_key} until {now:%Y%m%dT%H%M%SZ}"
            client.set_tag(found[0].info.run_id, RUN_KEY, set_aside)
            found = None
        if found:
            self.run_id = found[0].info.run_id
            client.update_run(self._id(), status="RUNNING")
            self._read_points(client, found[0].data.metrics)
        else:
            name = f"{self._modality} {now:%Y-%m-%d %H:%M} {self._run_key[:8]}"
            run = client.create_run(experiment, run_name=name, tags={RUN_KEY: self._run_key, **tags})
            self.run_id = run.info.run_id
        listed = [Param(key, str(value)[:_LONGEST]) for key, value in parameters.items()]
        for start in range(0, len(listed), _MOST):
            client.log_batch(self._id(), params=listed[start : start + _MOST])
        self._tag(tags)

    def _read_points(self, client: MlflowClient, names: Iterable[str]) -> None:
        """Remember which points the run has."""
        for name in names:
            points = client.get_metric_history(self._id(), name)
            self._there[name] = {point.step for point in points}
            self._newest = max([self._newest, *(point.timestamp for point in points)])

    def _experiment(self, client: MlflowClient) -> str:
        name = experiment_name(self._modality)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A server knows where its artifacts go; the local database would take the current directory.
        own = None if os.environ.get(URI) else (self._places.mlflow_artifacts.resolve() / name).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=own))
        except Exception:
            # Another training of the modality may have made it between the two calls.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._open().log_batch(self._id(), tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def _log_epochs(self, history: Mapping[str, Sequence[float]], until: int) -> None:
        from mlflow.entities import Metric

        # A clock that was set back must not turn the order of the points round.
        times = list(accumulate(history.get(FINISHED_AT, []), max))
        points = [
            Metric(name, float(values[epoch]), max(round(times[epoch] * 1000), self._newest), epoch + 1)
            for epoch in range(self._logged, min(until, len(times)))
            for name, values in history.items()
            if name != FINISHED_AT and epoch < len(values) and math.isfinite(values[epoch])
            if epoch + 1 not in self._there.get(name, ())
        ]
        for start in range(0, len(points), _MOST):
            self._open().log_batch(self._id(), metrics=points[start : start + _MOST])
        self._logged = until


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted keys; lists are numbered from 0."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    found: dict[str, Any] = {}
    for key, item in items:
        if isinstance(item, (Mapping, list, tuple)) and item:
            found |= flat(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found
