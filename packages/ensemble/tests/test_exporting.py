from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from simulated_pipeline import DISEASES, write_model, write_predictions

from radfuse.engine import agreement, predictions, scaffold
from radfuse.engine.cli import run
from radfuse.engine.errors import MissingStage, StaleError
from radfuse.engine.modality import modality
from radfuse.engine.places import Places
from radfuse.ensemble.exporting import ensemble
from radfuse.ensemble.features import features_of, outputs_of
from radfuse.serving import CardError, FeaturePredictor
from radfuse.serving.card import Card


def test_the_engine_finds_it_by_its_entry_point() -> None:
    found = {point.name: point for point in entry_points(group="radfuse.exports")}
    assert found["ensemble"].load() is ensemble


def test_row_4_9_the_network_answers_as_the_table_says(fitted: Places) -> None:
    found = ensemble(fitted)
    assert found is not None
    table = predictions.read(fitted.predictions("ensemble"))[0].set_index("patient_id")
    tested = table[table["split"] == "test"]
    tables = agreement.agreeing_tables(fitted)
    outputs = outputs_of(tables, features_of(tables, {"ct": ("max", "mean", "count")}))
    chosen = outputs.rows(np.isin(outputs.patients, tested.index))
    with torch.no_grad():
        answers = found.module(torch.as_tensor(chosen.inputs, dtype=torch.float32)).numpy()
    reported = "weighted_average"
    expected = tested.loc[chosen.patients, [f"{reported}:{name}" for name in DISEASES]].to_numpy()
    assert answers == pytest.approx(expected, abs=1e-6)


def test_the_card_is_whole_and_names_every_input(fitted: Places) -> None:
    found = ensemble(fitted)
    assert found is not None
    card = Card(**found.card, digest_sha256="0" * 64, created="2026-01-01T00:00:00+00:00")
    assert len(card.inputs) == found.example.shape[1]
    assert card.inputs[-3:] == ("available:ct", "available:mri", "available:xray")
    assert card.labels == DISEASES
    assert set(card.thresholds) == set(DISEASES)


def test_examples_are_patients_of_val_and_calibration_with_every_pattern_of_what_is_lacking(
    fitted: Places,
) -> None:
    found = ensemble(fitted)
    assert found is not None
    table = predictions.read(fitted.predictions("ensemble"))[0]
    held = table[table["split"].isin(["val", "calibration"])]
    patterns = held[["available:ct", "available:mri", "available:xray"]].to_numpy().tolist()
    assert {tuple(row) for row in found.example[:, -3:].int().tolist()} == {tuple(row) for row in patterns}
    assert 2 <= len(found.example) <= 16
    tables = agreement.agreeing_tables(fitted)
    outputs = outputs_of(tables, features_of(tables, {"ct": ("max", "mean", "count")}))
    inputs = torch.as_tensor(outputs.inputs, dtype=torch.float32)
    own = np.isin(outputs.patients, held["patient_id"])
    same = (found.example[:, None] == inputs[None]).all(dim=2).numpy()
    assert same[:, own].any(axis=1).all() and not same[:, ~own].any()


def test_no_ensemble_leaves_the_outputs_that_dvc_wants_and_a_real_one_replaces_them(copied: Places) -> None:
    params, folder = str(copied.root / "params.yaml"), copied.exports
    assert run(["ensemble", "--params", params, "--set", "ensemble.minimum_patients=5000"]) == 0
    assert ensemble(copied) is None
    assert run(["export", "ensemble", "--params", params]) == 0
    stages = yaml.safe_load(scaffold.dvc_yaml([modality("xray"), modality("ct")], copied.root))["stages"]
    outs = {Path(out).name for out in stages["export"]["outs"] if "ensemble" in out}
    assert outs == {path.name for path in folder.iterdir()} and len(outs) == 4
    with pytest.raises(CardError, match="minimum_patients asks for 5000"):
        FeaturePredictor(folder / "ensemble_onnx.onnx")
    assert run(["ensemble", "--params", params]) == 0
    assert run(["export", "ensemble", "--params", params]) == 0
    assert FeaturePredictor(folder / "ensemble_onnx.onnx").card.labels == DISEASES
    assert {path.name for path in folder.iterdir()} == outs


def test_an_ensemble_of_other_predictions_is_not_exported(copied: Places) -> None:
    write_model(copied, "mri", value=3.0)
    write_predictions(copied, "mri", predictions.read(copied.predictions("mri"))[0])
    with pytest.raises(StaleError, match="radfuse ensemble"):
        ensemble(copied)


def test_without_the_stage_it_says_what_to_run(copied: Places) -> None:
    (copied.saved_models("ensemble") / "weighted_average.json").unlink()
    with pytest.raises(MissingStage, match="radfuse ensemble"):
        ensemble(copied)
