"""One score a patient, against a hand-made table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfuse.engine.training.pooling import pool_labels, pool_scores

PATIENTS = ["b", "a", "b", "a", "c"]
SCORES = np.array([[0.5, 0.1], [0.2, 0.0], [0.7, 0.3], [0.4, 1.0], [0.9, 0.25]])
BY_HAND = {
    "mean": [[0.3, 0.5], [0.6, 0.2], [0.9, 0.25]],
    "max": [[0.4, 1.0], [0.7, 0.3], [0.9, 0.25]],
    "noisy_or": [[1 - 0.8 * 0.6, 1.0], [1 - 0.5 * 0.3, 1 - 0.9 * 0.7], [0.9, 0.25]],
}


@pytest.mark.parametrize("method", list(BY_HAND))
def test_row_1_6_scores_become_one_a_patient(method):
    names, pooled = pool_scores(SCORES, PATIENTS, method)
    assert names == ["a", "b", "c"]
    assert np.allclose(pooled, BY_HAND[method], atol=1e-12)


def test_row_1_6_a_finding_in_one_image_is_the_patients_and_what_nobody_knows_stays_unknown():
    nan = np.nan
    labels = np.array([[0, nan], [nan, nan], [1, 0], [0, nan], [nan, 1]])
    names, pooled = pool_labels(labels, PATIENTS)
    assert names == ["a", "b", "c"]
    assert np.array_equal(pooled, [[0, nan], [1, 0], [nan, 1]], equal_nan=True)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=20))
def test_mean_is_at_most_max_is_at_most_noisy_or(images):
    patients, scores = [p for p, _ in images], np.array([[s] for _, s in images])
    mean, most, either = (pool_scores(scores, patients, how)[1] for how in ("mean", "max", "noisy_or"))
    assert np.all(mean <= most + 1e-12)
    assert np.all(most <= either + 1e-12)
