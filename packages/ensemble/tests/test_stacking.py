from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from said_and_true import RECIPE, patients
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from radfuse.ensemble import stacking
from radfuse.ensemble.features import Outputs


def test_a_head_is_scikit_learns_logistic_regression_on_the_patients_who_have_the_modality() -> None:
    outputs, truth = patients(120)
    stack = stacking.fit(outputs, truth, RECIPE).stack
    has, own = outputs.mask[:, 2] == 1, outputs.owner == 2
    x = (outputs.values[np.ix_(has, own)] - stack.mean[own]) / stack.scale[own]
    model = LogisticRegression(C=stack.strengths[2], max_iter=1000).fit(x, truth[has, 1])
    expected = model.decision_function(x)
    found = (stack.prior + stack.evidence(outputs)[:, 2])[has, 1]
    assert found == pytest.approx(expected, abs=1e-6)


def test_heads_read_no_other_modality() -> None:
    stack = stacking.fit(*patients(80), RECIPE).stack
    for m in range(3):
        others = patients(1)[0].owner != m
        assert not stack.coefficients[others, m].any()


def test_weights_are_positive_and_sum_to_one() -> None:
    stack = stacking.fit(*patients(600), RECIPE).stack
    assert (stack.weights > 0).all()
    assert stack.weights.sum(axis=0) == pytest.approx(1.0)


def test_a_modality_whose_evidence_misleads_gets_little_weight() -> None:
    outputs, truth = patients(600, lacking=0.0)
    fitted = stacking.fit(outputs, truth, RECIPE)
    misled = fitted.evidence.copy()
    misled[:, 0] = 2 * np.random.default_rng(0).normal(size=misled[:, 0].shape)
    weights, _ = stacking._weights(misled, outputs.mask, truth, fitted.stack.prior, 1.0)
    assert weights[0].max() < 0.1
    assert weights[2].min() > 0.4


def test_independent_modalities_are_found_to_be_so() -> None:
    assert stacking.fit(*patients(1500), RECIPE).stack.independence > 0.7


def test_modalities_that_say_the_same_are_found_to_be_so() -> None:
    """Every modality repeats one opinion: their agreement makes nothing more certain."""
    outputs, truth = patients(1500, lacking=0.0)
    same = np.repeat(outputs.values[:, :1], outputs.values.shape[1], axis=1)
    copied = Outputs(outputs.patients, same, outputs.mask, outputs.features, outputs.modalities)
    assert stacking.fit(copied, truth[:, [0, 0]], RECIPE).stack.independence < 0.15


@given(st.lists(st.lists(st.floats(-4, 4), min_size=2, max_size=2), min_size=3, max_size=3), st.floats(0, 1))
def test_one_modality_alone_gives_its_own_answer(evidence: list[list[float]], independence: float) -> None:
    weights = np.array([[0.2, 0.5], [0.3, 0.4], [0.5, 0.1]])
    for m in range(3):
        mask = np.eye(3)[m : m + 1]
        found = stacking.pooled(np.array([evidence]) * mask[:, :, None], mask, weights, independence)
        assert found[0] == pytest.approx(evidence[m], abs=1e-9)


@given(st.floats(0, 1))
def test_a_patient_without_any_modality_gets_the_prior(independence: float) -> None:
    found = stacking.pooled(np.zeros((1, 3, 2)), np.zeros((1, 3)), np.full((3, 2), 1 / 3), independence)
    assert found.tolist() == [[0.0, 0.0]]


def test_equal_weights_and_full_independence_add_the_evidence_up() -> None:
    evidence = np.array([[[1.0], [2.0], [-0.5]]])
    found = stacking.pooled(evidence, np.ones((1, 3)), np.full((3, 1), 1 / 3), 1.0)
    assert found[0, 0] == pytest.approx(2.5)
    assert stacking.pooled(evidence, np.ones((1, 3)), np.full((3, 1), 1 / 3), 0.0)[0, 0] == pytest.approx(
        2.5 / 3
    )


def test_weights_are_renormalised_over_what_a_patient_has() -> None:
    evidence, weights = np.array([[[1.0], [0.0], [3.0]]]), np.array([[0.25], [0.5], [0.25]])
    found = stacking.pooled(evidence, np.array([[1.0, 0.0, 1.0]]), weights, 0.0)
    assert found[0, 0] == pytest.approx(2.0)


@settings(max_examples=6)
@given(st.integers(0, 59), st.integers(0, 1))
def test_own_label_never_reaches_the_out_of_fold_evidence(patient: int, disease: int) -> None:
    outputs, truth = patients(60)
    before = stacking.fit(outputs, truth, RECIPE)
    turned = truth.copy()
    turned[patient, disease] = 1 - turned[patient, disease]
    after = stacking.fit(outputs, turned, RECIPE)
    # What a fold's head says is measured from the prior, which everybody has a share in.
    said = before.evidence[patient] + before.stack.prior, after.evidence[patient] + after.stack.prior
    there = outputs.mask[patient] == 1
    assert said[0][there] == pytest.approx(said[1][there], abs=1e-9)


def test_a_disease_nobody_has_gets_its_prior_and_no_error() -> None:
    outputs, truth = patients(60)
    truth[:, 1] = 0
    stack = stacking.fit(outputs, truth, RECIPE).stack
    assert stack.evidence(outputs)[:, :, 1] == pytest.approx(0.0)
    assert expit(stack.average(outputs)[:, 1]).max() < 0.05


def test_unknown_diseases_take_no_part() -> None:
    outputs, truth = patients(90)
    truth[60:, 0] = np.nan
    kept = stacking.fit(outputs, truth, RECIPE).stack
    fewer = stacking.fit(outputs.rows(np.arange(60)), truth[:60], RECIPE).stack
    assert kept.prior[0] == pytest.approx(fewer.prior[0])
    assert np.isfinite(kept.average(outputs)).all()


def test_the_average_tells_more_than_any_modality() -> None:
    stack = stacking.fit(*patients(300), RECIPE).stack
    outputs, truth = patients(2000, seed=1, lacking=0.0)
    average, evidence = stack.average(outputs), stack.evidence(outputs)
    for disease in range(2):
        alone = max(roc_auc_score(truth[:, disease], evidence[:, m, disease]) for m in range(3))
        assert roc_auc_score(truth[:, disease], average[:, disease]) > alone + 0.03
