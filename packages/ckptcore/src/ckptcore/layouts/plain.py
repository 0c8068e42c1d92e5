"""The layout for a loop that no other layout was made for: latest, best, every epoch's file, final."""

from __future__ import annotations

from typing import Literal

from ckptcore.layouts.layout import Layout
from ckptcore.rules import Best, EveryEpochs, Final, LastK, OnException, OnSignal, SaveRule


def plain(
    metric: str | None = None,
    mode: Literal["min", "max"] = "min",
    *,
    every: int = 1,
    last: int = 3,
    suffix: str = ".pt",
) -> Layout:
    """``latest.pt`` each epoch, ``epoch_N.pt`` of which the last few stay, ``best.pt``, ``final.pt``.

    Args:
        metric: the metric that decides which checkpoint is best; none if not given.
        mode: "min" for losses, "max" for scores.
        every: epochs between two periodic files.
        last: how many periodic files stay.
        suffix: file ending.
    """
    rules: list[SaveRule] = [
        EveryEpochs(1, role="latest"),
        OnSignal(),
        EveryEpochs(every),
        Final(),
        OnException(),
    ]
    if metric is not None:
        rules.append(Best(metric, mode))
    return Layout(
        name="plain",
        templates={
            "periodic": "epoch_{epochs_finished}" + suffix,
            "best": "best" + suffix,
            "latest": "latest" + suffix,
            "final": "final" + suffix,
            "exception": "exception" + suffix,
        },
        save=tuple(rules),
        keep=LastK(last),
        metric=metric,
        mode=mode if metric is not None else None,
    )
