"""Where a training loop says that it is, checked."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from ckptcore.errors import UsageError
from ckptcore.rules import Progress

_MAX_COUNT = 1 << 53
"""Where floats, and so JSON readers, begin to skip whole numbers."""


def position(
    epoch: int,
    epoch_end: bool,
    global_step: int | None,
    metrics: Mapping[str, float],
    *,
    total_epochs: int | None,
    final: bool,
    stage: str | None = None,
    **more: Any,
) -> Progress:
    """What the rules are asked about.

    Args:
        epoch: index from 0 of the epoch that runs or has just ended.
        epoch_end: it has just ended.
        global_step: optimizer steps taken; a loop that does not count them is given one an epoch.
        metrics: what was measured now.
        total_epochs: length of the run, where it is known; its last epoch's end is final.
        final: the loop says that training is over.
        stage: name of the running stage, for staged training.
        more: the other fields of `Progress`.

    Raises:
        UsageError: naming what is no count, no number or no name.
    """
    if stage is not None and not isinstance(stage, str):
        raise UsageError(f"expected the stage's name as text, got {stage!r}.")
    epoch = _count("the index of an epoch, from 0", epoch)
    finished = epoch + 1 if epoch_end else epoch
    return Progress(
        epoch=epoch,
        epoch_end=epoch_end,
        global_step=finished if global_step is None else _count("the optimizer steps taken", global_step),
        metrics={name: _number(name, value) for name, value in mapping("metrics", metrics).items()},
        total_epochs=total_epochs,
        final=final or (total_epochs is not None and epoch_end and finished >= total_epochs),
        stage=stage,
        **more,
    )


def mapping(what: str, value: Any) -> Mapping[Any, Any]:
    """The value, which must be a dict or the like.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"expected {what} as a dict, got {type(value).__name__}.")
    return value


def _count(what: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise UsageError(f"expected {what}, a whole number, got {value!r}.") from error
    if not 0 <= number < _MAX_COUNT:
        raise UsageError(f"expected {what}, below 2**53, got {number if number < 0 else 'more'}.")
    return number


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise UsageError(
            f"metric {name!r}: expected a number, got one beyond the range of floats."
        ) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"metric {name!r}: expected a number, got {type(value).__name__}.") from error
