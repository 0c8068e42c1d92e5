"""What rules look at: where the loop is, what was saved before, and which files are on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """What the training loop just reached; every save rule is asked about it.

    Attributes:
        epoch: index from 0 of the epoch that is running or has just ended.
        epoch_end: True when that epoch has just ended.
        global_step: optimizer steps done since the start of the run.
        total_epochs: how many epochs the run shall have, None when unknown; may grow between sessions.
        metrics: what was measured at this point; a metric that was not measured now is absent.
        seconds: monotonic seconds since the manager opened.
        stage: name of the running stage, for staged training.
        stage_end: True when that stage has just ended.
        final: True at the last call of the run.
        signal: True when a signal asked for a save.
        exception: True when the loop was left by an exception.
    """

    epoch: int
    epoch_end: bool
    global_step: int
    total_epochs: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    stage: str | None = None
    stage_end: bool = False
    final: bool = False
    signal: bool = False
    exception: bool = False

    @property
    def epochs_finished(self) -> int:
        """How many epochs have ended: what file names count."""
        return self.epoch + 1 if self.epoch_end else self.epoch


@dataclass(frozen=True)
class Past:
    """What is already saved, rebuilt from disk, on the line of training that is being continued.

    Attributes:
        last_epochs_finished: finished epochs in the last save of the rule's role; None when there is none.
        last_step: global step of that save.
        last_seconds: when it was made, on the clock of ``Progress.seconds``; negative if before it opened.
        best: metric name to the value of the best checkpoint on disk.
    """

    last_epochs_finished: int | None = None
    last_step: int | None = None
    last_seconds: float | None = None
    best: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One checkpoint file on disk, as keep rules see it.

    Attributes:
        name: file name, unique among the entries.
        epochs_finished: None when the file does not say.
        global_step: None when the file does not say.
        created: Unix time in seconds.
        metrics: what the file's header says was measured.
        size: bytes that deleting it would free.
        pins: reasons why nothing may delete it, as ``("best", "version")``; empty when rules decide.
    """

    name: str
    epochs_finished: int | None
    global_step: int | None
    created: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    size: int = 0
    pins: tuple[str, ...] = ()
