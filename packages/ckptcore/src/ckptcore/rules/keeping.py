"""Keep rules: small objects that say which checkpoint files stay, and why. What none keeps may be deleted.

They look at the entries found on disk and at nothing else: no clock, no memory. Rules add up:
``LastK(3) | BestK(2, "val_auc", "max")``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from ckptcore.amounts import size
from ckptcore.errors import UsageError
from ckptcore.rules.arguments import check_amount, check_count, check_metric, refuse
from ckptcore.rules.ordering import best_first, earliest_first
from ckptcore.rules.progress import Entry
from ckptcore.rules.scores import Mode
from ckptcore.rules.wire import decode, encode

Reasons = dict[str, str]
"""Entry name to reason, in words."""


class KeepRule(ABC):
    """Base of all keep rules. A rule of your own is a frozen dataclass with ``keeps`` and ``describe``."""

    @abstractmethod
    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        """Names of the entries that stay, each with the reason in words."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""

    def decide(self, entries: Sequence[Entry]) -> tuple[Reasons, Reasons]:
        """What stays, and what would stay but for a limit, each with the reason.

        Pinned entries stay anyway and take nobody's place: the last three are three besides the best.
        """
        return self.keeps([entry for entry in entries if not entry.pins]), {}

    def to_dict(self) -> dict[str, object]:
        """The rule as plain JSON values."""
        return encode(self)

    @staticmethod
    def from_dict(data: object) -> KeepRule:
        """The rule that ``to_dict`` wrote.

        Raises:
            UsageError: an unknown rule, or arguments that make no sense.
        """
        return decode(data, KEEP_RULES)

    def __or__(self, other: KeepRule) -> KeepRule:
        members = [rule.rules if isinstance(rule, UnionOf) else (rule,) for rule in (self, other)]
        return UnionOf((*members[0], *members[1]))


@dataclass(frozen=True)
class LastK(KeepRule):
    """The k latest: by finished epochs, then step, then time of creation, then name."""

    k: int

    def __post_init__(self) -> None:
        check_count(self, "k", self.k)

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        return dict.fromkeys((entry.name for entry in earliest_first(entries)[-self.k :]), self.describe())

    def describe(self) -> str:
        return "last one" if self.k == 1 else f"last {self.k}"


@dataclass(frozen=True)
class BestK(KeepRule):
    """The k best by a metric; NaN and infinities never count, and of equal ones the earlier is the better."""

    k: int
    metric: str
    mode: Mode

    def __post_init__(self) -> None:
        check_count(self, "k", self.k)
        check_metric(self, self.metric, self.mode)

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        ranked = best_first(entries, self.metric, self.mode)
        return dict.fromkeys((entry.name for entry in ranked[: self.k]), self.describe())

    def describe(self) -> str:
        return f"{'best' if self.k == 1 else f'best {self.k}'} by {self.metric} ({self.mode})"


@dataclass(frozen=True)
class EveryNEpochs(KeepRule):
    """What was saved at the end of each n-th epoch; not what was saved within the epoch after it."""

    n: int

    def __post_init__(self) -> None:
        check_count(self, "n", self.n)

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        first_step: dict[int, int | None] = {}
        kept = []
        for entry in earliest_first(entries):
            epochs = entry.epochs_finished
            if not epochs or epochs % self.n:
                continue
            # Two names of one moment (best and epoch_10) both stay: one of them may move on.
            if first_step.setdefault(epochs, entry.global_step) == entry.global_step:
                kept.append(entry.name)
        return dict.fromkeys(kept, self.describe())

    def describe(self) -> str:
        return f"every {_ordinal(self.n)}epoch"


