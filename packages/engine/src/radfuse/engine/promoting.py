"""Makes a version of the best checkpoint: through ckptcore, and in MLflow's registry where there is one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import ckptcore
from radfuse.engine import tracking
from radfuse.engine.modality import modality as modality_of
from radfuse.engine.places import Places
from radfuse.engine.predicting import best_checkpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ckptcore.versions import VersionCard
    from radfuse.engine.config import Params

_log = logging.getLogger(__name__)
CHAMPION = "champion"


def promote(
    params: Params,
    places: Places,
    name: str,
    *,
    version: str | None = None,
    bump: str | None = None,
    notes: str = "",
    dataset: str = "",
) -> VersionCard:
    """Make the published best checkpoint of a modality a version.

    Args:
        params: params.yaml.
        places: of the pipeline.
        name: of the modality.
        version: its number.
        bump: instead of a number, the part of the last one's to raise.
        notes: what is new in it.
        dataset: what it was trained on.

    Raises:
        MissingStage: the modality was not trained.
        VersionRefused: the number is taken or too low, or a changed architecture needs a new major one.
    """
    file = best_checkpoint(places, modality_of(name))
    card: VersionCard = ckptcore.promote(file, version=version, bump=bump, notes=notes, dataset=dataset)
    if params.train.mlflow:
        try:
            _register(places, name, card)
        except Exception as error:
            # The version is made; a registry is an addition to it.
            reason = str(error).split("\n", 1)[0] or type(error).__name__
            _log.warning(
                "version %s is made, but MLflow's registry cannot be written: %s", card.version, reason
            )
    return card


def _register(places: Places, modality: str, card: VersionCard) -> None:
    from mlflow.exceptions import MlflowException

    client = tracking.connect(places)
    name = tracking.experiment_name(modality)
    run = _run_of(client, name, card.run_key or "")
    folder = f"versions/{card.version}"
    for file in (card.path, card.card_path):
        client.log_artifact(run, str(file), folder)
    try:
        client.create_registered_model(name)
    except MlflowException:
        client.get_registered_model(name)  # It is there already; whatever else went wrong shows now.
    source = f"{client.get_run(run).info.artifact_uri}/{folder}"
    made = client.create_model_version(name, source=source, run_id=run, description=card.notes or None)
    tags = {"semver": card.version, "model_digest": card.model_digest or "", "sha256": card.sha256}
    for key, value in tags.items():
        client.set_model_version_tag(name, made.version, key, value)
    client.set_registered_model_alias(name, CHAMPION, made.version)


def _run_of(client: MlflowClient, experiment_name: str, run_key: str) -> str:
    """The run that a checkpoint was trained in."""
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is not None:
        wanted = f"tags.`{tracking.RUN_KEY}` = '{run_key}'"
        found = client.search_runs([experiment.experiment_id], wanted, max_results=1)
        if found:
            return str(found[0].info.run_id)
    raise LookupError(
        f"no run of {experiment_name} has trained it; `radfuse train` with train.mlflow=true tells it to "
        "MLflow"
    )
