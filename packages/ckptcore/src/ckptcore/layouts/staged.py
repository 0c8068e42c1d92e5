"""The layout of a staged fine-tuning: one best file with its score in its name, one for each stage's end."""

from __future__ import annotations

from functools import partial
from typing import Any

from ckptcore.layouts.filling import fill, latest_rules, latest_template, measured, metric_literal, series
from ckptcore.layouts.layout import Layout, Moment
from ckptcore.rules import Best, Final, Mode, StageEnds

_METRICS = ("f1", "sensitivity", "specificity", "accuracy")
_NAMES = {name: (name, f"val_{name}") for name in _METRICS}
_HISTORY = {
    "train_loss": ("train_loss",),
    "val_loss": ("val_loss",),
    "val_f1": _NAMES["f1"],
    "val_sensitivity": _NAMES["sensitivity"],
    "val_specificity": _NAMES["specificity"],
    "optimal_threshold": ("optimal_threshold",),
    "separation": ("separation",),
}


def staged(metric: str = "f1", mode: Mode = "max", *, latest: bool = True) -> Layout:
    """``best_model_f1_{score}.pth``, and ``checkpoint_epoch05_stage1_f1_{score}.pth`` at each stage's end.

    ``epoch`` counts finished epochs. Metrics may be reported as ``f1`` or ``val_f1``, and so on.

    Args:
        metric: the metric of best, as the loop reports it.
        mode: "min" for losses, "max" for scores.
        latest: whether to keep ``latest_model.pth`` too, written after every epoch.
    """
    score = f"{metric_literal(metric.removeprefix('val_'))}_{{metric:.4f}}"
    return Layout(
        name="staged",
        templates={
            "best": f"best_model_{score}.pth",
            "stage": f"checkpoint_epoch{{epochs_finished:02d}}_stage{{stage_number}}_{score}.pth",
            **latest_template(latest, "latest_model.pth"),
        },
        save=(*latest_rules(latest), Best(metric, mode), StageEnds(), Final(role="stage")),
        epoch_counts="finished",
        metric=metric,
        mode=mode,
        complete=partial(_complete, metric=metric.removeprefix("val_")),
        own_latest=False,
    )


def _complete(state: dict[str, Any], moment: Moment, metric: str) -> dict[str, Any]:
    names = {metric: (metric, f"val_{metric}"), **_NAMES}
    stage = {} if moment.progress.stage is None else {"stage": moment.progress.stage}
    return fill(
        state,
        {
            "val_metrics": {
                name: measured(moment, *names[name]) for name in dict.fromkeys((*_METRICS, metric))
            },
            "optimal_threshold": measured(moment, "optimal_threshold"),
            "history": _history(moment),
            **stage,
        },
    )


def _history(moment: Moment) -> dict[str, list[float]]:
    """The lists that readers expect, and those of metrics that none of them tells of."""
    told = {name for names in (*_HISTORY.values(), *_NAMES.values()) for name in names}
    more = {name: list(values) for name, values in moment.history.items() if name not in told}
    return {key: series(moment, *names) for key, names in _HISTORY.items()} | more
