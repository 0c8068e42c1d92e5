"""The layout of saved_models/, the project's own: best, every fifth epoch (three stay), a history beside."""

from __future__ import annotations

from functools import partial
from typing import Any

from ckptcore.errors import UsageError
from ckptcore.layouts.filling import best_value, fill, latest_rules, latest_template, literal, measured
from ckptcore.layouts.layout import Layout, Moment
from ckptcore.rules import Best, EveryEpochs, LastK, Mode
from ckptcore.semver import is_version


def saved_models(
    name: str,
    metric: str = "val_auc",
    mode: Mode = "max",
    *,
    every: int = 5,
    last: int = 3,
    latest: bool = True,
    history_file: str | None = "training_history.json",
) -> Layout:
    """``resnet50_best.pth``, ``resnet50_epoch_N.pth`` of which the last few stay, ``training_history.json``.

    ``epoch`` counts from 0, so that it is 4 after five epochs; file names count from 1.

    Args:
        name: of the model, as "resnet50".
        metric: the metric of best, as the loop reports it.
        mode: "min" for losses, "max" for scores.
        every: epochs between two periodic files.
        last: how many periodic files stay.
        latest: whether to keep ``resnet50_latest.pth`` too, written after every epoch.
        history_file: the JSON file that tells what every epoch measured; None for none.

    Raises:
        UsageError: the name is no part of a file name, or the best file would pass for a promoted version.
    """
    stem = literal(name, "the model's name")
    if is_version(f"{name}_best.pth"):
        raise UsageError(
            f"expected a model's name without a version number at its end, got {name!r}: {name}_best.pth "
            f"would be taken for a promoted version, which nothing replaces. Try {name.replace('.', '-')!r}."
        )
    return Layout(
        name="saved_models",
        templates={
            "best": f"{stem}_best.pth",
            "periodic": f"{stem}_epoch_{{epochs_finished}}.pth",
            **latest_template(latest, f"{stem}_latest.pth"),
        },
        save=(*latest_rules(latest), EveryEpochs(every), Best(metric, mode)),
        keep=LastK(last),
        metric=metric,
        mode=mode,
        complete=partial(_complete, metric=metric),
        own_latest=False,
        history_file=history_file,
    )


def _complete(state: dict[str, Any], moment: Moment, metric: str) -> dict[str, Any]:
    return fill(
        state,
        {
            "scheduler_state_dict": {},
            **{name: measured(moment, name) for name in ("train_loss", "val_loss", metric)},
            "best_metric": best_value(moment, metric),
            "hyperparameters": {},
        },
    )
