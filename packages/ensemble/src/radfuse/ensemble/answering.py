"""What the fitted ensemble says of patients: log odds by every method, and the table of probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import expit

import ckptcore
from radfuse.engine.agreement import ENSEMBLE, read_json
from radfuse.engine.errors import StaleError
from radfuse.engine.evaluation.ensemble import AVAILABLE, HEAD, META, WEIGHTED_AVERAGE
from radfuse.engine.evaluation.results import CHECKPOINT, WEIGHTS
from radfuse.engine.places import require
from radfuse.engine.tables import PATIENT
from radfuse.ensemble.features import Feature, outputs_of
from radfuse.ensemble.network import EnsembleNetwork
from radfuse.ensemble.stacking import Stack

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from radfuse.engine.agreement import Table
    from radfuse.engine.places import Places
    from radfuse.ensemble.features import Outputs

_COMMAND = "radfuse ensemble"


@dataclass(frozen=True)
class Answers:
    """Log odds of the diseases by every method.

    Attributes:
        heads: (P, M, D) from one modality alone; NaN where the patient lacks it.
        average: (P, D).
        meta: (P, D).
    """

    heads: NDArray[np.float64]
    average: NDArray[np.float64]
    meta: NDArray[np.float64]


@dataclass(frozen=True)
class Loaded:
    """An ensemble that was fitted before.

    Attributes:
        said: what ``weighted_average.json`` says.
        features: the network's inputs but for the mask.
        stack: heads and weights.
        network: all of it as one network, in evaluation mode.
    """

    said: Mapping[str, Any]
    features: Sequence[Feature]
    stack: Stack
    network: EnsembleNetwork


def head_log_odds(stack: Stack, outputs: Outputs) -> NDArray[np.float64]:
    """(P, M, D) log odds from each modality alone; NaN where the patient lacks it."""
    there = outputs.mask[:, :, None] == 1
    return np.where(there, stack.prior + stack.evidence(outputs), np.nan)


def answers(stack: Stack, network: EnsembleNetwork, outputs: Outputs) -> Answers:
    """What is said of patients that the ensemble was not fitted on.

    Args:
        stack: heads and weights.
        network: with the meta-learner.
        outputs: of the modalities.
    """
    average = stack.average(outputs)
    with torch.no_grad():
        correction = network.meta(*network.said(torch.as_tensor(outputs.inputs, dtype=torch.float32)))
    return Answers(head_log_odds(stack, outputs), average, average + correction.double().numpy())


def probability_columns(found: Answers, outputs: Outputs, diseases: Sequence[str]) -> dict[str, Any]:
    """Columns of the ensemble's table: what there is, and every method's probabilities.

    Args:
        found: log odds.
        outputs: of the same patients.
        diseases: names.
    """
    columns: dict[str, Any] = {}
    for m, modality in enumerate(outputs.modalities):
        columns[AVAILABLE + modality] = outputs.mask[:, m].astype(np.int64)
    for d, disease in enumerate(diseases):
        for m, modality in enumerate(outputs.modalities):
            columns[f"{HEAD}{modality}:{disease}"] = expit(found.heads[:, m, d])
        columns[f"{WEIGHTED_AVERAGE}:{disease}"] = expit(found.average[:, d])
        columns[f"{META}:{disease}"] = expit(found.meta[:, d])
    return columns


def probabilities(loaded: Loaded, tables: Mapping[str, Table]) -> pd.DataFrame:
    """Every method's probabilities for the patients of any prediction tables, as for those of another cohort.

    Args:
        loaded: the ensemble.
        tables: by modality, of the same models that it was fitted on.
    """
    import pandas as pd

    outputs = outputs_of(tables, loaded.features)
    found = answers(loaded.stack, loaded.network, outputs)
    named = {PATIENT: list(outputs.patients)}
    return pd.DataFrame(named | probability_columns(found, outputs, loaded.said["diseases"]))


def load(places: Places) -> Loaded | None:
    """The ensemble of a pipeline; None where it is not applicable.

    Args:
        places: of the pipeline.

    Raises:
        MissingStage: there is none yet.
        StaleError: ``meta_learner.pth`` holds another model than ``weighted_average.json`` tells of.
    """
    folder = places.saved_models(ENSEMBLE)
    said = read_json(require(folder / WEIGHTS, _COMMAND))
    if said["status"] != "fitted":
        return None
    checkpoint = ckptcore.load(require(folder / CHECKPOINT, _COMMAND))
    if checkpoint.header.model_digest != said["model_digest"]:
        raise StaleError(f"{CHECKPOINT} is not the model that {WEIGHTS} tells of; run `{_COMMAND}` again.")
    shape = len(said["features"]), len(said["modalities"]), len(said["diseases"])
    network = EnsembleNetwork(*shape, checkpoint["hyperparameters"]["parameters"])
    network.load_state_dict(checkpoint["model_state_dict"])
    features = [
        Feature(one["modality"], one["output"], one["kind"], one["pooling"]) for one in said["features"]
    ]
    return Loaded(said, features, _stack(said), network.eval())


def _stack(said: Mapping[str, Any]) -> Stack:
    """Heads and weights as ``weighted_average.json`` has them."""
    features, modalities, diseases = said["features"], said["modalities"], said["diseases"]
    heads = [said["heads"][modality] for modality in modalities]
    coefficients = np.zeros((len(features), len(modalities), len(diseases)))
    for at, feature in enumerate(features):
        m = modalities.index(feature["modality"])
        coefficients[at, m] = [heads[m]["coefficients"][disease][feature["name"]] for disease in diseases]
    return Stack(
        mean=np.array([feature["mean"] for feature in features]),
        scale=np.array([feature["scale"] for feature in features]),
        coefficients=coefficients,
        intercepts=np.array([[head["intercepts"][disease] for disease in diseases] for head in heads]),
        prior=np.array([said["prior_log_odds"][disease] for disease in diseases]),
        weights=np.array([[said["weights"][d][m] for d in diseases] for m in modalities]),
        independence=float(said["independence"]),
        strengths=np.array([head["strength"] for head in heads]),
    )
