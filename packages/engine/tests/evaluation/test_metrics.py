from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from radfuse.engine import metrics

TRUTH = np.array([0, 0, 1, 1, 0, 1, np.nan])
SCORE = np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.9, 0.99])


def test_rows_of_unknown_truth_take_no_part() -> None:
    assert metrics.auroc(TRUTH, SCORE) == metrics.auroc(TRUTH[:-1], SCORE[:-1])
    assert metrics.brier(TRUTH, SCORE) == metrics.brier(TRUTH[:-1], SCORE[:-1])


def test_auroc_counts_pairs_by_hand() -> None:
    # Positives .35, .8, .9 against negatives .1, .4, .4: 1 + 3 + 3 of 9 pairs are ranked right.
    assert metrics.auroc(TRUTH, SCORE) == pytest.approx(7 / 9)


def test_a_tie_counts_half() -> None:
    assert metrics.auroc([0, 1], [0.5, 0.5]) == 0.5


def test_sensitivity_and_specificity_count_at_or_above_the_threshold() -> None:
    assert metrics.sensitivity(TRUTH, SCORE, 0.8) == pytest.approx(2 / 3)
    assert metrics.specificity(TRUTH, SCORE, 0.4) == pytest.approx(1 / 3)


def test_f1_by_hand() -> None:
    # At .4: two of three positives found, and two of three negatives called.
    assert metrics.f1(TRUTH, SCORE, 0.4) == pytest.approx(2 * 2 / (4 + 3))
    assert metrics.f1([0, 1], [0.1, 0.2], 0.5) == 0.0
    assert math.isnan(metrics.f1([0, 0], [0.1, 0.2], 0.5))


def test_brier_by_hand() -> None:
    assert metrics.brier([1, 0], [0.75, 0.25]) == pytest.approx(0.0625)


def test_calibration_error_by_hand() -> None:
    # Bin [.2, .3): mean probability .25 and one positive of two; bin [.9, 1]: .95 and one of one.
    error = metrics.expected_calibration_error([1, 0, 1], [0.25, 0.25, 0.95])
    assert error == pytest.approx((2 * 0.25 + 1 * 0.05) / 3)


def test_probabilities_that_are_frequencies_have_no_calibration_error() -> None:
    assert metrics.expected_calibration_error([1, 0, 0, 0], [0.25] * 4) == pytest.approx(0.0)


def test_a_probability_of_one_is_in_the_last_bin() -> None:
    assert metrics.bin_of(np.array([0.0, 0.999, 1.0])).tolist() == [0, 9, 9]


@pytest.mark.parametrize("truth", [[0, 0], [1, 1], [np.nan, np.nan], []])
def test_one_class_alone_gives_nothing_to_rank(truth: list[float]) -> None:
    score = [0.1, 0.9][: len(truth)]
    assert math.isnan(metrics.auroc(truth, score))
    assert math.isnan(metrics.average_precision(truth, score))


def test_dice_summary_by_hand() -> None:
    summary = metrics.dice_summary([0.0, 0.5, 1.0, np.nan])
    assert summary == {"mean": 0.5, "median": 0.5, "lower_quartile": 0.25, "upper_quartile": 0.75}
    assert all(math.isnan(value) for value in metrics.dice_summary([]).values())


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Any, Any]:
    size = draw(st.integers(2, 40))
    truth = draw(st.lists(st.sampled_from([0, 1]), min_size=size, max_size=size))
    score = draw(st.lists(st.integers(0, 10), min_size=size, max_size=size))
    return np.array([*truth, 0, 1]), np.array([*score, 3, 4]) / 10


@given(labelled())
def test_ranking_figures_are_those_of_scikit_learn(rows: tuple[Any, Any]) -> None:
    truth, score = rows
    assert metrics.auroc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    assert metrics.average_precision(truth, score) == pytest.approx(average_precision_score(truth, score))


@given(labelled())
def test_log_loss_of_logits_is_that_of_their_probabilities(rows: tuple[Any, Any]) -> None:
    truth, score = rows
    probability = 1 / (1 + np.exp(-score))
    expected = -np.mean(np.where(truth == 1, np.log(probability), np.log(1 - probability)))
    assert metrics.log_loss(truth, score) == pytest.approx(expected)
