"""The fitted ensemble as what `radfuse export` takes: a network, real inputs to check it on, and its card.

The engine finds `ensemble` through the entry-point group ``radfuse.exports``: a function of the pipeline's
places which gives `Exportable`, or None where there is nothing to export (``status: not_applicable``). The
network takes one tensor ``input`` of shape (B, features), as `radfuse.ensemble.feature_names` orders them
(every modality's outputs, 0 where the patient lacks it, then one 0/1 number a modality that says what is
there), and gives ``output`` of shape (B, diseases): probabilities. Heads, weights and scaling are inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from radfuse.engine.places import Places
    from radfuse.ensemble.answering import Loaded

_MOST_SAMPLES = 16
_SPLITS = ("val", "calibration")
"""Whose patients the export is tried on; those of `test` are for `radfuse evaluate` alone."""


class Exportable(NamedTuple):
    """What there is to export.

    Attributes:
        module: in evaluation mode, float32, on the CPU.
        example: (B, features) with B of 2 or more: patients of `val` and `calibration`, their features alone.
        card: fields of the export's card that only the ensemble knows: modality, name, version, model_digest,
            split_digest, task, labels, inputs, preprocessing, thresholds.
    """

    module: nn.Module
    example: Tensor
    card: dict[str, Any]


def ensemble(places: Places) -> Exportable | None:
    """The fitted ensemble of a pipeline, or None where it is not applicable.

    Args:
        places: where the pipeline keeps things.

    Raises:
        MissingStage: `radfuse ensemble` has not run.
        StaleError: it ran on other predictions than those at hand.
    """
    from radfuse.engine import agreement
    from radfuse.engine.evaluation.results import WEIGHTS, check_inputs
    from radfuse.engine.places import require
    from radfuse.ensemble.answering import load
    from radfuse.ensemble.features import outputs_of

    said = require(places.saved_models(agreement.ENSEMBLE) / WEIGHTS, "radfuse ensemble")
    tables = agreement.agreeing_tables(places)
    check_inputs(agreement.read_json(said), tables)
    loaded = load(places)
    if loaded is None:
        return None
    examples = _examples(outputs_of(tables, loaded.features), tables)
    return Exportable(loaded.network, examples, _card(loaded))


def _examples(outputs: Any, tables: Mapping[str, Any]) -> Tensor:
    """Some patients of `val` and `calibration`, so chosen that every set of modalities among them is met."""
    import numpy as np
    import torch

    from radfuse.engine.tables import PATIENT, SPLIT

    taken = {
        str(patient)
        for table in tables.values()
        for patient in table.frame.loc[table.frame[SPLIT].isin(_SPLITS), PATIENT]
    }
    # The ensemble was fitted on such patients, so there are many.
    among = [at for at, patient in enumerate(outputs.patients) if patient in taken]
    _, first = np.unique(outputs.mask[among], axis=0, return_index=True)
    order = [*first.tolist(), *(at for at in range(len(among)) if at not in set(first.tolist()))]
    chosen = outputs.rows(np.array(among)[order[:_MOST_SAMPLES]])
    return torch.as_tensor(chosen.inputs, dtype=torch.float32)


def _card(loaded: Loaded) -> dict[str, Any]:
    from radfuse.engine.agreement import ENSEMBLE
    from radfuse.ensemble.features import feature_names

    said = loaded.said
    return {
        "modality": ENSEMBLE,
        "name": "meta_learner",
        "version": "",
        "model_digest": said["model_digest"],
        "split_digest": said["split_digest"],
        "task": "features",
        "labels": list(said["diseases"]),
        "inputs": feature_names(loaded.features),
        "preprocessing": {
            "kind": "features",
            "features": [one.as_dict() for one in loaded.features],
            "models": {name: one["model_digest"] for name, one in said["inputs"].items()},
        },
        "thresholds": dict(said["thresholds"]),
    }
