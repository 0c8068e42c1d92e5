"""All figures of a pipeline, from its tables to what the report shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptcore import read_header
from radfuse.engine import agreement, calibration, ceilings, predictions
from radfuse.engine.agreement import ENSEMBLE, Table
from radfuse.engine.bootstrap import Bootstrap
from radfuse.engine.cohort import read_patients
from radfuse.engine.errors import MissingStage, StaleError
from radfuse.engine.evaluation.classification import classification_report
from radfuse.engine.evaluation.ensemble import ensemble_report, not_applicable
from radfuse.engine.evaluation.segmentation import segmentation_report
from radfuse.engine.evaluation.shared import Resampling, floats
from radfuse.engine.places import require
from radfuse.engine.tables import DISEASE, PATIENT, REFERENCE, SAMPLE, SPLIT, columns

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.blocks import EvaluateSettings
    from radfuse.engine.calibration import Calibration
    from radfuse.engine.ceilings import Ceilings
    from radfuse.engine.places import Places

TEST = "test"
TWINS = "twins_across_splits"
"""How many prepared images are in more than one split; in a modality's figures where there are any."""
WEIGHTS = "weighted_average.json"
CHECKPOINT = "meta_learner.pth"
_PATIENT_COLUMNS = ("age_years", "sex", "site")


@dataclass(frozen=True)
class Results:
    """What was found.

    Attributes:
        modalities: the figures of each modality, by name.
        ensemble: the figures of the ensemble; None where none was ever made.
        tables: the test rows behind them, by modality, for curves and figures.
    """

    modalities: Mapping[str, Mapping[str, Any]]
    ensemble: Mapping[str, Any] | None
    tables: Mapping[str, pd.DataFrame] = field(repr=False)


def evaluate(places: Places, settings: EvaluateSettings, sources: Sequence[Path] = ()) -> Results:
    """Every figure, on the test patients alone.

    Args:
        places: of the pipeline.
        settings: resamples, confidence, groups.
        sources: folders of the cohort's sources, for their ceilings.

    Raises:
        MissingStage: an earlier stage has not run.
        StaleError: a table does not belong to the models or the split at hand.
        LeakageError: a patient is in more than one split.
    """
    tables = agreement.agreeing_tables(places)
    best = ceilings.read(sources)
    resampling = _resampling(settings)
    tests = {
        name: _with_cohort(places, table.frame[table.frame[SPLIT] == TEST]) for name, table in tables.items()
    }
    found = {
        name: _modality(places, table, tests[name], best, settings, resampling)
        for name, table in tables.items()
    }
    return Results(found, _ensemble(places, tables, best, settings, resampling), tests)


def _resampling(settings: EvaluateSettings) -> Resampling:
    """Resamples by patients; the same patients get the same ones, so that figures over them are paired."""

    @lru_cache(maxsize=64)
    def made(patients: tuple[str, ...]) -> Bootstrap:
        return Bootstrap(patients, settings.bootstrap, settings.confidence)

    return lambda patients: made(tuple(patients))


def _modality(
    places: Places,
    table: Table,
    test: pd.DataFrame,
    best: Ceilings,
    settings: EvaluateSettings,
    resampling: Resampling,
) -> dict[str, Any]:
    stamp: dict[str, Any] = {
        "model_digest": table.stamp.model_digest,
        "split_digest": table.stamp.split_digest,
    }
    if table.stamp.twins_across_splits:
        stamp[TWINS] = table.stamp.twins_across_splits
    if not len(test):
        raise MissingStage(
            f"the predictions of {table.modality} have no row of the split {TEST!r}, so nothing can be "
            "measured; give it patients (split.fractions.test) and run `radfuse cohort` and what follows."
        )
    if table.segments:
        return {**stamp, **segmentation_report(test, settings.subgroups, resampling)}
    fitted = _calibration(places, table)
    held_out = table.frame[table.frame[SPLIT].isin(fitted.splits)]
    report = classification_report(test, held_out, fitted, best, settings.subgroups, resampling)
    return {**stamp, "calibrated_on": fitted.fitted_on, **report}


