"""What a save rule is, and how rules combine: ``|`` any of them, ``&`` all of them, ``~`` not this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self, cast

from ckptcore.errors import UsageError
from ckptcore.rules.arguments import check_role, refuse
from ckptcore.rules.progress import Past, Progress
from ckptcore.rules.scores import Mode
from ckptcore.rules.wire import decode, encode

SAVE_RULES: dict[str, type[SaveRule]] = {}
"""Class name to class of every rule that can be read back from disk; rules of your own may be added."""


class SaveRule(ABC):
    """Base of all save rules; one of your own is a frozen dataclass with ``role``, ``due``, ``describe``."""

    @property
    @abstractmethod
    def role(self) -> str:
        """Which file name it feeds: latest, best, periodic, stage, final, or one that a layout names."""

    def __post_init__(self) -> None:
        check_role(self, self.role)

    @abstractmethod
    def due(self, progress: Progress, past: Past) -> bool:
        """Whether a checkpoint shall be written now.

        Args:
            progress: what the loop just reached.
            past: what is already saved; its ``last_*`` are those of the rule's role.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""

    def parts(self) -> Iterator[SaveRule]:
        """The rules that this one is made of, itself when it is a simple one."""
        yield self

    def as_role(self, role: str) -> Self:
        """The same rule, feeding another file name."""
        return cast(Self, replace(cast(Any, self), role=role))

    def to_dict(self) -> dict[str, object]:
        """The rule as plain JSON values."""
        return encode(self)

    @staticmethod
    def from_dict(data: object) -> SaveRule:
        """The rule that ``to_dict`` wrote.

        Raises:
            UsageError: an unknown rule, or arguments that make no sense.
        """
        return decode(data, SAVE_RULES)

    def __or__(self, other: SaveRule) -> SaveRule:
        return AnyOf((*_members(self, AnyOf), *_members(other, AnyOf)), role=self.role)

    def __and__(self, other: SaveRule) -> SaveRule:
        return AllOf((*_members(self, AllOf), *_members(other, AllOf)), role=self.role)

    def __invert__(self) -> SaveRule:
        return Not(self, role=self.role)


@dataclass(frozen=True)
class AnyOf(SaveRule):
    """Due when at least one of its rules is. Its role is that of the first rule unless one is given."""

    rules: tuple[SaveRule, ...]
    _: KW_ONLY
    role: str = ""

    def __post_init__(self) -> None:
        _settle(self, self.rules)

    def due(self, progress: Progress, past: Past) -> bool:
        return any(rule.due(progress, past) for rule in self.rules)

    def describe(self) -> str:
        return ", or ".join(rule.describe() for rule in self.rules)

    def parts(self) -> Iterator[SaveRule]:
        for rule in self.rules:
            yield from rule.parts()


@dataclass(frozen=True)
class AllOf(SaveRule):
    """Due when each of its rules is. Its role is that of the first rule unless one is given."""

    rules: tuple[SaveRule, ...]
    _: KW_ONLY
    role: str = ""

    def __post_init__(self) -> None:
        _settle(self, self.rules)

    def due(self, progress: Progress, past: Past) -> bool:
        return all(rule.due(progress, past) for rule in self.rules)

    def describe(self) -> str:
        return " and ".join(
            f"({rule.describe()})" if isinstance(rule, AnyOf) else rule.describe() for rule in self.rules
        )

    def parts(self) -> Iterator[SaveRule]:
        for rule in self.rules:
            yield from rule.parts()


@dataclass(frozen=True)
class Not(SaveRule):
    """Due when its rule is not; of use within ``&``."""

    rule: SaveRule
    _: KW_ONLY
    role: str = ""

    def __post_init__(self) -> None:
        _settle(self, (self.rule,))

    def due(self, progress: Progress, past: Past) -> bool:
        return not self.rule.due(progress, past)

    def describe(self) -> str:
        return f"not ({self.rule.describe()})"

    def parts(self) -> Iterator[SaveRule]:
        yield from self.rule.parts()


def metrics_watched(rules: Iterable[SaveRule]) -> dict[str, Mode]:
    """The metrics whose best values ``Past.best`` must hold, each with its direction.

    Raises:
        UsageError: one metric is watched in both directions.
    """
    watched: dict[str, Mode] = {}
    for part in (part for rule in rules for part in rule.parts()):
        metric, mode = getattr(part, "metric", None), getattr(part, "mode", None)
        if metric is None or mode is None:
            continue
        if watched.setdefault(metric, mode) != mode:
            raise UsageError(
                f"expected one direction for the metric {metric}, got both 'min' and 'max'. "
                "Keep one rule, or report the metric under two names."
            )
    return watched


def _members(rule: object, kind: type[AnyOf] | type[AllOf]) -> tuple[SaveRule, ...]:
    """A combination of the same kind is opened, so that a | b | c is one rule of three."""
    if not isinstance(rule, SaveRule):
        raise UsageError(
            f"{kind.__name__}: expected a save rule on each side, got {rule!r}. "
            "Combine rules such as EveryEpochs(5) | Final()."
        )
    return rule.rules if isinstance(rule, kind) else (rule,)


def _settle(combination: AnyOf | AllOf | Not, given: object) -> None:
    """Check the inner rules, and take the first one's role where none was given."""
    rules = tuple(given) if isinstance(given, Iterable) else (given,)
    if not rules or not all(isinstance(rule, SaveRule) for rule in rules):
        refuse(combination, "save rules", rules, "Give at least one, such as EveryEpochs(5).")
    if not isinstance(combination, Not):
        object.__setattr__(combination, "rules", rules)
    if not combination.role:
        object.__setattr__(combination, "role", rules[0].role)
    check_role(combination, combination.role)


SAVE_RULES.update({kind.__name__: kind for kind in (AnyOf, AllOf, Not)})
