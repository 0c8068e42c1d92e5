"""Save rules: small objects that say whether what the loop just reached is worth a file, and of which name.

A rule remembers nothing. What was saved before is told to it (``Past``, rebuilt from disk), so a run that was
killed and resumed decides like one that never stopped. Rules combine: ``EveryEpochs(5) | StageEnds()``,
``EverySteps(100) & ~OnException()``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from math import ceil
from typing import cast

from ckptcore.rules.arguments import as_counts, as_list, check_amount, check_count, check_metric, refuse
from ckptcore.rules.combining import SAVE_RULES, SaveRule
from ckptcore.rules.progress import Past, Progress
from ckptcore.rules.scores import Mode, finite_score, improves


@dataclass(frozen=True)
class EveryEpochs(SaveRule):
    """At the end of every n-th epoch, counted from 1."""

    n: int = 1
    _: KW_ONLY
    role: str = "periodic"

    def __post_init__(self) -> None:
        check_count(self, "n", self.n)
        super().__post_init__()

    def due(self, progress: Progress, past: Past) -> bool:
        return progress.epoch_end and progress.epochs_finished % self.n == 0

    def describe(self) -> str:
        return "every epoch" if self.n == 1 else f"every {self.n} epochs"


@dataclass(frozen=True)
class EverySteps(SaveRule):
    """Every n global steps: at the first call at or after each multiple of n, which may be jumped over."""

    n: int
    _: KW_ONLY
    role: str = "latest"

    def __post_init__(self) -> None:
        check_count(self, "n", self.n)
        super().__post_init__()

    def due(self, progress: Progress, past: Past) -> bool:
        step, last = progress.global_step, past.last_step or 0
        if last > step:
            # The last save lies ahead: the run went back to an earlier file. How far it has come since
            # then is not known here, and "due at each step" would be worse than waiting for a true multiple.
            return step % self.n == 0
        return step // self.n > last // self.n

    def describe(self) -> str:
        return "every step" if self.n == 1 else f"every {self.n} steps"


@dataclass(frozen=True)
class EveryMinutes(SaveRule):
    """When the last save of the role, or the opening of the manager, is at least m minutes ago."""

    m: float
    _: KW_ONLY
    role: str = "latest"

    def __post_init__(self) -> None:
        check_amount(self, "m", self.m)
        super().__post_init__()

    def due(self, progress: Progress, past: Past) -> bool:
        last = past.last_seconds
        if last is None or last > progress.seconds:  # a time to come belongs to another session's clock
            last = 0.0
        return progress.seconds - last >= 60.0 * self.m

    def describe(self) -> str:
        return "every minute" if self.m == 1 else f"every {self.m:g} minutes"


@dataclass(frozen=True)
class AtFractions(SaveRule):
    """At fractions of the run's epochs, rounded up: (0.2, 0.4, 0.6, 0.8, 1) of 50 are 10, 20, 30, 40, 50.

    Follows ``total_epochs`` when a run is extended; never due while it is unknown.
    """

    fractions: tuple[float, ...]
    _: KW_ONLY
    role: str = "periodic"

    def __post_init__(self) -> None:
        listed = as_list(self, "fractions", self.fractions)
        for value in listed:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                refuse(self, "each fraction to be above 0 and at most 1", value, "Write 0.2 for 20 %.")
        object.__setattr__(self, "fractions", tuple(sorted({float(cast(float, value)) for value in listed})))
        super().__post_init__()

    def epochs(self, total_epochs: int) -> tuple[int, ...]:
        """The epochs, counted from 1, that the fractions fall on."""
        # In binary 0.55 * 100 is a little more than 55 and would become 56: the decimal as written counts.
        exact = (Fraction(str(value)).limit_denominator(1_000_000) for value in self.fractions)
        return tuple(sorted({max(1, ceil(value * total_epochs)) for value in exact}))

    def due(self, progress: Progress, past: Past) -> bool:
        if progress.total_epochs is None or not progress.epoch_end:
            return False
        return progress.epochs_finished in self.epochs(progress.total_epochs)

    def describe(self) -> str:
        return f"at {', '.join(f'{100 * value:g}' for value in self.fractions)} % of the epochs"


@dataclass(frozen=True)
class AtSteps(SaveRule):
    """At given global steps: at the first call at or after each."""

    steps: tuple[int, ...]
    _: KW_ONLY
    role: str = "periodic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", as_counts(self, "steps", self.steps, least=0))
        super().__post_init__()

    def due(self, progress: Progress, past: Past) -> bool:
        last = -1 if past.last_step is None else past.last_step
        if last > progress.global_step:  # the run went back, as in EverySteps
            return progress.global_step in self.steps
        return any(last < step <= progress.global_step for step in self.steps)

    def describe(self) -> str:
        return _listed("at step", self.steps)


@dataclass(frozen=True)
class AtEpochs(SaveRule):
    """At the end of given epochs, counted from 1."""

    epochs: tuple[int, ...]
    _: KW_ONLY
    role: str = "periodic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", as_counts(self, "epochs", self.epochs, least=1))
        super().__post_init__()

    def due(self, progress: Progress, past: Past) -> bool:
        return progress.epoch_end and progress.epochs_finished in self.epochs

    def describe(self) -> str:
        return _listed("after epoch", self.epochs)


@dataclass(frozen=True)
class StageEnds(SaveRule):
    """At the end of each stage of a staged training."""

    _: KW_ONLY
    role: str = "stage"

    def due(self, progress: Progress, past: Past) -> bool:
        return progress.stage_end

    def describe(self) -> str:
        return "at the end of each stage"


@dataclass(frozen=True)
class Best(SaveRule):
    """Whenever a metric is better than in the best checkpoint on disk.

    Only finite values count, a tie keeps the earlier file, and a loop left by an exception makes no best.

    Args:
        metric: name among ``Progress.metrics``; the rule is not due where it was not measured.
        mode: "min" or "max", never guessed.
        min_delta: how much better it must be, in the metric's unit.
    """

    metric: str
    mode: Mode
    _: KW_ONLY
    role: str = "best"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        check_metric(self, self.metric, self.mode)
        check_amount(self, "min_delta", self.min_delta, zero=True)
        super().__post_init__()

    def due(self, progress: Progress, past: Past) -> bool:
        value = finite_score(progress.metrics, self.metric)
        if value is None or progress.exception:
            return False
        return improves(value, finite_score(past.best, self.metric), self.mode, self.min_delta)

    def describe(self) -> str:
        word = "highest" if self.mode == "max" else "lowest"
        margin = f", by more than {self.min_delta:g}" if self.min_delta else ""
        return f"when {self.metric} is the {word} so far{margin}"


@dataclass(frozen=True)
class Final(SaveRule):
    """At the end of training."""

    _: KW_ONLY
    role: str = "final"

    def due(self, progress: Progress, past: Past) -> bool:
        return progress.final

    def describe(self) -> str:
        return "at the end of training"


@dataclass(frozen=True)
class OnSignal(SaveRule):
    """When a signal (Ctrl-C, SIGTERM) asked the run to stop."""

    _: KW_ONLY
    role: str = "latest"

    def due(self, progress: Progress, past: Past) -> bool:
        return progress.signal

    def describe(self) -> str:
        return "on a signal"


@dataclass(frozen=True)
class OnException(SaveRule):
    """When the loop is left by an exception; under its own name: nobody knows how whole that state is."""

    _: KW_ONLY
    role: str = "exception"

    def due(self, progress: Progress, past: Past) -> bool:
        return progress.exception

    def describe(self) -> str:
        return "on an exception"


@dataclass(frozen=True)
class First(SaveRule):
    """Once, as soon as possible: while the role has no file yet."""

    _: KW_ONLY
    role: str = "periodic"

    def due(self, progress: Progress, past: Past) -> bool:
        return past.last_step is None and past.last_epochs_finished is None

    def describe(self) -> str:
        return "at the first step"


def _listed(before: str, numbers: tuple[int, ...]) -> str:
    return f"{before}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


SAVE_RULES.update(
    {
        kind.__name__: kind
        for kind in (
            EveryEpochs,
            EverySteps,
            EveryMinutes,
            AtFractions,
            AtSteps,
            AtEpochs,
            StageEnds,
            Best,
            Final,
            OnSignal,
            OnException,
            First,
        )
    }
)
