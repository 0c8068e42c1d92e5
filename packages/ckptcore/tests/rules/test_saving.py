"""Save rules: when they are due, how they combine, what they refuse, and that they come back from disk."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptcore.errors import UsageError
from ckptcore.rules import (
    AllOf,
    AnyOf,
    AtEpochs,
    AtFractions,
    AtSteps,
    Best,
    EveryEpochs,
    EveryMinutes,
    EverySteps,
    Final,
    First,
    Not,
    OnException,
    OnSignal,
    Past,
    Progress,
    SaveRule,
    StageEnds,
    metrics_watched,
)

NEVER = Past()


def epoch_end(finished: int, **more: Any) -> Progress:
    return Progress(epoch=finished - 1, epoch_end=True, global_step=finished * 10, **more)


def step(number: int, **more: Any) -> Progress:
    return Progress(epoch=0, epoch_end=False, global_step=number, **more)


def epochs_due(rule: SaveRule, total: int, first: int = 1) -> list[int]:
    ends = (epoch_end(finished, total_epochs=total) for finished in range(first, total + 1))
    return [progress.epochs_finished for progress in ends if rule.due(progress, NEVER)]


def steps_due(rule: SaveRule, steps: list[int], last: int | None = None) -> list[int]:
    """The steps that are saved when each save becomes the past of the next call."""
    saved = []
    for number in steps:
        if rule.due(step(number), Past(last_step=last)):
            saved.append(number)
            last = number
    return saved


def test_epochs_are_counted_when_they_end() -> None:
    assert epoch_end(5).epochs_finished == 5
    assert Progress(epoch=5, epoch_end=False, global_step=51).epochs_finished == 5


def test_every_five_epochs_is_due_at_5_10_15_20() -> None:
    assert epochs_due(EveryEpochs(5), 20) == [5, 10, 15, 20]


@pytest.mark.parametrize("rule", [EveryEpochs(1), AtEpochs((5,)), AtFractions((1.0,))])
def test_epoch_rules_are_not_due_within_an_epoch(rule: SaveRule) -> None:
    assert not rule.due(Progress(epoch=5, epoch_end=False, global_step=55, total_epochs=5), NEVER)


def test_every_steps_is_due_at_multiples() -> None:
    assert steps_due(EverySteps(10), list(range(1, 41))) == [10, 20, 30, 40]


def test_a_step_that_is_jumped_over_does_not_lose_the_save() -> None:
    assert steps_due(EverySteps(10), [4, 8, 12, 16, 20, 24, 28, 32]) == [12, 20, 32]
    assert steps_due(EverySteps(10), [7, 49, 50]) == [49, 50]


@given(st.sets(st.integers(1, 500), min_size=1), st.integers(1, 60), st.integers(0, 40))
def test_a_resumed_run_saves_at_the_same_steps_as_one_that_never_stopped(
    reached: set[int], n: int, cut: int
) -> None:
    steps = sorted(reached)
    straight = steps_due(EverySteps(n), steps)
    before = steps_due(EverySteps(n), steps[:cut])
    last = before[-1] if before else None
    again = [number for number in steps if number > (last or 0)]
    assert before + steps_due(EverySteps(n), again, last) == straight


def test_a_run_that_went_back_saves_at_true_multiples_until_it_is_where_it_was() -> None:
    past = Past(last_step=100)
    assert [number for number in range(31, 100) if EverySteps(20).due(step(number), past)] == [40, 60, 80]
    assert [number for number in range(31, 100) if AtSteps((35, 90)).due(step(number), past)] == [35, 90]


def test_every_minutes_counts_from_the_last_save_of_the_role() -> None:
    rule = EveryMinutes(10)
    assert not rule.due(step(1, seconds=599.0), NEVER)
    assert rule.due(step(1, seconds=600.0), NEVER)
    assert not rule.due(step(1, seconds=1100.0), Past(last_seconds=600.0))
    assert rule.due(step(1, seconds=1200.0), Past(last_seconds=600.0))


def test_every_minutes_goes_on_over_a_restart() -> None:
    saved_before_the_restart = Past(last_seconds=-540.0)
    assert EveryMinutes(10).due(step(1, seconds=60.0), saved_before_the_restart)
    assert not EveryMinutes(10).due(step(1, seconds=59.0), saved_before_the_restart)


def test_every_minutes_is_not_silenced_by_the_clock_of_another_session() -> None:
    assert EveryMinutes(10).due(step(1, seconds=600.0), Past(last_seconds=1e9))


@pytest.mark.parametrize(
    ("total", "expected"),
    [(50, [10, 20, 30, 40, 50]), (7, [2, 3, 5, 6, 7]), (5, [1, 2, 3, 4, 5]), (3, [1, 2, 3]), (1, [1])],
)
def test_fifths_of_a_run_fall_on_epochs_rounded_up(total: int, expected: list[int]) -> None:
    assert epochs_due(AtFractions((0.2, 0.4, 0.6, 0.8, 1.0)), total) == expected


def test_fractions_follow_an_extended_total() -> None:
    rule = AtFractions((0.2, 0.4, 0.6, 0.8, 1.0))
    assert epochs_due(rule, 100, first=51) == [60, 80, 100]


def test_fractions_are_not_due_while_the_total_is_unknown() -> None:
    assert not AtFractions((1.0,)).due(epoch_end(50), NEVER)


@given(st.integers(1, 2000), st.integers(1, 100))
def test_equal_parts_are_exact_distinct_and_end_with_the_last_epoch(total: int, parts: int) -> None:
    rule = AtFractions(tuple(part / parts for part in range(1, parts + 1)))
    assert list(rule.epochs(total)) == sorted({-(-part * total // parts) for part in range(1, parts + 1)})
    assert rule.epochs(total)[-1] == total
    assert len(rule.epochs(total)) == min(parts, total)


def test_fractions_are_decimals_as_they_were_written() -> None:
    assert math.ceil(0.55 * 100) == 56
    assert AtFractions((0.55,)).epochs(100) == (55,)


def test_milestone_steps_are_due_at_the_first_call_at_or_after_each() -> None:
    assert steps_due(AtSteps((10, 25, 26)), [0, 8, 16, 24, 32, 40]) == [16, 32]
    assert steps_due(AtSteps((0,)), [0, 8]) == [0]


def test_milestone_epochs_are_counted_from_one() -> None:
    assert epochs_due(AtEpochs((40, 5, 12)), 40) == [5, 12, 40]


def test_events_are_due_when_they_happen_and_only_then() -> None:
    events: dict[str, SaveRule] = {
        "stage_end": StageEnds(),
        "final": Final(),
        "signal": OnSignal(),
        "exception": OnException(),
    }
    for event, rule in events.items():
        for other in events:
            assert rule.due(step(1, **{other: True}), NEVER) is (other == event)


def test_first_is_due_until_the_role_has_a_file() -> None:
    assert First().due(step(1), NEVER)
    assert not First().due(step(2), Past(last_epochs_finished=0, last_step=1))


@pytest.mark.parametrize(
    ("mode", "value", "best", "due"),
    [
        ("max", 0.9, None, True),
        ("max", 0.9, 0.8, True),
        ("max", 0.8, 0.8, False),
        ("max", 0.7, 0.8, False),
        ("min", 0.7, 0.8, True),
        ("min", 0.8, 0.8, False),
        ("max", math.nan, None, False),
        ("max", math.inf, 0.8, False),
        ("min", -math.inf, 0.8, False),
        ("min", math.nan, 0.8, False),
        ("max", 0.1, math.nan, True),
        ("max", 0.1, math.inf, True),
        ("max", 10**400, 0.5, False),
        ("max", "0.9", 0.5, False),
    ],
)
def test_best_counts_finite_improvements_only(mode: Any, value: Any, best: float | None, due: bool) -> None:
    past = Past(best={} if best is None else {"m": best})
    assert Best("m", mode).due(epoch_end(1, metrics={"m": value}), past) is due


def test_best_is_not_due_without_its_metric_nor_after_an_exception() -> None:
    assert not Best("val_auc", "max").due(epoch_end(1, metrics={"val_loss": 0.1}), NEVER)
    assert not Best("val_auc", "max").due(epoch_end(1, metrics={"val_auc": 0.9}, exception=True), NEVER)


def test_best_asks_for_more_than_min_delta() -> None:
    rule = Best("m", "min", min_delta=0.5)
    past = Past(best={"m": 4.0})
    assert not rule.due(epoch_end(1, metrics={"m": 3.5}), past)
    assert rule.due(epoch_end(1, metrics={"m": 3.25}), past)


def test_any_all_and_not_combine() -> None:
    either = EveryEpochs(5) | StageEnds()
    assert [either.due(epoch_end(n, stage_end=n == 7), NEVER) for n in (5, 6, 7)] == [True, False, True]
    both = EveryEpochs(1) & Best("m", "max")
    assert both.due(epoch_end(1, metrics={"m": 1.0}), NEVER)
    assert not both.due(step(1, metrics={"m": 1.0}), NEVER)
    unless = EverySteps(10) & ~OnException()
    assert unless.due(step(10), NEVER)
    assert not unless.due(step(10, exception=True), NEVER)


def test_a_combination_feeds_the_role_of_its_left_operand_unless_told_otherwise() -> None:
    assert (StageEnds() | EveryEpochs(5) | Final()).role == "stage"
    assert (EverySteps(5) & EveryEpochs(5)).role == "latest"
    assert (~Final()).role == "final"
    assert (StageEnds() | Final()).as_role("best").role == "best"
    assert EveryEpochs(1).as_role("latest") == EveryEpochs(1, role="latest")


def test_chains_of_one_operator_are_flat() -> None:
    chain = StageEnds() | EveryEpochs(5) | Final()
    assert isinstance(chain, AnyOf)
    assert chain.rules == (StageEnds(), EveryEpochs(5), Final())
    mixed = (StageEnds() | Final()) & EveryEpochs(5)
    assert isinstance(mixed, AllOf)
    assert len(mixed.rules) == 2


def test_watched_metrics_are_found_inside_combinations() -> None:
    rules = [EveryEpochs(1) & Best("val_auc", "max"), ~Best("val_loss", "min") | Final()]
    assert metrics_watched(rules) == {"val_auc": "max", "val_loss": "min"}


def test_one_metric_in_both_directions_is_refused() -> None:
    with pytest.raises(UsageError, match=r"loss.*got both"):
        metrics_watched([Best("loss", "min"), Best("loss", "max")])


REFUSED: list[tuple[type[Any], dict[str, Any]]] = [
    (EveryEpochs, {"n": 0}),
    (EveryEpochs, {"n": 2.0}),
    (EveryEpochs, {"n": True}),
    (EverySteps, {"n": -1}),
    (EverySteps, {"n": 10**40}),
    (EveryMinutes, {"m": 0}),
    (EveryMinutes, {"m": math.nan}),
    (EveryMinutes, {"m": math.inf}),
    (EveryMinutes, {"m": 10**400}),
    (EveryMinutes, {"m": "10"}),
    (AtFractions, {"fractions": ()}),
    (AtFractions, {"fractions": 0.5}),
    (AtFractions, {"fractions": (20, 40)}),
    (AtFractions, {"fractions": (0.0, 1.0)}),
    (AtFractions, {"fractions": (math.nan,)}),
    (AtSteps, {"steps": (-1,)}),
    (AtSteps, {"steps": "10"}),
    (AtEpochs, {"epochs": (0,)}),
    (Best, {"metric": "", "mode": "max"}),
    (Best, {"metric": "m", "mode": "maximum"}),
    (Best, {"metric": "m", "mode": ["max"]}),
    (Best, {"metric": "m", "mode": "max", "min_delta": -0.1}),
    (Best, {"metric": "m", "mode": "max", "min_delta": math.nan}),
    (Final, {"role": "Final Model"}),
    (First, {"role": ""}),
    (StageEnds, {"role": 3}),
    (AnyOf, {"rules": ()}),
    (AllOf, {"rules": (Final(), "final")}),
    (Not, {"rule": "final"}),
    (AnyOf, {"rules": (Final(),), "role": "../up"}),
]


@pytest.mark.parametrize(("kind", "arguments"), REFUSED)
def test_arguments_without_sense_are_refused_with_what_was_expected(kind: type[Any], arguments: Any) -> None:
    with pytest.raises(UsageError, match=rf"(?s){kind.__name__}: expected .*, got .*\. .+\.$"):
        kind(**arguments)


def test_mode_must_be_said() -> None:
    with pytest.raises(TypeError, match="mode"):
        Best("val_auc")  # type: ignore[call-arg]


def test_combining_with_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="save rule on each side, got 5"):
        EveryEpochs(5) | 5  # type: ignore[operator]


EVERY_KIND: list[tuple[SaveRule, str]] = [
    (EveryEpochs(), "every epoch"),
    (EveryEpochs(5, role="best"), "every 5 epochs"),
    (EverySteps(100), "every 100 steps"),
    (EveryMinutes(7.5), "every 7.5 minutes"),
    (AtFractions((0.2, 0.55, 1)), "at 20, 55, 100 % of the epochs"),
    (AtSteps((20, 10, 20)), "at steps 10, 20"),
    (AtEpochs((5,)), "after epoch 5"),
    (StageEnds(), "at the end of each stage"),
    (Best("val_auc", "max"), "when val_auc is the highest so far"),
    (Best("loss", "min", min_delta=0.01), "when loss is the lowest so far, by more than 0.01"),
    (Final(), "at the end of training"),
    (OnSignal(), "on a signal"),
    (OnException(), "on an exception"),
    (First(), "at the first step"),
    (EveryEpochs(5) | Final(), "every 5 epochs, or at the end of training"),
    (
        (EveryEpochs(5) | Final()) & ~OnSignal(),
        "(every 5 epochs, or at the end of training) and not (on a signal)",
    ),
]


@pytest.mark.parametrize(("rule", "words"), EVERY_KIND)
def test_every_rule_describes_itself_in_one_line(rule: SaveRule, words: str) -> None:
    assert rule.describe() == words


@pytest.mark.parametrize("rule", [rule for rule, _ in EVERY_KIND])
def test_every_rule_comes_back_from_json_as_it_was(rule: SaveRule) -> None:
    assert SaveRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_an_argument_with_a_default_may_be_absent_from_a_written_policy() -> None:
    assert SaveRule.from_dict({"kind": "EveryEpochs", "n": 5}) == EveryEpochs(5)


def nested(depth: int) -> dict[str, object]:
    return {"kind": "Not", "rule": nested(depth - 1)} if depth else {"kind": "Final"}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "EveryEpochs",
        {},
        {"kind": 3},
        {"kind": "LastK", "k": 3},
        {"kind": "__import__", "name": "os"},
        {"kind": "EverySteps"},
        {"kind": "EverySteps", "n": None},
        {"kind": "EverySteps", "n": {"kind": "Final"}},
        {"kind": "EverySteps", "n": 5, "colour": "red"},
        {"kind": "AnyOf", "rules": [[{"kind": "Final"}]]},
        {"kind": "AnyOf", "rules": {"kind": "Final", "role": []}},
        nested(100),
    ],
)
def test_a_policy_that_is_no_rule_is_refused(data: object) -> None:
    with pytest.raises(UsageError, match="expected"):
        SaveRule.from_dict(data)
