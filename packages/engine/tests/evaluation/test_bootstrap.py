from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from radfuse.engine import weighted
from radfuse.engine.bootstrap import Bootstrap

AUROC = 0.85
SHIFT = norm.ppf(AUROC) * np.sqrt(2)


def names(count: int) -> list[str]:
    return [f"p{number:012x}" for number in range(count)]


def scored(random: np.random.Generator, patients: int) -> tuple[Any, Any]:
    truth = (random.random(patients) < 0.3).astype(float)
    return truth, truth * SHIFT + random.normal(size=patients)


def test_the_interval_holds_the_figure_of_the_rows_at_hand() -> None:
    values = np.random.default_rng(0).normal(size=50)
    found = Bootstrap(names(50)).interval(weighted.mean(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = Bootstrap(names(400), 2000).interval(weighted.mean(values))
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_images_of_one_patient_are_drawn_together() -> None:
    """Ten copies of each image tell nothing new: the interval is that of the patients."""
    values = np.random.default_rng(2).normal(size=40)
    once = Bootstrap(names(40)).interval(weighted.mean(values))
    often = Bootstrap(list(np.repeat(names(40), 10))).interval(weighted.mean(values.repeat(10)))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_order_of_the_rows_changes_nothing() -> None:
    values, order = np.random.default_rng(3).normal(size=30), np.random.default_rng(4).permutation(30)
    straight = Bootstrap(names(30)).interval(weighted.mean(values))
    shuffled = Bootstrap(list(np.array(names(30))[order])).interval(weighted.mean(values[order]))
    assert (shuffled.low, shuffled.high) == pytest.approx((straight.low, straight.high))


def test_the_same_seed_draws_the_same() -> None:
    statistic = weighted.mean(np.arange(20.0))
    assert Bootstrap(names(20)).interval(statistic) == Bootstrap(names(20)).interval(statistic)
    assert Bootstrap(names(20), seed=1).interval(statistic) != Bootstrap(names(20)).interval(statistic)


def test_a_paired_difference_is_narrower_than_two_figures_apart() -> None:
    random = np.random.default_rng(5)
    first = random.normal(size=200)
    second = first + 0.1 + 0.01 * random.normal(size=200)
    bootstrap = Bootstrap(names(200))
    found = bootstrap.interval(weighted.difference(weighted.mean(second), weighted.mean(first)))
    assert 0.09 < found.low < found.high < 0.11
    alone = bootstrap.interval(weighted.mean(first))
    assert found.high - found.low < (alone.high - alone.low) / 20


def test_a_figure_that_resamples_hardly_define_has_no_interval() -> None:
    truth = np.zeros(200)
    truth[0] = 1
    some = weighted.mean_of([weighted.auroc(one, np.arange(200.0)) for one in two_positives(200, 5)])
    found = Bootstrap(names(200)).interval(some)
    assert math.isfinite(found.value)
    assert math.isnan(found.low), "all five labels are defined in 48 % of the resamples"
    never = Bootstrap(names(200)).interval(weighted.auroc(np.zeros(200), np.arange(200.0)))
    assert math.isnan(never.value) and math.isnan(never.low)


def two_positives(patients: int, labels: int) -> Any:
    """(labels, patients), each label with two positives of its own."""
    truth = np.zeros((labels, patients))
    truth[np.arange(2 * labels) // 2, np.arange(2 * labels)] = 1
    return truth


@pytest.mark.parametrize("method", ["percentile", "bca", "centred"])
@pytest.mark.parametrize("patients", [20, 900])
def test_a_figure_that_hangs_on_one_patient_has_no_interval(patients: int, method: Any) -> None:
    truth, score = np.zeros(patients), np.random.default_rng(9).random(patients)
    truth[5] = 1
    bootstrap = Bootstrap(names(patients))
    for figure in (weighted.auroc(truth, score), weighted.auroc(1 - truth, score)):
        found = bootstrap.interval(figure, method)
        assert math.isfinite(found.value)
        assert math.isnan(found.low) and math.isnan(found.high)


def test_positives_side_by_side_are_not_taken_for_one_patient() -> None:
    truth, score = np.zeros(900), np.random.default_rng(9).random(900)
    truth[[8, 9]] = 1
    found = Bootstrap(names(900)).interval(weighted.auroc(truth, score))
    assert found.low < found.value < found.high


@pytest.mark.parametrize("patients", [1, 4])
def test_fewer_than_five_patients_have_no_interval(patients: int) -> None:
    values = np.arange(10.0 * patients)
    found = Bootstrap(names(patients) * 10).interval(weighted.mean(values))
    assert found.as_dict() == {"value": values.mean(), "low": None, "high": None}


def test_resamples_that_are_all_alike_give_no_interval() -> None:
    found = Bootstrap(names(30)).interval(weighted.mean([0.054] * 30))
    assert found.as_dict() == {"value": pytest.approx(0.054), "low": None, "high": None}


def test_the_mean_over_labels_is_of_the_same_labels_in_every_resample() -> None:
    """A rare label that is told badly and a common one that is told well: never the latter alone."""
    truth = np.zeros((2, 40))
    truth[0, :3], truth[1, ::2] = 1, 1
    figures = [weighted.auroc(truth[0], -truth[0]), weighted.auroc(truth[1], truth[1])]
    bootstrap = Bootstrap(names(40))
    rare, both = (bootstrap.draws(one) for one in (figures[0], weighted.mean_of(figures)))
    assert np.isnan(rare).any()
    assert (np.isnan(both) == np.isnan(rare)).all()
    assert both[np.isfinite(both)] == pytest.approx(0.5)


def test_nobody_at_all_gives_nothing() -> None:
    found = Bootstrap([]).interval(weighted.mean([]))
    assert math.isnan(found.value)
    assert found.as_dict() == {"value": None, "low": None, "high": None}


def test_a_perfect_ranking_has_no_interval() -> None:
    """Resamples of patients who are all ranked rightly cannot tell of one who is not."""
    truth = np.array([0, 1] * 10)
    found = Bootstrap(names(20)).interval(weighted.auroc(truth, truth.astype(float)))
    assert found.as_dict() == {"value": 1.0, "low": None, "high": None}


def test_a_centred_interval_holds_a_figure_that_resampling_shifts() -> None:
    random = np.random.default_rng(6)
    probability = random.random(150)
    truth = (random.random(150) < probability).astype(float)
    statistic = weighted.expected_calibration_error(truth, probability)
    bootstrap = Bootstrap(names(150))
    shifted = bootstrap.interval(statistic, "percentile")
    assert np.median(bootstrap.draws(statistic)) > shifted.value
    centred = bootstrap.interval(statistic, "centred")
    assert centred.low < centred.value < centred.high
    assert centred.high - centred.low == pytest.approx(shifted.high - shifted.low)


def test_a_thousand_resamples_of_a_thousand_patients_and_14_labels_take_seconds() -> None:
    random = np.random.default_rng(7)
    truth, score = (random.random((1000, 14)) < 0.1).astype(float), random.normal(size=(1000, 14))
    began = time.process_time()
    bootstrap = Bootstrap(names(1000), 1000)
    for label in range(14):
        bootstrap.interval(weighted.auroc(truth[:, label], score[:, label]))
    assert time.process_time() - began < 10


def test_memory_is_bounded_by_taking_some_resamples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(8).normal(size=60)
    whole = Bootstrap(names(60)).interval(weighted.mean(values))
    monkeypatch.setattr("radfuse.engine.bootstrap._CHUNK_BYTES", 60 * 8 * 7)
    parts = Bootstrap(names(60)).interval(weighted.mean(values))
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def coverage(runs: int, patients: int) -> float:
    """How often the interval of the AUROC holds the true one."""
    hits = 0
    for run in range(runs):
        truth, score = scored(np.random.default_rng(run), patients)
        found = Bootstrap(names(patients), 500, seed=run).interval(weighted.auroc(truth, score))
        hits += found.low <= AUROC <= found.high
    return hits / runs


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    assert 0.88 <= coverage(80, 60) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("patients", [45, 150, 400])
def test_intervals_hold_the_truth_in_95_of_100_cohorts(patients: int) -> None:
    assert coverage(1000, patients) == pytest.approx(0.955, abs=0.025)
