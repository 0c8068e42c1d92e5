"""What the presets share: metrics under the names that a loop gives them, safe names, rules of a latest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckptcore.errors import UsageError
from ckptcore.layouts.layout import Moment
from ckptcore.rules import EveryEpochs, OnSignal, SaveRule

NOT_MEASURED = math.nan


def measured(moment: Moment, *names: str) -> float:
    """A metric under the first of its names: now, else in the last finished epoch; NaN if never measured."""
    for name in names:
        if name in moment.progress.metrics:
            return float(moment.progress.metrics[name])
    at = moment.progress.epochs_finished - 1
    found = series(moment, *names)
    return found[at] if 0 <= at < len(found) else NOT_MEASURED


def series(moment: Moment, *names: str) -> list[float]:
    """A metric by epoch; each value is taken from the first of the names under which there is one.

    A run that reports ``f1`` and was resumed from a file that tells of it as ``val_f1`` has half under each.
    """
    told = [moment.history[name] for name in names if name in moment.history]
    return [_first_number(told, at) for at in range(max(map(len, told), default=0))]


def _first_number(told: list[list[float]], at: int) -> float:
    values = (float(values[at]) for values in told if at < len(values))
    return next((value for value in values if not math.isnan(value)), NOT_MEASURED)


def fill(state: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The state with the values that it does not have; what the loop gave itself stands."""
    return {**state, **{key: value for key, value in values.items() if key not in state}}


def best_value(moment: Moment, metric: str) -> float:
    """The best value of a metric so far; NaN before the first."""
    return float(moment.best.get(metric, NOT_MEASURED))


def literal(text: str, what: str) -> str:
    """A name as part of a file name template.

    Raises:
        UsageError: it is no part of a file name.
    """
    if (
        not text
        or text.startswith(".")
        or any(sign in text for sign in "/\\\0\n")
        or len(text.encode()) > 100
    ):
        raise UsageError(
            f"expected {what} to be part of a file name, got {text!r}. Use letters, digits, - and _."
        )
    return text.replace("{", "{{").replace("}", "}}")


def metric_literal(metric: str) -> str:
    """A metric's name as part of a template; Lightning users write ``val/f1``, which would be a folder."""
    return literal(metric.replace("/", "_"), "the metric's name")


def latest_rules(latest: bool) -> tuple[SaveRule, ...]:
    """A latest after every epoch and on a signal, unless the user wants none."""
    return (EveryEpochs(1, role="latest"), OnSignal(role="latest")) if latest else ()


def latest_template(latest: bool, template: str) -> dict[str, str]:
    """The name of the latest, where one is kept."""
    return {"latest": template} if latest else {}
