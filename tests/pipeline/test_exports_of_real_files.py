"""The small demo's exports, asked about its patients' own files, and the gain that its report gives.

What is expected comes from the published checkpoints and the tables, by formulas written out here: none of it
passes through the code that exports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from small_pipeline import Pipeline

from radfuse.engine import config
from radfuse.engine.export.torchscript import load_torchscript
from radfuse.engine.modality import modality
from radfuse.engine.places import Places
from radfuse.engine.prepared import Prepared
from radfuse.serving import Card, FeaturePredictor, Predictor
from radfuse.serving.preprocess import to_input

# One process runs them all, with those of `test_repro.py`: they share a pipeline that is made once.
pytestmark = pytest.mark.xdist_group("finished pipeline")

MODELS = {"xray": "resnet50", "ct": "3dcnn", "mri": "unet"}
BATCH = 3

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Asked:
    """Samples of `test`, which no export was ever tried on, and what the published checkpoint answers."""

    name: str
    samples: list[str]
    batch: Array
    answers: Array


@pytest.fixture(scope="module", params=list(MODELS))
def asked(request: pytest.FixtureRequest, finished: Pipeline) -> Asked:
    name = str(request.param)
    places = Places(finished.root)
    prepared = Prepared(places, name)
    samples = prepared.samples("test")[:BATCH]
    assert len(samples) == BATCH
    batch = np.stack([to_input(prepared.spec, prepared.array(sample)) for sample in samples])
    return Asked(name, samples, batch, by_checkpoint(places, name, batch))


def by_checkpoint(places: Places, name: str, batch: Array) -> Array:
    """Probabilities by the published file's weights, with the calibration that stands beside the table."""
    one, params = modality(name), config.load(places.root / "params.yaml", [])
    state = torch.load(places.saved_models(name) / f"{MODELS[name]}_best.pth", weights_only=True)
    card = Card.read(places.exports / f"{name}_onnx.json")
    outputs = len(card.classes or card.labels)
    network = one.network(params.prepare_of(one), params.train_of(one), outputs).eval()
    network.load_state_dict(state["ema_state_dict"] or state["model_state_dict"])
    with torch.inference_mode():
        logits = network(one.normalisation(params.prepare_of(one))(torch.from_numpy(batch)))
    if card.classes:
        return np.asarray(logits.softmax(dim=1).numpy())
    told = json.loads(places.calibration(name).read_text(encoding="utf-8"))["labels"]
    scale, shift = ([told[label][key] for label in card.labels] for key in ("temperature", "bias"))
    return np.asarray((logits / torch.tensor(scale) + torch.tensor(shift)).sigmoid().numpy())


def runner(file: Path) -> Callable[[Array], Array]:
    """An exported file as a function."""
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda batch: np.asarray(session.run(["output"], {"input": batch})[0])
    module = load_torchscript(file)

    def answer(batch: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(batch)).numpy())

    return answer


def one_by_one(answer: Callable[[Array], Array], batch: Array) -> Array:
    """The answers to each sample in a batch of its own."""
    return np.concatenate([answer(batch[at : at + 1]) for at in range(len(batch))])


@pytest.mark.parametrize("file", ["onnx.onnx", "torchscript.pt"])
def test_row_4_9_prepared_samples_are_answered_alike_in_batches_of_1_and_3_and_by_the_checkpoint(
    finished: Pipeline, asked: Asked, file: str
) -> None:
    path = Places(finished.root).exports / f"{asked.name}_{file}"
    tolerance = Card.read(path.with_suffix(".json")).parity["tolerance"]
    assert tolerance <= 1e-4
    answer = runner(path)
    together, alone = answer(asked.batch), one_by_one(answer, asked.batch)
    for found, expected in ((together, asked.answers), (alone, asked.answers), (together, alone)):
        assert found.shape == expected.shape == (BATCH, *asked.answers.shape[1:])
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    # A graph that answers everybody alike, or in another order, would not get this far.
    for other in (1, 2):
        assert np.abs(asked.answers - np.roll(asked.answers, other, axis=0)).max() > 5 * tolerance


def test_row_4_9_raw_files_are_answered_as_the_prediction_table_says(
    finished: Pipeline, asked: Asked
) -> None:
    places = Places(finished.root)
    predictor = Predictor(places.exports / f"{asked.name}_onnx.onnx", threads=1)
    known = pd.read_parquet(places.identity).set_index("sample_id")
    table = pd.read_parquet(places.predictions(asked.name)).set_index("sample_id")
    for sample in asked.samples:
        root = finished.root / known.loc[sample, "source_root"]
        files = {role: paths(root, named) for role, named in json.loads(known.loc[sample, "files"]).items()}
        point = json.loads(known.loc[sample, "point_mm"]) if asked.name == "ct" else None
        found = predictor.predict({role: files[role] for role in predictor.card.inputs}, point)
        for label, probability in found.probabilities.items():
            assert probability == pytest.approx(table.loc[sample, f"calibrated:{label}"], abs=1e-4), label
        for region, volume in found.volumes_mm3.items():
            # A voxel between two classes may fall to either side.
            assert volume == pytest.approx(table.loc[sample, f"volume_mm3:{region}"], rel=1e-3), region
        assert found.probabilities or found.volumes_mm3


