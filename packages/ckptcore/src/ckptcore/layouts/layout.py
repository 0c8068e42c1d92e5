"""A layout: how a team names its checkpoint files, when each is saved, what is kept, what a file holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from string import Formatter
from typing import Any

from ckptcore.errors import UsageError
from ckptcore.rules import KeepAll, KeepRule, Progress, SaveRule

_FIELDS = {"epoch", "epochs_finished", "global_step", "stage", "stage_number", "metric", "metric_name"}


@dataclass(frozen=True)
class Moment:
    """Everything a layout may put into a file name or a state.

    Attributes:
        progress: where the loop is.
        history: what was measured in every finished epoch, by metric.
        best: best value of each watched metric, this moment's included.
        best_epoch: how many epochs were finished at the best value of the layout's metric.
        monitor: name of the metric that decides which checkpoint is best.
        stage_number: number of the stage, from 1; 0 where there are none.
        timestamp: UTC, ISO 8601.
    """

    progress: Progress
    history: Mapping[str, list[float]]
    best: Mapping[str, float]
    best_epoch: int | None
    monitor: str | None
    stage_number: int
    timestamp: str

    @property
    def metric(self) -> float:
        """The monitored metric now, else in the last finished epoch; NaN where it was not measured."""
        told = self.history.get(self.monitor or "", [])
        at = self.progress.epochs_finished - 1
        last = told[at] if 0 <= at < len(told) else float("nan")
        return float(self.progress.metrics.get(self.monitor or "", last))


Complete = Callable[[dict[str, Any], Moment], dict[str, Any]]
Recall = Callable[[Mapping[str, Any]], dict[str, list[float]]]


def as_given(state: dict[str, Any], moment: Moment) -> dict[str, Any]:
    """Leave the state as the loop made it."""
    return state


def recall_history(checkpoint: Mapping[str, Any]) -> dict[str, list[float]]:
    """The lists of a checkpoint's ``history``, by metric."""
    history = checkpoint.get("history")
    if not isinstance(history, Mapping):
        return {}
    return {str(name): list(values) for name, values in history.items() if isinstance(values, list)}


@dataclass(frozen=True)
class Layout:
    """File names, save rules, keep rule and contents of one folder of checkpoints.

    Attributes:
        name: how it is called in headers and messages.
        templates: role to file name, with the fields epoch (index from 0), epochs_finished, global_step,
            stage, stage_number, metric and metric_name, as in ``"epoch_{epochs_finished:03d}.pt"``.
        save: when to save; each rule feeds the role that it names.
        keep: which of the periodic files rotation keeps.
        epoch_counts: what ``epoch`` in the file counts: "index" (from 0, of the last finished epoch) or
            "finished".
        metric: the metric that decides which checkpoint is best; None if none does.
        mode: "min" or "max".
        complete: fills in the keys that this layout's readers expect.
        recall: finds the history in a checkpoint of this layout that is resumed from.
        weights_only: roles whose files hold the weights and the numbers, without optimizer, scheduler and
            random state.
        own_latest: whether the layout itself names a latest; where not, the one kept beside it is not
            published.
        history_file: the JSON file beside the checkpoints that tells what every epoch measured; None for
            none.
    """

    name: str
    templates: Mapping[str, str]
    save: tuple[SaveRule, ...]
    keep: KeepRule = field(default_factory=KeepAll)
    epoch_counts: str = "index"
    metric: str | None = None
    mode: str | None = None
    complete: Complete = as_given
    recall: Recall = recall_history
    weights_only: frozenset[str] = frozenset()
    own_latest: bool = True
    history_file: str | None = None

    def __post_init__(self) -> None:
        if self.epoch_counts not in ("index", "finished"):
            raise UsageError(
                f"layout {self.name}: epoch_counts is 'index' or 'finished', got {self.epoch_counts!r}."
            )
        for role, template in self.templates.items():
            unknown = {name for _, name, _, _ in Formatter().parse(template) if name} - _FIELDS
            if unknown or "/" in template or not template:
                raise UsageError(
                    f"layout {self.name}: the template {template!r} of {role} has "
                    f"{sorted(unknown) or 'a path'}; expected one file name with fields of {sorted(_FIELDS)}."
                )
        for rule in self.save:
            if rule.role not in self.templates:
                raise UsageError(
                    f"layout {self.name}: a rule feeds {rule.role!r} ({rule.describe()}), which has no file "
                    f"name. Name it in templates, or give the rule one of {sorted(self.templates)}."
                )

    def file_name(self, role: str, moment: Moment) -> str:
        """The name of a role's file at a moment."""
        return self.templates[role].format(
            epoch=moment.progress.epochs_finished - 1,
            epochs_finished=moment.progress.epochs_finished,
            global_step=moment.progress.global_step,
            stage=_in_a_name(moment.progress.stage),
            stage_number=moment.stage_number,
            metric=moment.metric,
            metric_name=_in_a_name(moment.monitor),
        )

    def roles_of(self, file_name: str) -> tuple[str, ...]:
        """The roles whose template a file name fits."""
        return tuple(
            role for role, template in self.templates.items() if _pattern(template).fullmatch(file_name)
        )

    def with_rules(self, save: tuple[SaveRule, ...] | None = None, keep: KeepRule | None = None) -> Layout:
        """The same layout with other rules."""
        return replace(
            self, save=self.save if save is None else save, keep=self.keep if keep is None else keep
        )

    def policy(self) -> dict[str, Any]:
        """What rotation needs to know, as JSON values: `ckpt plan` reads it from the folder."""
        return {
            "layout": self.name,
            "templates": dict(self.templates),
            "save": [rule.to_dict() for rule in self.save],
            "keep": self.keep.to_dict(),
            "epoch_counts": self.epoch_counts,
            "metric": self.metric,
            "mode": self.mode,
            "weights_only": sorted(self.weights_only),
            "own_latest": self.own_latest,
            "history_file": self.history_file,
        }

    @staticmethod
    def from_policy(policy: Mapping[str, Any]) -> Layout:
        """The layout of a recorded policy; its files' contents are as given.

        Raises:
            UsageError: the record is not one that `policy` made.
        """
        try:
            return Layout(
                name=str(policy["layout"]),
                templates={str(role): str(template) for role, template in dict(policy["templates"]).items()},
                save=tuple(SaveRule.from_dict(rule) for rule in policy["save"]),
                keep=KeepRule.from_dict(policy["keep"]),
                epoch_counts=str(policy["epoch_counts"]),
                metric=policy["metric"],
                mode=policy["mode"],
                weights_only=frozenset(map(str, policy["weights_only"])),
                own_latest=bool(policy["own_latest"]),
                history_file=policy.get("history_file"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the recorded policy has another form ({error!r}); open the folder with its manager again."
            ) from error


def _in_a_name(text: str | None) -> str:
    """Text for a file name: "val/f1" must not lead into another folder."""
    return re.sub(r"[/\\\0]", "_", text or "").lstrip(".")


@lru_cache(maxsize=256)
def _pattern(template: str) -> re.Pattern[str]:
    """What file names a template makes."""
    parts = []
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if name is None:
            continue
        if name in ("epoch", "epochs_finished", "global_step", "stage_number"):
            parts.append(r"-?\d+")
        elif name == "metric":
            parts.append(r"(?:-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|nan|-?inf)")
        else:
            parts.append(r"[^/]*?")
    return re.compile("".join(parts))
