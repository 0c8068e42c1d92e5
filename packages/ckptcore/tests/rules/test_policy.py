"""Save and keep decisions against brute-force models, over random runs.

The models share no code with the rules and are written the slow and obvious way. The runs have NaN,
infinities, ties, kills, resumes from older files, extensions and foreign files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from ckptcore.rules import (
    AtFractions,
    Best,
    BestK,
    ByteBudget,
    Entry,
    EveryEpochs,
    EveryNEpochs,
    EveryNSteps,
    KeepRule,
    LastK,
    Nothing,
    Past,
    Progress,
    plan,
)

Direction = Literal["min", "max"]

# Few distinct values, so that ties are common.
scores = st.sampled_from([0.1, 0.5, 0.5, 0.9, -1.0, 0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, -1e308])
modes: st.SearchStrategy[Direction] = st.sampled_from(["min", "max"])


# Keep rules, alone


@dataclass(frozen=True)
class KeepPolicy:
    """One keep policy, as the rules and as the model take it: which parts it has, and their numbers."""

    parts: frozenset[str]
    last: int
    best: int
    mode: Direction
    epochs: int
    steps: int
    budget: int

    def rule(self) -> KeepRule:
        parts: dict[str, KeepRule] = {
            "last": LastK(self.last),
            "best": BestK(self.best, "m", self.mode),
            "epochs": EveryNEpochs(self.epochs),
            "steps": EveryNSteps(self.steps),
        }
        rule: KeepRule = Nothing()
        for name in sorted(self.parts - {"budget"}):
            rule = rule | parts[name]
        return ByteBudget(self.budget, rule) if "budget" in self.parts else rule


@st.composite
def folders(draw: st.DrawFn) -> list[Entry]:
    count = draw(st.integers(0, 12))
    few = st.none() | st.integers(0, 6)
    value = st.sampled_from([0.5, 0.5, 0.9, -1.0, math.nan, math.inf, -math.inf])
    return [
        Entry(
            name=f"file {number}",
            epochs_finished=draw(few),
            global_step=draw(few),
            created=draw(st.sampled_from([0.0, 1.0, 2.5])),
            metrics={"m": draw(value)} if draw(st.integers(0, 3)) else {},
            size=draw(st.integers(1, 5)),
            pins=draw(st.sampled_from([(), (), (), (), (), ("best",), ("foreign",)])),
        )
        for number in draw(st.permutations(range(count)))
    ]


def later(a: Entry, b: Entry) -> bool:
    """Whether a comes after b."""

    def place(entry: Entry) -> tuple[int, int, float, str]:
        numbers = [-1 if number is None else number for number in (entry.epochs_finished, entry.global_step)]
        return numbers[0], numbers[1], entry.created, entry.name

    return place(a) > place(b)


def better(a: Entry, b: Entry, mode: str) -> bool:
    """Whether a ranks before b, of two that were measured."""
    x, y = a.metrics["m"], b.metrics["m"]
    return later(b, a) if x == y else (x > y) == (mode == "max")


def kept_by_brute_force(entries: Sequence[Entry], policy: KeepPolicy) -> set[str]:
    rotating = [e for e in entries if not e.pins]
    measured = [e for e in rotating if "m" in e.metrics and math.isfinite(e.metrics["m"])]
    wanted = []
    for e in rotating:
        is_last = sum(later(other, e) for other in rotating) < policy.last
        is_best = e in measured and sum(better(other, e, policy.mode) for other in measured) < policy.best
        moments = [o.global_step for o in rotating if o.epochs_finished == e.epochs_finished]
        first = None if None in moments else min(m for m in moments if m is not None)
        is_round = bool(e.epochs_finished) and (e.epochs_finished or 0) % policy.epochs == 0
        is_epoch = is_round and e.global_step == first
        bucket = (e.global_step or 0) // policy.steps
        rivals = [o for o in rotating if (o.global_step or 0) // policy.steps == bucket]
        is_step = bucket > 0 and not any((o.global_step or 0) < (e.global_step or 0) for o in rivals)
        reasons = {"last": is_last, "best": is_best, "epochs": is_epoch, "steps": is_step}
        if any(reasons[part] for part in policy.parts - {"budget"}):
            wanted.append(e)
    pinned = [e for e in entries if e.pins]
    loose = list(wanted)
    budget = policy.budget if "budget" in policy.parts else math.inf
    while sum(e.size for e in pinned + loose) > budget and len(loose) > (0 if pinned else 1):
        loose.remove(next(e for e in loose if not any(later(e, other) for other in loose)))
    return {e.name for e in pinned + loose}


policies = st.builds(
    KeepPolicy,
    parts=st.frozensets(st.sampled_from(["last", "best", "epochs", "steps", "budget"])),
    last=st.integers(1, 4),
    best=st.integers(1, 4),
    mode=modes,
    epochs=st.integers(1, 5),
    steps=st.integers(1, 5),
    budget=st.integers(1, 15),
)


@given(folders(), policies)
def test_keep_decisions_equal_a_brute_force_model(entries: list[Entry], policy: KeepPolicy) -> None:
    decisions = plan(entries, policy.rule())
    assert {decision.name for decision in decisions if decision.keep} == kept_by_brute_force(entries, policy)
    assert [decision.name for decision in decisions] == [entry.name for entry in entries]
    assert all(decision.reason for decision in decisions)


@given(folders(), policies)
def test_planning_again_after_deleting_deletes_nothing_more(entries: list[Entry], policy: KeepPolicy) -> None:
    decisions = plan(entries, policy.rule())
    left = [entry for entry, decision in zip(entries, decisions, strict=True) if decision.keep]
    assert all(decision.keep for decision in plan(left, policy.rule()))


# Save and keep rules together, over a run that is killed, resumed and extended


@dataclass(frozen=True)
class Run:
    """A run: the score of each epoch, its policy, and where it is killed.

    Attributes:
        scores: one an epoch; its length is the total after the extension.
        first_total: the total that was asked for first, and finished.
        every: periodic saves each this many epochs, and at each fifth of the total.
        kills: after how many epoch ends of work the process dies, and how many files it goes back then.
    """

    scores: list[float]
    first_total: int
    every: int
    mode: Direction
    last: int
    best: int
    kills: dict[int, int]


@st.composite
def runs(draw: st.DrawFn) -> Run:
    measured = draw(st.lists(scores, min_size=1, max_size=25))
    return Run(
        scores=measured,
        first_total=draw(st.integers(1, len(measured))),
        every=draw(st.integers(1, 6)),
        mode=draw(modes),
        last=draw(st.integers(1, 4)),
        best=draw(st.integers(1, 3)),
        kills=draw(st.dictionaries(st.integers(1, 40), st.integers(0, 3), max_size=4)),
    )


def epoch_of(name: str) -> int:
    return int(name.removeprefix("epoch "))


class Folder:
    """What a manager does, with a dictionary for the disk and no memory between sessions."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.save = EveryEpochs(run.every) | AtFractions((0.2, 0.4, 0.6, 0.8, 1.0))
        self.save_best = Best("m", run.mode)
        self.keep = LastK(run.last) | BestK(run.best, "m", run.mode)
        self.files: dict[str, Entry] = {"theirs.pt": Entry("theirs.pt", None, None, 9e9, pins=("foreign",))}
        self.best: Entry | None = None
        self.clock = 0.0

    def step(self, progress: Progress) -> None:
        self.clock += 1.0
        finished = progress.epochs_finished
        name, step = f"epoch {finished}", progress.global_step
        written = Entry(name, finished, step, self.clock, progress.metrics, size=1)
        past = Past(best=self.best.metrics if self.best else {})
        if self.save_best.due(progress, past):
            self.best = written
        if self.save.due(progress, past):
            self.files[written.name] = written
            decisions = plan(list(self.files.values()), self.keep)
            for decision in decisions:
                if not decision.keep:
                    del self.files[decision.name]

    def periodic(self) -> list[int]:
        return sorted(epoch_of(name) for name in self.files if name != "theirs.pt")


