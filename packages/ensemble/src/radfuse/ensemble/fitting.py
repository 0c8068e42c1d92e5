"""Fits the ensemble, every answer about a patient cross-fitted, and decides by them what to report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from radfuse.engine.evaluation.ensemble import META, WEIGHTED_AVERAGE
from radfuse.engine.folds import folds_of
from radfuse.engine.training.thresholds import best_threshold
from radfuse.ensemble import stacking
from radfuse.ensemble.answering import Answers, head_log_odds
from radfuse.ensemble.stacking import Stack, cross_entropy
from radfuse.ensemble.training import Course, Said, Trained, mean_auroc, train

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radfuse.ensemble.features import Outputs
    from radfuse.ensemble.material import Material
    from radfuse.ensemble.settings import Recipe

RULE = (
    "The meta-learner is reported if its cross-fitted log-loss is lower than the weighted average's by more "
    "than one standard error of the difference over patients; otherwise the weighted average is."
)


@dataclass(frozen=True)
class Ensemble:
    """Everything that was fitted.

    Attributes:
        stack: heads and weights, of all patients fitted on.
        trained: the meta-learner.
        crossed: of the patients fitted on, each answer from a fit on other patients.
        reported: "weighted_average" or "meta".
        best_single: the modality whose head has the best mean AUROC among the patients fitted on who have it.
        scores: cross-fitted log-loss and mean AUROC of every method.
        thresholds: of the reported probability, by disease, where F1 is best.
    """

    stack: Stack
    trained: Trained
    crossed: Answers
    reported: str
    best_single: str
    scores: Mapping[str, Mapping[str, float]]
    thresholds: Mapping[str, float]


def fit(material: Material, recipe: Recipe, folder: Path, key: str) -> Ensemble:
    """Fit heads, weights and meta-learner, and choose.

    The whole procedure runs once for each fold of patients on all the others, and once on everybody. What is
    said of a patient here comes from a run that has never met it: its own diseases cannot reach it.

    Args:
        material: patients and diseases.
        recipe: of the ensemble.
        folder: work folder of the meta-learner.
        key: digest of everything that changes a number.
    """
    outputs, truth = material.outputs.rows(material.fits), material.truth[material.fits]
    fitted = stacking.fit(outputs, truth, recipe)
    everybody = Said.of(fitted.stack, outputs, fitted.evidence)
    courses = [Course(fitted.stack, everybody, truth, None, np.zeros(0, dtype=np.int64))]
    heads, average = np.full(fitted.evidence.shape, np.nan), np.full(truth.shape, np.nan)
    fold_of = folds_of(outputs.patients, recipe.folds, recipe.seed)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        courses.append(_course(outputs, truth, inside, recipe))
        heads[inside] = head_log_odds(courses[-1].stack, outputs.rows(inside))
        average[inside] = courses[-1].stack.average(outputs.rows(inside))
    trained = train(courses, truth, outputs.owner, recipe, folder, key)
    crossed = Answers(heads, average, trained.crossed)
    reported = _choice(crossed, truth)
    chosen = expit(crossed.meta if reported == META else crossed.average)
    return Ensemble(
        stack=fitted.stack,
        trained=trained,
        crossed=crossed,
        reported=reported,
        best_single=_best_single(crossed, truth, outputs),
        scores=_scores(crossed, truth, outputs),
        thresholds={
            name: best_threshold(chosen[:, d], truth[:, d]) for d, name in enumerate(material.diseases)
        },
    )


def _course(
    outputs: Outputs, truth: NDArray[np.float64], inside: NDArray[np.bool_], recipe: Recipe
) -> Course:
    """Everything fitted on the patients outside of a fold, to be judged inside."""
    others, judged = outputs.rows(~inside), outputs.rows(inside)
    fitted = stacking.fit(others, truth[~inside], recipe)
    return Course(
        stack=fitted.stack,
        learns=Said.of(fitted.stack, others, fitted.evidence),
        truth=truth[~inside],
        judged=Said.of(fitted.stack, judged, fitted.stack.evidence(judged)),
        places=np.flatnonzero(inside),
    )


def _choice(crossed: Answers, truth: NDArray[np.float64]) -> str:
    """What is reported as the ensemble, by `RULE`."""
    gained = _losses(crossed.average, truth) - _losses(crossed.meta, truth)
    error = gained.std(ddof=1) / np.sqrt(len(gained)) if len(gained) > 1 else np.inf
    return META if gained.mean() > error else WEIGHTED_AVERAGE


def _losses(log_odds: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """(patients,) mean log-loss over the diseases that are known of each; without one, none."""
    known = np.isfinite(truth)
    each = np.where(known, np.logaddexp(0.0, log_odds) - np.nan_to_num(truth) * log_odds, 0.0)
    some = known.any(axis=1)
    return np.asarray(each[some].sum(axis=1) / known[some].sum(axis=1))


def _best_single(crossed: Answers, truth: NDArray[np.float64], outputs: Outputs) -> str:
    found = [mean_auroc(truth, crossed.heads[:, m]) for m in range(len(outputs.modalities))]
    return outputs.modalities[int(np.nanargmax(np.append(found, -1.0)[: len(found)]))]


def _scores(crossed: Answers, truth: NDArray[np.float64], outputs: Outputs) -> dict[str, dict[str, float]]:
    methods = {name: crossed.heads[:, m] for m, name in enumerate(outputs.modalities)}
    methods |= {WEIGHTED_AVERAGE: crossed.average, META: crossed.meta}
    found = {}
    for name, log_odds in methods.items():
        known = np.where(np.isfinite(log_odds), truth, np.nan)
        found[name] = {
            "log_loss": cross_entropy(np.nan_to_num(log_odds), known),
            "mean_auroc": mean_auroc(known, log_odds),
        }
    return found