@dataclass(frozen=True)
class EveryNSteps(KeepRule):
    """What was saved first at or after each multiple of n steps; the multiple may have been jumped over."""

    n: int

    def __post_init__(self) -> None:
        check_count(self, "n", self.n)

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        told = [entry for entry in entries if entry.global_step is not None and entry.global_step >= self.n]
        first_step: dict[int, int] = {}
        for step in sorted(entry.global_step or 0 for entry in told):
            first_step.setdefault(step // self.n, step)
        kept = [entry.name for entry in told if entry.global_step in first_step.values()]
        return dict.fromkeys(kept, self.describe())

    def describe(self) -> str:
        return f"every {_ordinal(self.n)}step"


@dataclass(frozen=True)
class NewestWithin(KeepRule):
    """What was created within a time before the newest entry, by epochs and steps; no clock is asked."""

    _: KW_ONLY
    days: float = 0.0
    hours: float = 0.0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("days", "hours", "minutes"):
            check_amount(self, name, getattr(self, name), zero=True)
        check_amount(self, "the time in all", self._seconds)

    @property
    def _seconds(self) -> float:
        return 86_400.0 * self.days + 3_600.0 * self.hours + 60.0 * self.minutes

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        # The newest is the one furthest in training: a clock that was ahead for one save decides nothing.
        newest = earliest_first(entries)[-1].created if entries else 0.0
        kept = [entry.name for entry in entries if newest - entry.created <= self._seconds]
        return dict.fromkeys(kept, self.describe())

    def describe(self) -> str:
        told = [(self.days, "d"), (self.hours, "h"), (self.minutes, "min")]
        return f"newest within {' '.join(f'{value:g} {unit}' for value, unit in told if value)}"


@dataclass(frozen=True)
class KeepAll(KeepRule):
    """Every entry."""

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        return dict.fromkeys((entry.name for entry in entries), self.describe())

    def describe(self) -> str:
        return "everything"


@dataclass(frozen=True)
class Nothing(KeepRule):
    """No entry: only what is pinned stays."""

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        return {}

    def describe(self) -> str:
        return "only what is pinned"


@dataclass(frozen=True)
class UnionOf(KeepRule):
    """What at least one of its rules keeps, with all reasons."""

    rules: tuple[KeepRule, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", _checked(self, self.rules))

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        return self.decide(entries)[0]

    def decide(self, entries: Sequence[Entry]) -> tuple[Reasons, Reasons]:
        reasons: dict[str, list[str]] = {}
        dropped: Reasons = {}
        for rule in self.rules:
            stays, limited = rule.decide(entries)
            for name, reason in stays.items():
                reasons.setdefault(name, []).append(reason)
            dropped |= limited
        kept = {name: ", ".join(dict.fromkeys(told)) for name, told in reasons.items()}
        return kept, {name: reason for name, reason in dropped.items() if name not in kept}

    def describe(self) -> str:
        return ", ".join(dict.fromkeys(rule.describe() for rule in self.rules))


@dataclass(frozen=True)
class ByteBudget(KeepRule):
    """What a rule keeps, less the oldest of it until all that stays fits.

    Pinned entries count, and are never dropped. Where nothing is pinned the newest one stays even if it alone
    is too large: no budget is worth the whole run.
    """

    max_bytes: int
    rule: KeepRule

    def __post_init__(self) -> None:
        check_count(self, "max_bytes", self.max_bytes)
        _checked(self, (self.rule,))

    def keeps(self, entries: Sequence[Entry]) -> Reasons:
        return self.decide(entries)[0]

    def decide(self, entries: Sequence[Entry]) -> tuple[Reasons, Reasons]:
        wanted, dropped = map(dict, self.rule.decide(entries))
        loose = [entry for entry in earliest_first(entries) if entry.name in wanted and not entry.pins]
        pinned = [entry for entry in entries if entry.pins]
        used = sum(entry.size for entry in (*loose, *pinned))
        for entry in loose if pinned else loose[:-1]:
            if used <= self.max_bytes:
                break
            used -= entry.size
            dropped[entry.name] = f"over the budget of {size(self.max_bytes)} ({wanted.pop(entry.name)})"
        return wanted, dropped

    def describe(self) -> str:
        return f"{self.rule.describe()}, within {size(self.max_bytes)}"


@dataclass(frozen=True)
class Decision:
    """What happens to one entry, and why.

    Attributes:
        name: the entry's name.
        keep: False when it may be deleted.
        reason: one line for people.
        size: bytes that deleting it frees.
    """

    name: str
    keep: bool
    reason: str
    size: int


def plan(entries: Sequence[Entry], rule: KeepRule) -> list[Decision]:
    """What a keep rule does to each entry, in the order of the entries; what is pinned always stays.

    Raises:
        UsageError: two entries have one name, so that a decision would be about both.
    """
    twice = [name for name, times in Counter(entry.name for entry in entries).items() if times > 1]
    if twice:
        raise UsageError(f"expected entries of different names, got {twice[0]!r} twice. Give each file once.")
    kept, dropped = rule.decide(entries)
    otherwise = f"no rule keeps it ({rule.describe()})"
    decisions = []
    for entry in entries:
        pins = ", ".join(entry.pins)
        reason = pins or kept.get(entry.name) or dropped.get(entry.name) or otherwise
        decisions.append(Decision(entry.name, bool(entry.pins) or entry.name in kept, reason, entry.size))
    return decisions


def _checked(rule: KeepRule, inner: object) -> tuple[KeepRule, ...]:
    rules = tuple(inner) if isinstance(inner, (tuple, list)) else (inner,)
    if not rules or not all(isinstance(item, KeepRule) for item in rules):
        refuse(rule, "keep rules", inner, "Give at least one, such as LastK(3).")
    return rules


def _ordinal(n: int) -> str:
    """``10th `` with the space after it; nothing for 1."""
    if n == 1:
        return ""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending} "


KEEP_RULES: dict[str, type[KeepRule]] = {
    kind.__name__: kind
    for kind in (LastK, BestK, EveryNEpochs, EveryNSteps, NewestWithin, KeepAll, Nothing, UnionOf, ByteBudget)
}
"""Class name to class of every rule that can be read back from disk; rules of your own may be added."""
