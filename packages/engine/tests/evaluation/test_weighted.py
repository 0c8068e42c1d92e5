from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, recall_score, roc_auc_score

from radfuse.engine import metrics, weighted


@st.composite
def weighted_rows(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Truth with unknown rows, scores with ties, and three weightings that leave both classes."""
    size = draw(st.integers(1, 30))
    truth = draw(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=size, max_size=size))
    score = draw(st.lists(st.integers(0, 6), min_size=size, max_size=size))
    weights = draw(
        st.lists(st.lists(st.integers(0, 3), min_size=size, max_size=size), min_size=3, max_size=3)
    )
    kept = [[*row, 1, 2] for row in weights]
    return np.array([*truth, 0.0, 1.0]), np.array([*score, 2, 3]) / 6, np.array(kept, dtype=float)


@settings(max_examples=20)
@given(weighted_rows())
def test_every_figure_is_that_of_scikit_learn_with_sample_weights(rows: tuple[Any, Any, Any]) -> None:
    truth, score, weights = rows
    known = np.isfinite(truth)
    true, given_score = truth[known].astype(int), score[known]
    called = given_score >= 0.5
    for place, row in enumerate(weights):
        w = row[known]
        expected = {
            "auroc": roc_auc_score(true, given_score, sample_weight=w),
            "average_precision": average_precision_score(true, given_score, sample_weight=w),
            "sensitivity": recall_score(true, called, sample_weight=w),
            "specificity": recall_score(true, called, pos_label=0, sample_weight=w),
            "f1": f1_score(true, called, sample_weight=w, zero_division=0.0),
            "brier": brier_score_loss(true, given_score, sample_weight=w, pos_label=1),
        }
        found = {
            "auroc": weighted.auroc(truth, score),
            "average_precision": weighted.average_precision(truth, score),
            "sensitivity": weighted.sensitivity(truth, score, 0.5),
            "specificity": weighted.specificity(truth, score, 0.5),
            "f1": weighted.f1(truth, score, 0.5),
            "brier": weighted.brier(truth, score),
        }
        for name, value in expected.items():
            assert found[name](weights)[place] == pytest.approx(value, abs=1e-12), name


@given(weighted_rows())
def test_calibration_error_under_weights_is_that_of_repeated_rows(rows: tuple[Any, Any, Any]) -> None:
    truth, score, weights = rows
    found = weighted.expected_calibration_error(truth, score)(weights)
    for place, row in enumerate(weights.astype(int)):
        repeated = metrics.expected_calibration_error(truth.repeat(row), score.repeat(row))
        assert found[place] == pytest.approx(repeated, abs=1e-12)


def test_a_weighting_without_one_class_has_no_ranking() -> None:
    weights = np.array([[1.0, 0.0], [1.0, 1.0]])
    for figure in (weighted.auroc, weighted.average_precision):
        found = figure([1, 0], [0.9, 0.1])(weights)
        assert np.isnan(found[0])
        assert found[1] == 1.0


def test_rows_none_of_which_is_known_give_no_figure() -> None:
    weights = np.ones((2, 3))
    unknown = [np.nan] * 3
    for statistic in (
        weighted.auroc(unknown, [1, 2, 3]),
        weighted.brier(unknown, [0, 0, 1]),
        weighted.mean(unknown),
    ):
        assert np.isnan(statistic(weights)).all()


def test_a_mean_over_labels_takes_those_that_are_defined_on_all_rows() -> None:
    whole, broken = weighted.auroc([0, 1], [0.1, 0.9]), weighted.auroc([1, 1], [0.1, 0.9])
    assert weighted.mean_of([whole, broken])(np.ones((1, 2)))[0] == 1.0
    assert np.isnan(weighted.mean_of([broken])(np.ones((1, 2)))[0])


def test_a_weighting_without_one_of_the_labels_has_no_mean() -> None:
    always, often = weighted.mean([1.0, 1.0, 1.0]), weighted.auroc([0, 1, 1], [0.9, 0.1, 0.2])
    weights = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])
    assert weighted.mean_of([always, often])(weights) == pytest.approx([0.5, 0.5, np.nan], nan_ok=True)


def test_a_difference_is_taken_under_the_same_weights() -> None:
    first, second = weighted.mean([1.0, 2.0]), weighted.mean([0.0, 4.0])
    assert weighted.difference(first, second)(np.array([[1.0, 0.0], [0.0, 1.0]])).tolist() == [1.0, -2.0]