def _calibration(places: Places, table: Table) -> Calibration:
    """The calibration that the table's probabilities were made with."""
    path = places.calibration(table.modality)
    fitted = calibration.read(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != table.stamp.calibration:
        raise StaleError(
            f"{path.name} is not the calibration that the predictions of {table.modality} were made with; "
            f"run `radfuse predict-split {table.modality}` again."
        )
    return fitted


def _ensemble(
    places: Places,
    tables: Mapping[str, Table],
    best: Ceilings,
    settings: EvaluateSettings,
    resampling: Resampling,
) -> dict[str, Any] | None:
    said = places.saved_models(ENSEMBLE) / WEIGHTS
    if not said.is_file():
        return None
    fitted = agreement.read_json(said)
    check_inputs(fitted, tables)
    if fitted["status"] != "fitted":
        return not_applicable(fitted)
    path = places.predictions(ENSEMBLE)
    frame, stamp = predictions.read(path, "radfuse ensemble")
    checkpoint = require(said.with_name(CHECKPOINT), "radfuse ensemble")
    for name, digest in (
        (CHECKPOINT, read_header(checkpoint).model_digest),
        (WEIGHTS, fitted["model_digest"]),
    ):
        if stamp.model_digest != digest:
            raise StaleError(
                f"the predictions of the ensemble are stale: they came from the model "
                f"{stamp.model_digest[:12]}, and {name} is {str(digest)[:12]}; run `radfuse ensemble` again."
            )
    known = read_patients(places)
    check_diseases(frame, known)
    test = frame[frame[SPLIT] == TEST]
    test = test.merge(known[[PATIENT, *[c for c in _PATIENT_COLUMNS if c in known]]], on=PATIENT, how="left")
    return ensemble_report(test, fitted, best, settings.subgroups, resampling)


def check_inputs(fitted: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    """Refuse an ensemble that was made from other predictions than those at hand.

    Args:
        fitted: what ``weighted_average.json`` says.
        tables: the predictions at hand.

    Raises:
        StaleError: it was.
    """
    then = {name: (one["model_digest"], one["split_digest"]) for name, one in fitted["inputs"].items()}
    now = {name: (table.stamp.model_digest, table.stamp.split_digest) for name, table in tables.items()}
    other = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if other:
        raise StaleError(
            f"the ensemble is stale: it was made from other predictions of {', '.join(other)} than those "
            "at hand; run `radfuse ensemble` again."
        )


def check_diseases(rows: pd.DataFrame, known: pd.DataFrame) -> None:
    """Refuse predictions of an ensemble that was fitted on other diseases than the cohort tells of now.

    Args:
        rows: of the ensemble table.
        known: one row a patient.

    Raises:
        StaleError: it was.
    """
    now = known.set_index(PATIENT).reindex(rows[PATIENT])
    for name in columns(rows, DISEASE):
        column = DISEASE + name
        if column not in now or not np.array_equal(floats(now, column), floats(rows, column), equal_nan=True):
            raise StaleError(
                f"the predictions of the ensemble are stale: the cohort at hand differs in {column}; "
                "run `radfuse ensemble` again."
            )


def _with_cohort(places: Places, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a prediction table with what the cohort knows of the samples: age, view, scanner ..."""
    import pandas as pd

    if not places.cohort.is_file():
        return rows
    cohort = pd.read_parquet(places.cohort)
    wanted = [name for name in cohort.columns if name not in rows.columns and not name.startswith("label:")]
    known = [SAMPLE, *[name for name in wanted if name != "modality" and _told(name)]]
    return rows.merge(cohort[known], on=SAMPLE, how="left", validate="one_to_one")


def _told(name: str) -> bool:
    return name.startswith(REFERENCE) or name in (
        "age_years",
        "sex",
        "view",
        "scanner_model",
        "site",
        "source",
    )
