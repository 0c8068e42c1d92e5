"""Learning rates as functions of the step."""

import pytest

from radfuse.engine.errors import SettingsError
from radfuse.engine.settings import Stage
from radfuse.engine.training.schedules import factor
from radfuse.engine.training.stages import Plan

STAGES = (
    Stage(name="head", epochs=2, layers=("head",), learning_rate=1.0),
    Stage(name="all", epochs=3, learning_rate=0.1, learning_rates={"head": 0.2}),
)


def plan(schedule="constant"):
    return Plan(STAGES, ("stem", "body", "head"), schedule, steps_per_epoch=4)


def test_one_cycle_climbs_to_the_highest_rate_and_ends_near_nothing():
    rates = [factor("one_cycle", step, 100) for step in range(100)]
    top = rates.index(max(rates))
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == pytest.approx(1.0, abs=1e-2)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert 25 <= top <= 35 and rates[-1] == pytest.approx(1e-4)


def test_a_cosine_falls_and_a_constant_stays():
    assert factor("cosine", 0, 10) == 1.0 and factor("cosine", 9, 10) == pytest.approx(1e-4)
    assert [factor("constant", step, 10) for step in (0, 5, 9)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_a_stage_of_a_single_step_has_a_rate(schedule):
    assert 0 < factor(schedule, 0, 1) <= 1


def test_rates_follow_stage_and_layer():
    rates = plan()
    assert [rates.learning_rate(7, name) for name in ("stem", "body", "head")] == [0.0, 0.0, 1.0]
    assert [rates.learning_rate(8, name) for name in ("stem", "body", "head")] == [0.1, 0.1, 0.2]


def test_epochs_belong_to_their_stages_and_the_last_goes_on():
    found = plan()
    assert [found.at(epoch)[1].name for epoch in range(6)] == ["head", "head", "all", "all", "all", "all"]
    assert [epoch for epoch in range(5) if found.ends_with(epoch)] == [1, 4]


def test_every_stage_has_a_schedule_of_its_own():
    rates = plan("one_cycle")
    assert rates.learning_rate(8, "body") == pytest.approx(0.1 / 25)


def test_layers_that_the_network_does_not_have_are_named_with_the_nearest():
    stage = Stage(name="top", epochs=1, layers=("haed",), learning_rate=1.0)
    with pytest.raises(
        SettingsError, match=r"'top' \(number 1\) names the layers 'haed'.*did you mean 'head'"
    ):
        Plan((stage,), ("stem", "head"), "constant", 1)
