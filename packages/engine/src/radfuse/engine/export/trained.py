"""The trained network of a modality, ready to be exported: with its calibration, samples, and card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ckptcore.cards import list_versions
from radfuse.engine import calibration, predictions
from radfuse.engine.digests import file_digest
from radfuse.engine.errors import ParityError, StaleError
from radfuse.engine.export.exportable import Exportable
from radfuse.engine.export.graph import ExportGraph, Scaling
from radfuse.engine.export.samples import real_samples, sample_names
from radfuse.engine.modality import Modality
from radfuse.engine.modality import modality as modality_of
from radfuse.engine.places import Places
from radfuse.engine.predicting import load_trained
from radfuse.engine.prepared import Prepared
from radfuse.engine.tables import CALIBRATED, SAMPLE
from radfuse.serving import preprocess
from radfuse.serving.sliding_window import STEP

if TYPE_CHECKING:
    from torch import Tensor

    from radfuse.engine.calibration import Calibration
    from radfuse.engine.config import Params
    from radfuse.engine.predicting import Trained
    from radfuse.engine.training.tasks import Task


def exportable(params: Params, places: Places, name: str) -> Exportable:
    """The published best of a modality as what is exported.

    Args:
        params: params.yaml.
        places: of the pipeline.
        name: of the modality.

    Raises:
        MissingStage: the modality was not prepared, trained or predicted.
        StaleError: what earlier stages made does not belong together, the calibration and the checkpoint say.
        ParityError: the graph answers otherwise than the prediction table says.
    """
    modality, prepared = modality_of(name), Prepared(places, name)
    trained = load_trained(params, places, modality)
    fitted = fitted_calibration(places, prepared, trained)
    graph = ExportGraph(
        modality.normalisation(params.prepare_of(modality)),
        trained.network,
        _scaling(trained.task, fitted),
        trained.task.activation(),
    ).eval()
    window = sliding_window(trained.task, params.train_of(modality))
    step = None if window is None else STEP
    names = sample_names(prepared, params.export.samples)
    samples = real_samples(prepared, names, None if window is None else window["size"], step)
    if trained.task.kind == "classification":
        _check_table(places, name, graph, names, samples, params.export.tolerance)
    return Exportable(
        name=name,
        files={"onnx": f"{name}_onnx.onnx", "torchscript": f"{name}_torchscript.pt"},
        graph=graph,
        samples=samples,
        card=_card(places, modality, prepared, trained, fitted, window),
        step=step,
    )


def fitted_calibration(places: Places, prepared: Prepared, trained: Trained) -> Calibration:
    """The calibration that was fitted for this very model; an empty one where nothing is calibrated.

    Raises:
        MissingStage: the modality was not predicted.
        StaleError: the calibration belongs to another model, other arrays or another split, or was changed.
    """
    if trained.task.kind != "classification":
        return calibration.Calibration({})
    command = f"radfuse predict-split {prepared.modality}"
    stamp = predictions.read_stamp(places.predictions(prepared.modality), command)
    file = places.calibration(prepared.modality)
    fitted = calibration.read(file)
    for what, then, now in (
        ("model", stamp.model_digest, trained.checkpoint.header.model_digest or ""),
        ("split", stamp.split_digest, prepared.split_digest),
        ("set of prepared images", stamp.prepared_digest, prepared.digest),
        ("calibration file", stamp.calibration, file_digest(file)),
    ):
        if then != now:
            raise StaleError(
                f"the calibration of {prepared.modality} is stale: the predictions that it was fitted on "
                f"belong to the {what} {then[:12] or 'none'}, and the one at hand is {now[:12] or 'none'}; "
                f"run `{command}` again."
            )
    missing = [label for label in trained.task.names if label not in fitted.labels]
    if missing:
        raise StaleError(f"{file.name} has no calibration for {', '.join(missing)}; run `{command}` again.")
    return fitted


def sliding_window(task: Task, settings: Any) -> dict[str, Any] | None:
    """Size and overlap of a segmentation's windows; None for what is taken whole."""
    window = getattr(task, "window", None)
    return None if window is None else dict(window(settings))


def version_of(places: Places, modality: Modality, model_digest: str) -> str:
    """The highest version that was promoted from a model; empty where none was."""
    folder = places.saved_models(modality.name)
    same = [
        card for card in list_versions(folder) if card.model_digest == model_digest and card.status == "whole"
    ]
    return max(same, key=lambda card: card.semver).version if same else ""


def _scaling(task: Task, fitted: Calibration) -> nn.Module:
    if not fitted.labels:
        return nn.Identity()
    chosen = [fitted.labels[label] for label in task.names]
    return Scaling([one.temperature for one in chosen], [one.bias for one in chosen])


def _check_table(
    places: Places,
    name: str,
    graph: nn.Module,
    names: Sequence[str],
    samples: Sequence[Tensor],
    tolerance: float,
) -> None:
    """Compare the graph with what `radfuse predict-split` found by its own way, and in batches of its own."""
    frame, stamp = predictions.read(places.predictions(name))
    told = frame.set_index(SAMPLE).loc[list(names), [CALIBRATED + label for label in stamp.labels]]
    with torch.inference_mode():
        found = torch.cat([graph(sample[None]) for sample in samples]).numpy()
    difference = float(np.abs(found - told.to_numpy(dtype=np.float64)).max())
    if not difference <= tolerance:
        raise ParityError(
            f"the graph of {name} differs from its prediction table by {difference:.3g}; at most "
            f"{tolerance:.3g} is tolerated (export.tolerance). Nothing was exported. Run `radfuse "
            f"predict-split {name}` again; if that does not help, its calibration or normalisation is not "
            "what the graph computes."
        )


def _card(
    places: Places,
    modality: Modality,
    prepared: Prepared,
    trained: Trained,
    fitted: Calibration,
    window: dict[str, Any] | None,
) -> dict[str, Any]:
    told = trained.task.describe()
    digest = trained.checkpoint.header.model_digest or ""
    scalings = {
        label: {"method": one.method, "temperature": one.temperature, "bias": one.bias}
        for label, one in fitted.labels.items()
    }
    return {
        "modality": modality.name,
        "name": modality.model_name,
        "version": version_of(places, modality, digest),
        "model_digest": digest,
        "split_digest": prepared.split_digest,
        "inputs": preprocess.roles(prepared.spec),
        "preprocessing": prepared.spec,
        "task": told["kind"],
        "labels": tuple(told.get("labels", ())),
        "classes": tuple(told.get("classes", ())),
        "regions": told.get("regions", {}),
        "calibration": scalings,
        "thresholds": {label: one.threshold for label, one in fitted.labels.items()},
        "sliding_window": window,
    }
