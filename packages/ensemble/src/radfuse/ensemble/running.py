"""Runs the stage: reads the tables, fits or goes on fitting, writes what came out and tells MLflow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore.signals import TrainingInterrupted
from radfuse.engine import agreement, code, workfolder
from radfuse.engine.agreement import ENSEMBLE
from radfuse.engine.cohort import read_patients
from radfuse.engine.evaluation.results import WEIGHTS
from radfuse.engine.pictures import learning_curves
from radfuse.engine.recording import PICTURES
from radfuse.engine.tracking import Tracker, flat
from radfuse.engine.workfolder import WorkFolder
from radfuse.ensemble import artefacts
from radfuse.ensemble.fitting import Ensemble, fit
from radfuse.ensemble.material import Material, NotApplicable, gather
from radfuse.ensemble.pictures import weights_picture
from radfuse.ensemble.settings import EnsembleSettings, Recipe

if TYPE_CHECKING:
    from radfuse.engine.config import Params
    from radfuse.engine.places import Places

_CODE = (
    "radfuse.ensemble",
    "radfuse.engine.folds",
    "radfuse.engine.metrics",
    "radfuse.engine.training.randomness",
    "radfuse.engine.training.thresholds",
)
"""Packages and modules that the ensemble's numbers come from."""


def run(params: Params, places: Places) -> str:
    """Fit the ensemble of a pipeline and write it.

    Args:
        params: params.yaml.
        places: of the pipeline.

    Returns:
        What came out, in a sentence.

    Raises:
        MissingStage: an earlier stage has not run.
        StaleError: a table does not belong to the models or the split at hand.
        LeakageError: a patient is in more than one split.
        NonFiniteLoss: the meta-learner's training came to something that is no number.
    """
    settings = params.block("ensemble", EnsembleSettings)
    recipe = Recipe(**settings.model_dump(), seed=params.seed)
    tables = agreement.agreeing_tables(places)
    try:
        material = gather(tables, read_patients(places), recipe)
    except NotApplicable as reason:
        artefacts.write_not_applicable(places, tables, str(reason))
        return f"not applicable: {reason}."
    with workfolder.opened(places, ENSEMBLE, _recipe(material, recipe)) as work:
        found = _fitted(params, places, tables, material, recipe, work)
        work.finish({"reported": found.reported})
        workfolder.prune(places, ENSEMBLE, work)
    return _sentence(material, found)


def _fitted(
    params: Params,
    places: Places,
    tables: Mapping[str, agreement.Table],
    material: Material,
    recipe: Recipe,
    work: WorkFolder,
) -> Ensemble:
    """Fit, write and tell MLflow."""
    tracker = Tracker(places, ENSEMBLE, work.key, params.train.mlflow)
    tracker.begin(flat(recipe.model_dump(mode="json")), {"split_digest": _split(tables)})
    try:
        found = fit(material, recipe, work.path, work.key)
        digest = artefacts.write(places, tables, material, found, recipe, work.key)
        _tell(tracker, places, material, found, digest, work)
    except (KeyboardInterrupt, TrainingInterrupted):
        # It goes on where it was when the stage is run again, and so does its run.
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    return found


def _recipe(material: Material, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides the ensemble's numbers, as plain values."""
    return {
        "settings": recipe.model_dump(mode="json"),
        "material": _digest(material),
        "code": code.digests(*_CODE),
    }


def _digest(material: Material) -> str:
    """SHA-256 of what is fitted on, and of nothing else: test patients change no key."""
    outputs = material.outputs.rows(material.fits)
    columns = [one.name for one in outputs.features]
    found = hashlib.sha256(
        "\n".join([*outputs.patients, *outputs.modalities, *columns, *material.diseases]).encode()
    )
    for values in (outputs.values, outputs.mask, material.truth[material.fits]):
        found.update(values.astype("<f8").tobytes())
    return found.hexdigest()


def _tell(
    tracker: Tracker, places: Places, material: Material, found: Ensemble, digest: str, work: WorkFolder
) -> None:
    history = found.trained.history
    tracker.log_epochs(history, len(history["train_loss"]))
    tracker.tag({"model_digest": digest, "reported": found.reported, "best_single": found.best_single})
    for name in (WEIGHTS, artefacts.HISTORY):
        tracker.log_file(places.saved_models(ENSEMBLE) / name, "ensemble")
    for picture in _draw(work.path / PICTURES, material, found):
        tracker.log_file(picture, PICTURES)
    tracker.end("FINISHED")


def _draw(folder: Path, material: Material, found: Ensemble) -> list[Path]:
    """The meta-learner's learning curves, and the weights of the average."""
    curves, weights = folder / "learning_curves.png", folder / "weights.png"
    learning_curves(curves, found.trained.history, "val_auc", "Meta-learner")
    weights_picture(weights, found.stack.weights, material.outputs.modalities, material.diseases)
    return [curves, weights]


def _split(tables: Mapping[str, agreement.Table]) -> str:
    return next(iter(tables.values())).stamp.split_digest


def _sentence(material: Material, found: Ensemble) -> str:
    score = found.scores[found.reported]
    return (
        f"{int(material.fits.sum())} patients of {material.fitted_on}, {len(material.diseases)} diseases; "
        f"the {found.reported.replace('_', ' ')} is reported, mean AUROC {score['mean_auroc']:.3f} there; "
        f"best single modality {found.best_single} with "
        f"{found.scores[found.best_single]['mean_auroc']:.3f}"
    )