def train(run: Run) -> Folder:
    """Do the whole run: the first total, then the extension, dying and going back as the run says."""
    folder, work, finished, session_start = Folder(run), 0, 0, 0
    for total in (run.first_total, len(run.scores)):
        while finished < total:
            step = finished * 10
            folder.step(Progress(finished, False, step + 5, total))  # within the epoch, nothing measured
            score = {"m": run.scores[finished]}
            folder.step(Progress(finished, True, step + 10, total, score))
            finished, work = finished + 1, work + 1
            if work in run.kills:
                # Never back behind the extension: epochs before it would be saved by the new total's fifths.
                older = [epoch for epoch in (session_start, *folder.periodic()) if epoch >= session_start]
                finished = older[max(0, len(older) - 1 - run.kills[work])]
        session_start = total
    return folder


def kept_of_a_straight_run(run: Run) -> tuple[list[int], int | None]:
    """The periodic files that stay and the epoch of the best one, counted over a run without a kill."""
    saved: list[int] = []
    best: int | None = None
    for epoch, score in enumerate(run.scores, start=1):
        total = run.first_total if epoch <= run.first_total else len(run.scores)
        if epoch % run.every == 0 or any(epoch == -(-fifth * total // 5) for fifth in (1, 2, 3, 4, 5)):
            saved.append(epoch)
        if math.isfinite(score):
            rival = None if best is None else run.scores[best - 1]
            if rival is None or (score > rival if run.mode == "max" else score < rival):
                best = epoch
    ranked = [epoch for epoch in saved if math.isfinite(run.scores[epoch - 1])]
    sign = -1 if run.mode == "max" else 1
    ranked.sort(key=lambda epoch: sign * run.scores[epoch - 1])  # stable, so that ties stay in order
    return sorted({*saved[-run.last :], *ranked[: run.best]}), best


@given(runs())
def test_a_killed_resumed_and_extended_run_ends_with_the_files_of_a_straight_one(run: Run) -> None:
    folder = train(run)
    periodic, best = kept_of_a_straight_run(run)
    assert folder.periodic() == periodic
    assert (folder.best.epochs_finished if folder.best else None) == best
    assert "theirs.pt" in folder.files


@given(st.lists(scores, max_size=30), modes)
def test_each_best_beats_all_finite_scores_before_it(values: list[float], mode: Direction) -> None:
    rule = Best("m", mode)
    best: dict[str, float] = {}
    for epoch, value in enumerate(values):
        before = [old for old in values[:epoch] if math.isfinite(old)]
        ahead = all(value > old if mode == "max" else value < old for old in before)
        due = rule.due(Progress(epoch, True, epoch, metrics={"m": value}), Past(best=best))
        assert due == (math.isfinite(value) and ahead)
        best = {"m": value} if due else best