def paths(root: Path, named: str | list[str]) -> Path | list[Path]:
    """What a source lists for a role: one file, or those of a series."""
    found = [root / one for one in ([named] if isinstance(named, str) else named)]
    return found[0] if len(found) == 1 else found


def features_of(
    patient: str, told: list[dict[str, Any]], tables: Mapping[str, pd.DataFrame]
) -> dict[str, float | None]:
    """What the modalities say of a patient, by names of the ensemble's features; None for what is lacking."""
    found: dict[str, float | None] = {}
    for feature in told:
        rows = tables[feature["modality"]]
        rows = rows[rows["patient_id"] == patient]
        if feature["kind"] == "log_count":
            values = [math.log1p(len(rows))] if len(rows) else []
        elif feature["kind"] == "log_volume":
            values = [math.log(mm3 / 1000 + 0.1) for mm3 in rows[f"volume_mm3:{feature['output']}"]]
        else:
            values = list(rows[f"logit:{feature['output']}"])
        pool = max if feature["pooling"] == "max" else np.mean
        found[feature["name"]] = float(pool(values)) if values else None
    return found


def test_row_4_9_the_traced_ensemble_and_its_onnx_answer_as_the_table_also_where_a_modality_is_missing(
    finished: Pipeline,
) -> None:
    places = Places(finished.root)
    told = json.loads((places.saved_models("ensemble") / "weighted_average.json").read_text(encoding="utf-8"))
    tables = {name: pd.read_parquet(places.predictions(name)) for name in MODELS}
    table = pd.read_parquet(places.predictions("ensemble"))
    # Of the patients that it was fitted on the table has what was said without them.
    table = table[table["split"] == "test"].set_index("patient_id")
    values = {patient: features_of(patient, told["features"], tables) for patient in table.index}
    has = table[[f"available:{name}" for name in sorted(MODELS)]]
    assert set(has.sum(axis=1)) >= {2, 3}
    assert len(table) > BATCH
    for file in ("ensemble_traced.pt", "ensemble_onnx.onnx"):
        card = Card.read(places.exports / file.replace(Path(file).suffix, ".json"))
        tolerance = card.parity["tolerance"]
        batch = np.array(
            [
                [
                    has.loc[patient, name] if name in has else values[patient][name] or 0.0
                    for name in card.inputs
                ]
                for patient in table.index
            ],
            dtype=np.float32,
        )
        answer = runner(places.exports / file)
        expected = table[[f"{told['reported']}:{disease}" for disease in card.labels]].to_numpy()
        threes = np.concatenate([answer(batch[at : at + BATCH]) for at in range(0, len(batch), BATCH)])
        np.testing.assert_allclose(threes, expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(one_by_one(answer, batch), expected, rtol=0, atol=tolerance)
        assert (np.ptp(expected, axis=0) > 5 * tolerance).all()
    served = FeaturePredictor(places.exports / "ensemble_onnx.onnx", threads=1)
    for patient, given in values.items():
        for disease, probability in served.predict(given).probabilities.items():
            assert probability == pytest.approx(table.loc[patient, f"{told['reported']}:{disease}"], abs=1e-4)


def test_row_4_6_the_gain_and_its_paired_interval_are_of_the_patients_who_have_the_modality(
    finished: Pipeline,
) -> None:
    places = Places(finished.root)
    report = json.loads(places.report("ensemble").read_text(encoding="utf-8"))
    table = pd.read_parquet(places.predictions("ensemble"))
    table = table[table["split"] == "test"]
    assert report["gain"]["against"] == report["best_single"]
    assert {name: report["gain"][name] for name in ("patients", "auroc", "diseases")} == (
        report["gain_over"][report["best_single"]]
    )
    assert set(report["gain_over"]) == set(MODELS)
    intervals = []
    for name, gain in report["gain_over"].items():
        own = table[table[f"available:{name}"] == 1]
        assert gain["patients"] == own["patient_id"].nunique() == len(own)
        gains = {
            disease: auroc(own, f"{report['reported']}:{disease}", disease)
            - auroc(own, f"head:{name}:{disease}", disease)
            for disease in gain["diseases"]
        }
        for disease, told in gain["diseases"].items():
            consistent(told, gains[disease])
        consistent(gain["auroc"], float(np.nanmean(list(gains.values()))))
        intervals.append(gain["auroc"]["low"])
    # There is none where all resamples give the same: where the ensemble ranks patients as one modality does.
    assert any(low is not None for low in intervals)


def auroc(rows: pd.DataFrame, column: str, disease: str) -> float:
    """NaN where all are sick or none is."""
    truth = rows[f"disease:{disease}"]
    return float(roc_auc_score(truth, rows[column])) if truth.nunique() == 2 else math.nan


def consistent(told: Mapping[str, float | None], expected: float) -> None:
    """The figure is as expected and inside its interval; an interval has both ends or none."""
    value, low, high = (told[name] for name in ("value", "low", "high"))
    if value is None:
        assert math.isnan(expected) and low is None and high is None
        return
    assert value == pytest.approx(expected)
    assert (low is None) == (high is None)
    if low is not None and high is not None:
        assert low <= value <= high and low < high
