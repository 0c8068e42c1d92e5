"""MLflow: one experiment a modality, one run a key. While it is away training goes on; it is told later."""

from __future__ import annotations

import logging
import math
import os
import time
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
_SHARE = 50
"""A try that failed is followed by so many times its length without one: MLflow that is away takes a fiftieth
of the time, however long it lets one wait."""
_STOPPED = "KILLED"
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
    # It says of each request that it is made again; the tracker says once that there is no answer.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
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
    """Tells MLflow of one training.

    Each call notes what is to be told, and tells what MLflow lacks of all that was noted. Where that fails,
    training goes on, and a later call tries again, `end` at the latest. A try that follows a failure looks
    for the run and its points: an answer that was lost does not say whether they were written.

    Args:
        places: of the pipeline.
        modality: whose training; or ``ensemble``.
        run_key: of the training; the run that has it is gone on with.
        enabled: False to write nothing.
        clock: in seconds; by it a tracker that is away is left alone for a while.

    Attributes:
        run_id: of MLflow's run; None while there is none.
        enabled: whether anything is written.
    """

    def __init__(
        self,
        places: Places,
        modality: str,
        run_key: str,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_id: str | None = None
        self.enabled = enabled
        self._places = places
        self._modality = modality
        self._run_key = run_key
        self._clock = clock
        # What is to be told.
        self._parameters: Mapping[str, Any] | None = None
        self._anew = False
        self._tags: dict[str, str] = {}
        self._history: Mapping[str, Sequence[float]] = {}
        self._until = 0
        self._files: dict[tuple[Path, str], str | None] = {}
        self._status: str | None = None
        # What MLflow has been told.
        self._client: MlflowClient | None = None
        self._tags_told = False
        self._logged = 0
        self._there: dict[str, set[int]] = {}
        self._newest = 0
        self._failure: Exception | None = None
        self._next_try = -math.inf

    def begin(self, parameters: Mapping[str, Any], tags: Mapping[str, str], anew: bool = False) -> None:
        """Open the run, a new one or that of this key.

        Args:
            parameters: what was asked for, flat.
            tags: digests, device and the like.
            anew: leave a run of this key as it is, under another key, and open a new one.
        """
        self._parameters, self._anew = parameters, anew
        self.tag(tags)

    def log_epochs(self, history: Mapping[str, Sequence[float]], until: int) -> None:
        """Write the metrics of epochs that were not yet written in this session.

        Points that the run has are not written again, though the epoch was trained again: its time would be
        another, and MLflow would keep both.

        Args:
            history: values by metric, one for each epoch.
            until: how many epochs to write; only those whose checkpoint is durable.
        """
        self._history, self._until = history, until
        self._tell()

    def log_file(self, path: Path, folder: str) -> None:
        """Copy a file to the run; one that could not be made is left out."""
        self._files[path, folder] = None
        self._tell()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._tags |= tags
        self._tags_told = False
        self._tell()

    def hurry(self) -> None:
        """Let MLflow alone from here on if it was away last time.

        Who was told to stop has little time; the session that goes on tells it.
        """
        if self._failure is not None:
            self._next_try = math.inf

    def end(self, status: str) -> None:
        """Close the run: ``FINISHED``, ``FAILED``, or ``KILLED`` when it was stopped and may go on.

        What MLflow was not told by now is tried once more, unless the training goes on later.
        """
        self._status = status
        self._tell(anyhow=status != _STOPPED)
        if self._failure is not None and status != _STOPPED:
            _log.warning(
                "MLflow lacks a part of this training (%s). When it can be written again, `%s` tells it.",
                _first_line(self._failure), self._command(),
            )  # fmt: skip

    def _tell(self, anyhow: bool = False) -> None:
        """Tell MLflow what it lacks, unless it has failed a moment ago."""
        if not self.enabled or self._parameters is None:
            return
        began = self._clock()
        if began < self._next_try and not anyhow:
            return
        try:
            self._tell_all(self._parameters)
        except Exception as error:
            # Whatever a tracker or its server raises: it is an addition, not a need.
            if self._failure is None:
                _log.warning(
                    "MLflow cannot be written (%s); training goes on, the local files are complete, and what "
                    "it lacks is told later.",
                    _first_line(error),
                )
            self._client, self._failure = None, error
            now = self._clock()
            self._next_try = now + _SHARE * (now - began)
        else:
            if self._failure is not None:
                _log.info("MLflow can be written again, and has all that it lacked.")
            self._failure = None

    def _tell_all(self, parameters: Mapping[str, Any]) -> None:
        """Open the run where that is still to be done, and write all that it lacks."""
        if self._client is None:
            client = connect(self._places)
            self._begin(client, parameters)
            self._client = client
        client = self._client
        self._log_epochs(client)
        if not self._tags_told:
            self._log_tags(client)
        if self._status is not None:
            client.set_terminated(self._id(), self._status)
        # Last, as a store of files may be away by itself.
        for (path, folder), told in self._files.items():
            if told != self.run_id and path.is_file():
                client.log_artifact(self._id(), str(path), folder)
                self._files[path, folder] = self.run_id

    def _id(self) -> str:
        if self.run_id is None:
            raise LookupError("no run was opened")
        return self.run_id

    def _command(self) -> str:
        """What tells MLflow of a training that is finished."""
        own = "radfuse ensemble" if self._modality == "ensemble" else f"radfuse train {self._modality}"
        if self._places.root.resolve() == Path.cwd():
            return own
        return f"{own} --params {os.path.relpath(self._places.root / 'params.yaml')}"

    def _begin(self, client: MlflowClient, parameters: Mapping[str, Any]) -> None:
        """Find the run or make one, and learn what it has."""
        from mlflow.entities import Param

        self._tags_told, self._logged, self._there, self._newest = False, 0, {}, 0
        now = datetime.now(UTC)
        experiment = self._experiment(client)
        found = client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{self._run_key}'", max_results=1)
        if found and self._anew:
            set_aside = f"{self._run_key} until {now:%Y%m%dT%H%M%SZ}"
            client.set_tag(found[0].info.run_id, RUN_KEY, set_aside)
            found = None
        # From here on a run of this key is the one that is made now, though its making may seem to fail.
        self._anew = False
        if found:
            self.run_id = found[0].info.run_id
            client.update_run(self._id(), status="RUNNING")
            self._read_points(client, found[0].data.metrics)
        else:
            name = f"{self._modality} {now:%Y-%m-%d %H:%M} {self._run_key[:8]}"
            run = client.create_run(experiment, run_name=name, tags={RUN_KEY: self._run_key, **self._tags})
            self.run_id = run.info.run_id
        listed = [Param(key, str(value)[:_LONGEST]) for key, value in parameters.items()]
        for start in range(0, len(listed), _MOST):
            client.log_batch(self._id(), params=listed[start : start + _MOST])

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

    def _log_tags(self, client: MlflowClient) -> None:
        from mlflow.entities import RunTag

        client.log_batch(self._id(), tags=[RunTag(key, str(value)) for key, value in self._tags.items()])
        self._tags_told = True

    def _log_epochs(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        # A clock that was set back must not turn the order of the points round.
        times = list(accumulate(self._history.get(FINISHED_AT, []), max))
        points = [
            Metric(name, float(values[epoch]), max(round(times[epoch] * 1000), self._newest), epoch + 1)
            for epoch in range(self._logged, min(self._until, len(times)))
            for name, values in self._history.items()
            if name != FINISHED_AT and epoch < len(values) and math.isfinite(values[epoch])
            if epoch + 1 not in self._there.get(name, ())
        ]
        for start in range(0, len(points), _MOST):
            client.log_batch(self._id(), metrics=points[start : start + _MOST])
        self._logged = max(self._logged, self._until)


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
