"""Checks of the arguments of rules: what cannot mean anything is refused at once, not in epoch 40."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn, cast

from ckptcore.errors import UsageError

ROLES = ("latest", "best", "periodic", "stage", "final")
"""The roles of the shipped layouts; a layout may name others."""

MOST = 2**63 - 1
"""Larger counts are slips, and would overflow where they meet floats."""


def refuse(rule: object, expected: str, got: object, do: str) -> NoReturn:
    """Raise the UsageError that every check raises."""
    raise UsageError(f"{type(rule).__name__}: expected {expected}, got {got!r}. {do}")


def check_count(rule: object, name: str, value: object, least: int = 1) -> None:
    """A whole number, no bool."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        refuse(rule, f"{name} to be a whole number of {least} or more", value, "Give a number such as 5.")


def check_amount(rule: object, name: str, value: object, *, zero: bool = False) -> None:
    """A finite number above zero (or zero, where allowed)."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
    if not 0 <= number <= MOST or (number == 0 and not zero):
        bound = "of 0 or more" if zero else "above 0"
        refuse(rule, f"{name} to be a finite number {bound}", value, "Give a number such as 0.5.")


def check_role(rule: object, role: object) -> None:
    """A lower-case word: it becomes part of headers and of layouts."""
    if not isinstance(role, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", role):
        do = f"Use one of {', '.join(ROLES)}, or a role that your layout names."
        refuse(rule, "role to be a lower-case word", role, do)


def check_metric(rule: object, metric: object, mode: object) -> None:
    """A metric's name and the direction in which it gets better, which is never guessed."""
    if not isinstance(metric, str) or not metric:
        refuse(rule, "metric to be the name of a metric", metric, "Name one, such as 'val_auc'.")
    if mode not in ("min", "max"):
        refuse(rule, f"mode of {metric} to be 'min' or 'max'", mode, "Say 'min' for a loss, 'max' for AUC.")


def as_counts(rule: object, name: str, values: object, least: int) -> tuple[int, ...]:
    """Sorted, distinct whole numbers out of any iterable of them."""
    listed = as_list(rule, name, values)
    for value in listed:
        check_count(rule, f"each of {name}", value, least)
    return tuple(sorted({cast(int, value) for value in listed}))


def as_list(rule: object, name: str, values: object) -> list[object]:
    """A list that is not empty, out of any iterable but text."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        refuse(rule, f"{name} to be several numbers", values, "Give them as a tuple, such as (10, 20).")
    listed = list(values)
    if not listed:
        refuse(rule, f"{name} to name at least one", values, "Give one, or leave the rule out.")
    return listed
