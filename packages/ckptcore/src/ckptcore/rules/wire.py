"""Rules as plain JSON values and back: a policy lies beside its files, so that it can be explained later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TypeVar

from ckptcore.errors import UsageError

R = TypeVar("R")

DEEPEST = 32
"""Rules within rules; nobody writes more by hand, and a policy file that does shall not exhaust the stack."""


def encode(rule: object) -> dict[str, object]:
    """``{"kind": class name, field: value, ...}``, with inner rules encoded likewise.

    Raises:
        UsageError: the rule is no dataclass, so that its arguments are unknown.
    """
    if not is_dataclass(rule) or isinstance(rule, type):
        raise UsageError(
            f"expected a rule that is a dataclass, got {type(rule).__name__}. "
            "Decorate your own rules with @dataclass(frozen=True)."
        )
    written: dict[str, object] = {"kind": type(rule).__name__}
    for item in fields(rule):
        written[item.name] = _plain(getattr(rule, item.name))
    return written


def decode(data: object, known: Mapping[str, type[R]], depth: int = 0) -> R:
    """The rule that ``encode`` wrote, with all its arguments checked again.

    Args:
        data: what ``encode`` returned, perhaps by way of JSON.
        known: class name to class; nothing else is ever made.
        depth: how many rules this one is within.

    Raises:
        UsageError: an unknown rule or argument, a missing one, or one without sense.
    """
    if depth > DEEPEST:
        raise UsageError(f"expected at most {DEEPEST} rules within each other, got more. Simplify them.")
    if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
        raise UsageError(
            f"expected a mapping such as {{'kind': 'LastK', 'k': 3}}, got {_short(data)}. Correct it."
        )
    name = data["kind"]
    if name not in known:
        raise UsageError(
            f"expected one of the rules {', '.join(sorted(known))}, got {_short(name)}. "
            "A rule of your own must be given in code; a newer ckptcore may know this one."
        )
    arguments = {key: value for key, value in data.items() if key != "kind"}
    _check_arguments(known[name], arguments)
    return known[name](**{key: _rule(value, known, depth) for key, value in arguments.items()})


def _check_arguments(kind: type[object], given: Mapping[object, object]) -> None:
    """All are known, none is missing; one with a default may be absent, as in policies of older versions."""
    items = fields(kind) if is_dataclass(kind) else ()
    names = {item.name for item in items}
    needed = {item.name for item in items if item.default is MISSING and item.default_factory is MISSING}
    if not needed <= set(given) <= names:
        raise UsageError(
            f"{kind.__name__}: expected the arguments {', '.join(sorted(names)) or 'none'}, "
            f"got {_short(sorted(map(str, given)))}. Correct the policy, or write it anew."
        )


def _plain(value: object) -> object:
    if is_dataclass(value):
        return encode(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _rule(value: object, known: Mapping[str, type[R]], depth: int) -> object:
    """An argument's value: inner rules are made, lists become tuples, the rest stays."""
    if isinstance(value, Mapping):
        return decode(value, known, depth + 1)
    if isinstance(value, (list, tuple)):
        return tuple(decode(item, known, depth + 1) if isinstance(item, Mapping) else item for item in value)
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
