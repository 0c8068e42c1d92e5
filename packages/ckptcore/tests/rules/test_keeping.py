"""Keep rules: what stays and why, the byte budget, pins, and that the rules survive being written to disk."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ckptcore.errors import UsageError
from ckptcore.rules import (
    BestK,
    ByteBudget,
    Entry,
    EveryNEpochs,
    EveryNSteps,
    KeepAll,
    KeepRule,
    LastK,
    NewestWithin,
    Nothing,
    UnionOf,
    earliest_first,
    plan,
)


def entry(name: str, epochs: int | None = None, step: int | None = None, **more: Any) -> Entry:
    """An entry of 100 bytes; created and metrics as given."""
    return Entry(
        name, epochs, step, more.pop("created", 0.0), more.pop("metrics", {}), more.pop("size", 100), **more
    )


def run(count: int, **more: Any) -> list[Entry]:
    return [entry(f"e{epoch}", epoch, epoch * 10, **more) for epoch in range(1, count + 1)]


def scored(*values: float) -> list[Entry]:
    return [entry(f"e{place}", place, metrics={"m": value}) for place, value in enumerate(values, start=1)]


def kept(rule: KeepRule, entries: list[Entry]) -> list[str]:
    return [decision.name for decision in plan(entries, rule) if decision.keep]


def test_the_last_three_stay() -> None:
    assert kept(LastK(3), run(5)) == ["e3", "e4", "e5"]
    assert LastK(3).keeps(run(5)) == {"e3": "last 3", "e4": "last 3", "e5": "last 3"}


def test_last_goes_by_epochs_then_step_then_creation_then_name() -> None:
    ordered = [
        entry("unknown"),
        entry("step alone", None, 5),
        entry("zeroth", 0, 1),
        entry("epoch alone", 3),
        entry("zero", 3, 0),
        entry("a", 3, 7, created=1.0),
        entry("b", 3, 7, created=1.0),
        entry("_ later", 3, 7, created=2.0),
        entry("_ epoch", 4, 1, created=0.0),
    ]
    assert earliest_first(reversed(ordered)) == ordered


def test_the_best_stay_and_nan_or_infinite_ones_never_count() -> None:
    entries = scored(0.5, math.nan, 0.9, math.inf, -math.inf, 0.7)
    assert kept(BestK(2, "m", "max"), entries) == ["e3", "e6"]
    assert kept(BestK(2, "m", "min"), entries) == ["e1", "e6"]
    assert kept(BestK(9, "m", "max"), entries) == ["e1", "e3", "e6"]


def test_one_nan_does_not_hide_the_best() -> None:
    assert kept(BestK(1, "m", "max"), scored(0.9, math.nan, 0.5, 0.4)) == ["e1"]


def test_ties_keep_the_earlier() -> None:
    assert kept(BestK(1, "m", "max"), scored(0.1, 0.9, 0.9, 0.9)) == ["e2"]
    assert kept(BestK(2, "m", "min"), list(reversed(scored(0.0, -0.0, 0.0)))) == ["e2", "e1"]


def test_every_tenth_epoch_stays_and_not_the_steps_within_the_next() -> None:
    entries = [
        *run(21),
        entry("within", 10, 105),
        entry("linked", 10, 100),
        entry("start", 0, 0),
        entry("foreign"),
    ]
    assert kept(EveryNEpochs(10), entries) == ["e10", "e20", "linked"]


def test_every_n_steps_keeps_the_first_at_or_after_each_multiple() -> None:
    entries = [entry(f"s{step}", 0, step) for step in (90, 100, 150, 210, 280, 500)]
    assert kept(EveryNSteps(100), entries) == ["s100", "s210", "s500"]
    assert kept(EveryNSteps(100), [entry("none"), entry("zero", 0, 0)]) == []


def test_newest_within_counts_back_from_the_newest_entry() -> None:
    entries = [entry(f"h{hour}", hour, created=3600.0 * hour) for hour in (0, 10, 23, 24, 30)]
    assert kept(NewestWithin(hours=6, minutes=60), entries) == ["h23", "h24", "h30"]
    assert kept(NewestWithin(days=1), []) == []


def test_everything_and_nothing() -> None:
    assert kept(KeepAll(), run(3)) == ["e1", "e2", "e3"]
    assert kept(Nothing(), run(3)) == []


def test_a_union_keeps_what_either_keeps_and_says_both_reasons() -> None:
    entries = scored(0.9, 0.1, 0.2, 0.95)
    rule = LastK(2) | BestK(2, "m", "max")
    assert rule.keeps(entries) == {
        "e1": "best 2 by m (max)",
        "e3": "last 2",
        "e4": "last 2, best 2 by m (max)",
    }


def test_unions_are_flat() -> None:
    assert LastK(1) | BestK(1, "m", "min") | KeepAll() == UnionOf((LastK(1), BestK(1, "m", "min"), KeepAll()))


def test_pinned_entries_stay_with_the_reason_of_the_pin() -> None:
    entries = [entry("v1", 1, pins=("version", "pinned by hand")), entry("e2", 2), entry("e3", 3)]
    decisions = plan(entries, LastK(1))
    assert [(decision.name, decision.keep, decision.reason) for decision in decisions] == [
        ("v1", True, "version, pinned by hand"),
        ("e2", False, "no rule keeps it (last one)"),
        ("e3", True, "last one"),
    ]


def test_a_plan_has_the_order_and_sizes_of_the_entries() -> None:
    entries = [entry("b", 2, size=7), entry("a", 1, size=5)]
    assert [(decision.name, decision.size) for decision in plan(entries, KeepAll())] == [("b", 7), ("a", 5)]


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="'a' twice"):
        plan([entry("a", 1), entry("a", 2)], KeepAll())


def test_a_budget_drops_the_oldest_first_and_says_so() -> None:
    entries = run(5)
    rule = ByteBudget(250, LastK(4))
    assert kept(rule, entries) == ["e4", "e5"]
    reasons = {decision.name: decision.reason for decision in plan(entries, rule)}
    assert reasons["e1"] == "no rule keeps it (last 4, within 250 B)"
    assert reasons["e3"] == "over the budget of 250 B (last 4)"
    assert reasons["e5"] == "last 4"


def test_a_budget_that_is_met_exactly_drops_nothing() -> None:
    assert kept(ByteBudget(500, KeepAll()), run(5)) == ["e1", "e2", "e3", "e4", "e5"]


def test_pinned_bytes_count_and_are_never_dropped() -> None:
    entries = [entry("best", 1, pins=("best",), size=300), *run(3)]
    assert kept(ByteBudget(400, KeepAll()), entries) == ["best", "e3"]
    assert kept(ByteBudget(10, KeepAll()), entries) == ["best"]


def test_a_budget_smaller_than_one_file_leaves_the_newest() -> None:
    assert kept(ByteBudget(10, KeepAll()), run(3)) == ["e3"]


def test_what_a_budget_drops_another_rule_may_keep() -> None:
    rule = ByteBudget(100, KeepAll()) | EveryNEpochs(2)
    assert kept(rule, run(5)) == ["e2", "e4", "e5"]


def test_rules_may_be_asked_about_an_empty_folder() -> None:
    for rule, _ in EVERY_KIND:
        assert plan([], rule) == []


def test_a_plan_does_not_depend_on_the_order_in_which_files_are_listed() -> None:
    entries = scored(0.1, 0.9, 0.9, math.nan, 0.3)
    for rule, _ in EVERY_KIND:
        assert set(kept(rule, entries)) == set(kept(rule, entries[::-1]))


REFUSED: list[tuple[type[Any], dict[str, Any]]] = [
    (LastK, {"k": 0}),
    (LastK, {"k": 1.5}),
    (BestK, {"k": 1, "metric": "m", "mode": "best"}),
    (BestK, {"k": 1, "metric": None, "mode": "max"}),
    (EveryNEpochs, {"n": 0}),
    (EveryNSteps, {"n": False}),
    (NewestWithin, {}),
    (NewestWithin, {"hours": -1}),
    (ByteBudget, {"max_bytes": 0, "rule": KeepAll()}),
    (ByteBudget, {"max_bytes": 10, "rule": "last"}),
    (UnionOf, {"rules": ()}),
    (UnionOf, {"rules": (LastK(1), 3)}),
]


@pytest.mark.parametrize(("kind", "arguments"), REFUSED)
def test_arguments_without_sense_are_refused_with_what_was_expected(kind: type[Any], arguments: Any) -> None:
    with pytest.raises(UsageError, match=rf"{kind.__name__}: expected .*, got .*\. .+\.$"):
        kind(**arguments)


EVERY_KIND: list[tuple[KeepRule, str]] = [
    (LastK(1), "last one"),
    (LastK(3), "last 3"),
    (BestK(1, "loss", "min"), "best by loss (min)"),
    (BestK(2, "val_auc", "max"), "best 2 by val_auc (max)"),
    (EveryNEpochs(1), "every epoch"),
    (EveryNEpochs(10), "every 10th epoch"),
    (EveryNEpochs(12), "every 12th epoch"),
    (EveryNSteps(22), "every 22nd step"),
    (NewestWithin(days=1, minutes=30), "newest within 1 d 30 min"),
    (KeepAll(), "everything"),
    (Nothing(), "only what is pinned"),
    (LastK(3) | BestK(1, "m", "max"), "last 3, best by m (max)"),
    (ByteBudget(20_000_000_000, LastK(3) | KeepAll()), "last 3, everything, within 20.0 GB"),
]


@pytest.mark.parametrize(("rule", "words"), EVERY_KIND)
def test_every_rule_describes_itself_in_one_line(rule: KeepRule, words: str) -> None:
    assert rule.describe() == words


@pytest.mark.parametrize("rule", [rule for rule, _ in EVERY_KIND])
def test_every_rule_comes_back_from_json_as_it_was(rule: KeepRule) -> None:
    assert KeepRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_a_save_rule_is_no_keep_rule() -> None:
    with pytest.raises(UsageError, match="expected one of the rules"):
        KeepRule.from_dict({"kind": "EveryEpochs", "n": 5})


def test_budgets_within_budgets_are_decided_in_linear_time() -> None:
    rule: KeepRule = KeepAll()
    for _ in range(30):
        rule = ByteBudget(200, rule)
    assert kept(rule, run(4)) == ["e3", "e4"]


def test_a_clock_that_was_ahead_for_one_save_makes_nothing_later_go() -> None:
    times = [0.0, 86_400.0 * 3650, 100.0, 200.0]
    entries = [entry(f"e{epoch}", epoch, created=time) for epoch, time in enumerate(times, start=1)]
    assert kept(NewestWithin(minutes=2), entries) == ["e2", "e3", "e4"]
