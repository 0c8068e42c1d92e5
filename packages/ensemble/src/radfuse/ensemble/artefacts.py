"""What the ensemble leaves behind: checkpoint, weights in words, history, and everybody's probabilities.

``weighted_average.json`` is written last and names the others by the model's digest, so that what a killed
run left half done is seen as stale. Where there is no ensemble, all four files are there and say so: DVC
wants every output of a stage, and none may be left over from before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import ckptcore
from ckptcore import durable
from radfuse.engine import predictions
from radfuse.engine.agreement import ENSEMBLE
from radfuse.engine.evaluation.ensemble import META
from radfuse.engine.evaluation.results import CHECKPOINT, WEIGHTS
from radfuse.engine.tables import DISEASE, PATIENT, SPLIT
from radfuse.engine.tracking import FINISHED_AT
from radfuse.ensemble.answering import answers, probability_columns
from radfuse.ensemble.fitting import RULE
from radfuse.ensemble.network import EnsembleNetwork

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.agreement import Table
    from radfuse.engine.places import Places
    from radfuse.ensemble.fitting import Ensemble
    from radfuse.ensemble.material import Material
    from radfuse.ensemble.settings import Recipe

HISTORY = "ensemble_history.json"
FORMAT = 1
FITTED, NOT_APPLICABLE = "fitted", "not_applicable"
_OPTIMIZED = 4
"""Tensors of the one network that is kept; the optimizer's state of those of the folds is not."""


def write(
    places: Places, tables: Mapping[str, Table], material: Material, found: Ensemble, recipe: Recipe, key: str
) -> str:
    """Write everything that an ensemble leaves behind.

    Args:
        places: of the pipeline.
        tables: that it was made from.
        material: patients and diseases.
        found: what was fitted.
        recipe: how.
        key: digest of everything that changes a number.

    Returns:
        The model digest.
    """
    network = network_of(material, found, recipe)
    checkpoint = places.work(ENSEMBLE) / key / "published" / CHECKPOINT
    digest: str = ckptcore.model_digest(network)
    if not _holds(checkpoint, digest):
        ckptcore.save(checkpoint, _state(network, material, found, recipe, tables), {"run_key": key})
    folder = places.saved_models(ENSEMBLE)
    durable.make_folder(folder)
    durable.copy_durable(checkpoint, folder / CHECKPOINT)
    stamp = predictions.Stamp(ENSEMBLE, digest, _split_digest(tables), key, tuple(material.diseases))
    predictions.write(places.predictions(ENSEMBLE), table_of(material, found, network), stamp)
    _write_json(folder / HISTORY, {"status": FITTED, "reported": found.reported, **_told(found)})
    _write_json(folder / WEIGHTS, _weights(material, found, network, tables, digest))
    return digest


def write_not_applicable(places: Places, tables: Mapping[str, Table], why: str) -> None:
    """Write that there is no ensemble, and why.

    Args:
        places: of the pipeline.
        tables: at hand.
        why: in words.
    """
    import pandas as pd

    folder, said = places.saved_models(ENSEMBLE), {"status": NOT_APPLICABLE, "why": why}
    ckptcore.save(folder / CHECKPOINT, {"epoch": -1, "model_state_dict": {}, **said})
    stamp = predictions.Stamp(ENSEMBLE, "", _split_digest(tables), "", ())
    predictions.write(places.predictions(ENSEMBLE), pd.DataFrame({PATIENT: [], SPLIT: []}, dtype=str), stamp)
    _write_json(folder / HISTORY, said)
    _write_json(folder / WEIGHTS, {"format": FORMAT, **said, "inputs": _inputs(tables)})


def network_of(material: Material, found: Ensemble, recipe: Recipe) -> EnsembleNetwork:
    """The network that answers as the ensemble does."""
    outputs = material.outputs
    shape = len(outputs.features), len(outputs.modalities), len(material.diseases)
    with torch.random.fork_rng(devices=[]):
        network = EnsembleNetwork(*shape, recipe.parameters)
    network.take(found.stack, outputs.owner)
    network.meta.load_state_dict(found.trained.meta.state_dict())
    network.corrects.fill_(float(found.reported == META))
    return network.eval()


def table_of(material: Material, found: Ensemble, network: EnsembleNetwork) -> pd.DataFrame:
    """One row a patient: what there is, what is true, and every method's probabilities.

    Those of the patients that were fitted on are cross-fitted.
    """
    import pandas as pd

    said, fits = answers(found.stack, network, material.outputs), material.fits
    for name in ("heads", "average", "meta"):
        getattr(said, name)[fits] = getattr(found.crossed, name)
    return pd.DataFrame(
        {PATIENT: list(material.outputs.patients), SPLIT: material.split}
        | {DISEASE + disease: material.truth[:, d] for d, disease in enumerate(material.diseases)}
        | probability_columns(said, material.outputs, material.diseases)
    )


