from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from radfuse.engine import calibration, metrics
from radfuse.engine.calibration import Calibration, LabelCalibration
from radfuse.engine.errors import MissingStage, StaleError
from radfuse.engine.folds import folds_of


def table(
    patients: int,
    scale: float = 1.0,
    shift: float = 0.0,
    prevalence: float = 0.3,
    seed: int = 0,
    split: str = "calibration",
) -> pd.DataFrame:
    """Logits that would be calibrated but for a scale and a shift."""
    random = np.random.default_rng(seed)
    right = random.normal(np.log(prevalence / (1 - prevalence)), 1.5, patients)
    truth = (random.random(patients) < expit(right)).astype(float)
    return pd.DataFrame(
        {
            "patient_id": [f"p{split[0]}{number:011x}" for number in range(patients)],
            "split": split,
            "label:finding": truth,
            "logit:finding": right * scale + shift,
        }
    )


def test_temperature_undoes_overconfidence() -> None:
    fitted = calibration.fit(table(3000, scale=3.0), ["finding"]).labels["finding"]
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    assert fitted.bias == pytest.approx(0.0, abs=0.15)
    assert fitted.ece_after < 0.03 < fitted.ece_before
    assert fitted.brier_after < fitted.brier_before


def test_platt_undoes_the_shift_that_class_weights_leave() -> None:
    fitted = calibration.fit(table(3000, shift=2.0), ["finding"]).labels["finding"]
    assert fitted.method == "platt"
    assert fitted.bias == pytest.approx(-2.0, abs=0.2)
    assert fitted.ece_after < fitted.ece_before / 4


def test_logits_that_are_right_are_hardly_changed() -> None:
    fitted = calibration.fit(table(3000), ["finding"]).labels["finding"]
    assert fitted.temperature == pytest.approx(1.0, rel=0.1)
    assert fitted.bias == pytest.approx(0.0, abs=0.15)


def test_few_positives_are_left_uncalibrated() -> None:
    rows = table(60)
    rows["label:finding"] = [1.0] * 4 + [0.0] * 56
    fitted = calibration.fit(rows, ["finding"]).labels["finding"]
    assert (fitted.method, fitted.temperature, fitted.bias, fitted.positives) == ("none", 1.0, 0.0, 4)


def test_a_label_nobody_has_is_left_uncalibrated_with_an_even_threshold() -> None:
    rows = table(60)
    rows["label:finding"] = np.nan
    fitted = calibration.fit(rows, ["finding"]).labels["finding"]
    assert (fitted.method, fitted.threshold, fitted.patients) == ("none", 0.5, 0)


def test_positives_are_counted_by_patient_and_not_by_image() -> None:
    rows = table(60)
    rows["label:finding"] = [1.0] * 12 + [0.0] * 48
    rows["patient_id"] = ["one"] * 12 + rows["patient_id"].tolist()[12:]
    assert calibration.fit(rows, ["finding"]).labels["finding"].positives == 1


def test_few_positives_in_calibration_bring_val_in() -> None:
    few, many = table(12, prevalence=0.3), table(200, split="val", seed=1)
    rows = pd.concat([few, many])
    fitted = calibration.fit(rows, ["finding"])
    assert fitted.fitted_on == "val+calibration (cross-fitted)"
    assert fitted.splits == ("val", "calibration")
    assert fitted.labels["finding"].patients == 212


def test_test_and_training_patients_change_nothing() -> None:
    held = table(200)
    others = pd.concat([table(200, 9.0, 5.0, seed=2, split=split) for split in ("train", "test")])
    assert calibration.fit(pd.concat([held, others]), ["finding"]) == calibration.fit(held, ["finding"])


def test_a_method_is_kept_only_if_it_helps_on_patients_it_was_not_fitted_on() -> None:
    """With twelve positives, scaling what is right already mostly fits noise."""
    methods = [
        calibration.fit(table(40, seed=seed), ["finding"], ("calibration",)).labels["finding"].method
        for seed in range(8)
    ]
    assert "none" in methods


def test_thresholds_are_the_best_on_the_calibrated_probabilities() -> None:
    rows = table(80, scale=2.0)
    fitted = calibration.fit(rows, ["finding"])
    found = fitted.labels["finding"]
    truth = rows["label:finding"].to_numpy()
    probability = fitted.apply(rows)["calibrated:finding"].to_numpy()

    def f1(threshold: float) -> float:
        called = probability >= threshold
        return float(2 * (called & (truth == 1)).sum() / (called.sum() + (truth == 1).sum()))

    def youden(threshold: float) -> float:
        return metrics.sensitivity(truth, probability, threshold) + metrics.specificity(
            truth, probability, threshold
        )

    assert f1(found.threshold) == pytest.approx(max(f1(one) for one in probability))
    assert youden(found.youden_threshold) == pytest.approx(max(youden(one) for one in probability))


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.floats(0.1, 8), st.floats(-4, 4), st.integers(20, 60))
def test_calibration_never_turns_the_ranks_round(
    seed: int, scale: float, shift: float, patients: int
) -> None:
    rows = table(patients, scale, shift, seed=seed)
    found = calibration.fit(rows, ["finding"]).apply(rows)["calibrated:finding"].to_numpy()
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found[np.argsort(rows["logit:finding"])]) >= 0).all()


@settings(max_examples=10)
@given(st.integers(0, 59))
def test_own_label_never_reaches_a_cross_fitted_probability(patient: int) -> None:
    rows = table(60)
    truth, raw = rows["label:finding"].to_numpy(), rows["logit:finding"].to_numpy()
    fold_of = folds_of(rows["patient_id"].tolist())
    turned = truth.copy()
    turned[patient] = 1 - turned[patient]
    for method in ("temperature", "platt"):
        before = calibration._cross_fitted(truth, raw, fold_of, method)
        after = calibration._cross_fitted(turned, raw, fold_of, method)
        assert before[patient] == after[patient]
        assert not np.array_equal(before, after)


def test_what_is_written_is_read_again_and_is_strict_json(tmp_path: Path) -> None:
    fitted = calibration.fit(table(200), ["finding"])
    empty = Calibration({**fitted.labels, "rare": LabelCalibration()}, fitted.fitted_on)
    empty.write(tmp_path / "calibration.json")
    again = calibration.read(tmp_path / "calibration.json")
    assert again.labels["finding"] == fitted.labels["finding"]
    assert again.fitted_on == fitted.fitted_on
    assert np.isnan(again.labels["rare"].ece_before)
    assert "NaN" not in (tmp_path / "calibration.json").read_text()


@pytest.mark.parametrize("text", ["", "{}", '{"labels": {"a": 1}, "fitted_on": "x"}', "[]"])
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "xray.calibration.json").write_text(text)
    with pytest.raises(StaleError, match="predict-split"):
        calibration.read(tmp_path / "xray.calibration.json")


def test_a_missing_calibration_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="radfuse predict-split"):
        calibration.read(tmp_path / "xray.calibration.json")


def test_folds_keep_a_patient_together_and_are_even() -> None:
    patients = [f"p{number % 33}" for number in range(100)]
    found = folds_of(patients, 5)
    by_patient: dict[str, set[Any]] = {}
    for patient, fold in zip(patients, found, strict=True):
        by_patient.setdefault(patient, set()).add(fold)
    assert all(len(folds) == 1 for folds in by_patient.values())
    sizes = np.bincount([next(iter(folds)) for folds in by_patient.values()])
    assert sizes.max() - sizes.min() <= 1
