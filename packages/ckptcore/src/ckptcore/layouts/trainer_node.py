"""The layout of the trainer node, and its two settings as a form or a config holds them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ckptcore.errors import UsageError
from ckptcore.layouts.filling import fill, latest_rules, latest_template, measured, series
from ckptcore.layouts.layout import Layout, Moment, recall_history
from ckptcore.rules import Best, EveryEpochs, Final, Mode

if TYPE_CHECKING:
    from ckptcore.manager import CheckpointManager


def trainer_node(
    save_every_n_epochs: int | str = 5, metric: str = "loss", mode: Mode = "min", *, latest: bool = True
) -> Layout:
    """``checkpoint_epoch_N.pt`` every few epochs, ``best_model.pt`` of the lowest loss, ``final_model.pt``.

    ``epoch`` counts finished epochs. The folder is the manager's; `TrainerNodeSettings` reads both settings.

    Args:
        save_every_n_epochs: epochs between two periodic files; all of them stay.
        metric: the loss, as the loop reports it.
        mode: "min" for losses.
        latest: whether to keep ``latest_model.pt`` too, written after every epoch.
    """
    return Layout(
        name="trainer_node",
        templates={
            "periodic": "checkpoint_epoch_{epochs_finished}.pt",
            "best": "best_model.pt",
            "final": "final_model.pt",
            **latest_template(latest, "latest_model.pt"),
        },
        save=(*latest_rules(latest), EveryEpochs(_whole(save_every_n_epochs)), Best(metric, mode), Final()),
        epoch_counts="finished",
        metric=metric,
        mode=mode,
        complete=partial(_complete, metric=metric),
        recall=partial(_recall, metric=metric),
        own_latest=False,
    )


def _complete(state: dict[str, Any], moment: Moment, metric: str) -> dict[str, Any]:
    return fill(state, {"loss": measured(moment, metric), "epoch_losses": series(moment, metric)})


def _recall(checkpoint: Mapping[str, Any], metric: str) -> dict[str, list[float]]:
    losses = checkpoint.get("epoch_losses")
    told = {metric: list(losses)} if isinstance(losses, (list, tuple)) else {}
    return told | recall_history(checkpoint)


@dataclass(frozen=True)
class TrainerNodeSettings:
    """The two settings, from Python or from the text fields of a form.

    Attributes:
        checkpoint_dir: the folder, relative to the working directory or absolute, made when missing; empty or
            None for no checkpoints.
        save_every_n_epochs: epochs between two periodic files; text such as "5" is read as the number.
    """

    checkpoint_dir: str | os.PathLike[str] | None = "checkpoints"
    save_every_n_epochs: int | str = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint_dir", os.fspath(self.checkpoint_dir or "").strip() or None)
        object.__setattr__(self, "save_every_n_epochs", _whole(self.save_every_n_epochs))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The settings among whatever else a trainer's configuration holds; a missing one has its default."""
        known = ("checkpoint_dir", "save_every_n_epochs")
        return cls(**{name: config[name] for name in known if name in config})

    def manager(self, **options: Any) -> CheckpointManager:
        """A manager of the folder.

        Args:
            options: more arguments of `CheckpointManager`, ``total_epochs=20`` above all.
        """
        from ckptcore.manager import CheckpointManager

        return CheckpointManager(self.checkpoint_dir, trainer_node(self.save_every_n_epochs), **options)


def _whole(value: int | str) -> int:
    """A whole number from 1 on, which text fields give as text."""
    given: object = value
    try:
        number = int(given) if isinstance(given, (int, str)) and not isinstance(given, bool) else 0
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(
            f"save_every_n_epochs: expected a whole number of 1 or more, got {value!r}. Give 5, say."
        )
    return number
