"""The layout of a run folder, named as Lightning names its files, for loops that are not Lightning's."""

from __future__ import annotations

from ckptcore.layouts.filling import latest_rules, latest_template, metric_literal
from ckptcore.layouts.layout import Layout
from ckptcore.rules import Best, Mode


def run_folder(metric: str = "val_f1", mode: Mode = "max", *, latest: bool = True) -> Layout:
    """``best-epoch02-val_f1-0.713.ckpt``, only the best; ``epoch`` is Lightning's index from 0.

    Args:
        metric: the metric of best, as the loop reports it.
        mode: "min" for losses, "max" for scores.
        latest: whether to keep ``last.ckpt`` too, written after every epoch.
    """
    return Layout(
        name="run_folder",
        templates={
            "best": f"best-epoch{{epoch:02d}}-{metric_literal(metric)}-{{metric:.3f}}.ckpt",
            **latest_template(latest, "last.ckpt"),
        },
        save=(*latest_rules(latest), Best(metric, mode)),
        epoch_counts="index",
        metric=metric,
        mode=mode,
        own_latest=False,
    )
