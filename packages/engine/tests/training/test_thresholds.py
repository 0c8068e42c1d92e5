"""The best threshold, against trying every one."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from radfuse.engine.training.thresholds import best_threshold, decide

ROUND = st.integers(0, 10).map(lambda n: n / 10)
SAMPLES = st.lists(
    st.tuples(ROUND | st.floats(0, 1), st.sampled_from([0.0, 1.0, math.nan])), min_size=1, max_size=30
)


def brute_force(scores, labels):
    """The best F1 over every way of drawing a line between scores."""
    known = ~np.isnan(labels)
    lines = [-1.0, *scores[known], 2.0]
    found = [decide(scores, labels, line).f1 for line in lines]
    return max(value for value in found if not math.isnan(value))


@given(SAMPLES)
def test_row_1_5_no_line_gives_a_better_f1_than_the_best_threshold(samples):
    scores, labels = np.array(samples).T
    threshold = best_threshold(scores, labels)
    known = labels[~np.isnan(labels)]
    if len(set(known)) < 2:
        assert threshold == 0.5
    else:
        assert decide(scores, labels, threshold).f1 == brute_force(scores, labels)
        assert 0.0 <= threshold <= 1.0


def test_row_1_5_decisions_by_hand():
    scores = np.array([0.9, 0.8, 0.4, 0.3, 0.6, 0.5])
    labels = np.array([1.0, 1.0, 1.0, 0.0, 0.0, math.nan])
    found = decide(scores, labels, 0.5)
    assert found.sensitivity == 2 / 3 and found.specificity == 1 / 2 and found.accuracy == 3 / 5
    assert found.f1 == 2 * 2 / (2 * 2 + 1 + 1)
    assert math.isclose(found.separation, 0.7 - 0.45)


def test_row_1_5_the_threshold_lies_midway_between_two_scores():
    assert best_threshold(np.array([0.2, 0.4, 0.8]), np.array([0.0, 0.0, 1.0])) == 0.6000000000000001


def test_neighbouring_floats_are_told_apart():
    low = 0.5
    high = math.nextafter(low, 1)
    threshold = best_threshold(np.array([low, high]), np.array([0.0, 1.0]))
    assert decide(np.array([low, high]), np.array([0.0, 1.0]), threshold).f1 == 1.0
