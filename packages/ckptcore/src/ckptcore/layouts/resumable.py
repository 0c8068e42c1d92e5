"""The layout of resumable segmentation training: latest, a backup at each fifth of the run, best."""

from __future__ import annotations

from functools import partial
from typing import Any

from ckptcore.layouts.filling import best_value, fill, latest_rules, latest_template, series
from ckptcore.layouts.layout import Layout, Moment
from ckptcore.rules import AtFractions, Best, Mode


def resumable(
    metric: str = "val_dice", mode: Mode = "max", *, best_weights_only: bool = False, latest: bool = True
) -> Layout:
    """``latest_checkpoint.pt``, ``epoch_010_checkpoint.pt`` at 20, 40, 60, 80 and 100 %, ``best_model.pt``.

    ``epoch`` counts finished epochs. The percentages are those of the manager's ``total_epochs``, and follow
    it when a run is extended; without it there are no backups.

    Args:
        metric: the metric of best, as the loop reports it.
        mode: "min" for losses, "max" for scores.
        best_weights_only: whether ``best_model.pt`` goes without optimizer, scheduler and random state. It is
            smaller, and no run can be resumed from it.
        latest: False for no ``latest_checkpoint.pt``.
    """
    return Layout(
        name="resumable",
        templates={
            "periodic": "epoch_{epochs_finished:03d}_checkpoint.pt",
            "best": "best_model.pt",
            **latest_template(latest, "latest_checkpoint.pt"),
        },
        save=(*latest_rules(latest), AtFractions((0.2, 0.4, 0.6, 0.8, 1)), Best(metric, mode)),
        epoch_counts="finished",
        metric=metric,
        mode=mode,
        complete=partial(_complete, metric=metric),
        weights_only=frozenset({"best"} if best_weights_only else ()),
    )


def _complete(state: dict[str, Any], moment: Moment, metric: str) -> dict[str, Any]:
    told = {name: series(moment, name) for name in dict.fromkeys(("train_loss", metric, *moment.history))}
    best = {f"best_{metric}": best_value(moment, metric), "best_epoch": moment.best_epoch or 0}
    return fill(state, {"history": told | best, "scheduler_state_dict": {}})