def _state(
    network: EnsembleNetwork, material: Material, found: Ensemble, recipe: Recipe, tables: Mapping[str, Table]
) -> dict[str, Any]:
    """The keys of every checkpoint of the project."""
    history = found.trained.history
    optimizer = found.trained.state["optimizer_state_dict"]
    return {
        "epoch": len(history["train_loss"]) - 1,
        "global_step": len(history["train_loss"]),
        "model_state_dict": network.state_dict(),
        "optimizer_state_dict": {
            "state": {at: optimizer["state"][at] for at in range(_OPTIMIZED)},
            "param_groups": [{**optimizer["param_groups"][0], "params": list(range(_OPTIMIZED))}],
        },
        "scheduler_state_dict": found.trained.state["scheduler_state_dict"],
        "scaler_state_dict": {},
        "ema_state_dict": {},
        "train_loss": history["train_loss"][-1],
        "val_loss": history["val_loss"][-1],
        "val_auc": history["val_auc"][-1],
        "val_metrics": {
            f"{method}_{name}": x for method, one in found.scores.items() for name, x in one.items()
        },
        "best_metric": history["val_auc"][-1],
        "optimal_thresholds": dict(found.thresholds),
        "history": history,
        "hyperparameters": {**recipe.model_dump(mode="json"), **_counted(network)},
        "stage": {
            "name": "meta-learner",
            "index": 0,
            "learnable_parameters": _counted(network)["meta_parameters"],
        },
        "rng_state": {},
        "loader_state": {},
        "provenance": {
            "inputs": _inputs(tables),
            "split_digest": _split_digest(tables),
            "features": [one.name for one in material.outputs.features],
            "modalities": list(material.outputs.modalities),
            "diseases": list(material.diseases),
            "fitted_on": material.fitted_on,
            "reported": found.reported,
        },
        "timestamp": datetime.fromtimestamp(history[FINISHED_AT][-1], UTC).isoformat(),
    }


def _weights(
    material: Material, found: Ensemble, network: EnsembleNetwork, tables: Mapping[str, Table], digest: str
) -> dict[str, Any]:
    """``weighted_average.json``: all that it takes to compute the weighted average again by hand."""
    outputs, stack = material.outputs, found.stack
    fitted = outputs.rows(material.fits)
    return {
        "format": FORMAT,
        "status": FITTED,
        "fitted_on": material.fitted_on,
        "patients": len(fitted.patients),
        "patients_with_two_modalities": int((fitted.mask.sum(axis=1) >= 2).sum()),
        "diseases": list(material.diseases),
        "left_out": dict(material.left_out),
        "modalities": list(outputs.modalities),
        "inputs": _inputs(tables),
        "split_digest": _split_digest(tables),
        "model_digest": digest,
        "features": [
            {**one.as_dict(), "mean": float(stack.mean[at]), "scale": float(stack.scale[at])}
            for at, one in enumerate(outputs.features)
        ],
        "heads": {name: _head(material, found, m) for m, name in enumerate(outputs.modalities)},
        "prior_log_odds": dict(zip(material.diseases, stack.prior.tolist(), strict=True)),
        "weights": {
            disease: dict(zip(outputs.modalities, stack.weights[:, d].tolist(), strict=True))
            for d, disease in enumerate(material.diseases)
        },
        "independence": stack.independence,
        "thresholds": dict(found.thresholds),
        "reported": found.reported,
        "rule": RULE,
        "best_single": found.best_single,
        "cross_fitted": {method: dict(one) for method, one in found.scores.items()},
        "meta_learner": {"file": CHECKPOINT, **_counted(network)},
    }


def _head(material: Material, found: Ensemble, m: int) -> dict[str, Any]:
    """One modality's head: evidence = intercept + sum of coefficient * (feature - mean) / scale."""
    own = np.flatnonzero(material.outputs.owner == m)
    names = [material.outputs.features[at].name for at in own.tolist()]
    coefficients = found.stack.coefficients[own, m]
    return {
        "strength": float(found.stack.strengths[m]),
        "coefficients": {
            disease: dict(zip(names, coefficients[:, d].tolist(), strict=True))
            for d, disease in enumerate(material.diseases)
        },
        "intercepts": dict(zip(material.diseases, found.stack.intercepts[m].tolist(), strict=True)),
    }


def _told(found: Ensemble) -> dict[str, Any]:
    """What every epoch measured, without the time of day: the same fit writes the same file."""
    history = {name: values for name, values in found.trained.history.items() if name != FINISHED_AT}
    return {"history": history, "cross_fitted": {method: dict(one) for method, one in found.scores.items()}}


def _counted(network: EnsembleNetwork) -> dict[str, int]:
    count = sum(parameter.numel() for parameter in network.meta.parameters())
    return {"meta_parameters": count, "meta_width": network.meta.width}


def _inputs(tables: Mapping[str, Table]) -> dict[str, Any]:
    return {
        name: {"model_digest": table.stamp.model_digest, "split_digest": table.stamp.split_digest}
        for name, table in tables.items()
    }


def _split_digest(tables: Mapping[str, Table]) -> str:
    return next(iter(tables.values())).stamp.split_digest


def _holds(checkpoint: Path, digest: str) -> bool:
    """Whether the same run has left this very model before."""
    return (
        checkpoint.is_file()
        and ckptcore.verify(checkpoint).ok
        and (ckptcore.read_header(checkpoint).model_digest == digest)
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    durable.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
