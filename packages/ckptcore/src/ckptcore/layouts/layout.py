"""A layout: how a team names its checkpoint files, when each is saved, what is kept, what a file holds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from string import Formatter
from typing import Any

from ckptcore.errors import UsageError
from ckptcore.rules import Entry, KeepAll, KeepRule, Progress, SaveRule
from ckptcore.semver import SUFFIXES

_COUNTS = ("epoch", "epochs_finished", "global_step", "stage_number")
_TEXTS = ("stage", "metric_name")
_FIELDS = {*_COUNTS, "metric", *_TEXTS}
_LONGEST_TEXT = 80
_LONGEST_NAME = 255
# Small and large, negative, and what a loop that measures nothing has: every such name must be found again.
_SAMPLES = tuple(
    dict.fromkeys(_COUNTS, number) | dict.fromkeys(_TEXTS, "stage 1") | {"metric": metric}
    for number, metric in (
        *((0, 0.0), (1, 0.5), (12, -0.25), (-1, 1e-9), (1_234_567, 1_234_567.125)),
        *((2, float("nan")), (3, float("-inf"))),
    )
)


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
            problem = _problem(template)
            if problem is not None:
                raise UsageError(
                    f"layout {self.name}: the template {template!r} of {role} {problem}; expected one file "
                    f"name that ends in {' or '.join(SUFFIXES)}, with fields of {sorted(_FIELDS)}."
                )
        for rule in self.save:
            if rule.role not in self.templates:
                raise UsageError(
                    f"layout {self.name}: a rule feeds {rule.role!r} ({rule.describe()}), which has no file "
                    f"name. Name it in templates, or give the rule one of {sorted(self.templates)}."
                )

    def file_name(self, role: str, moment: Moment) -> str:
        """The name of a role's file at a moment.

        Raises:
            UsageError: it is hidden, or longer than a file name can be.
        """
        name = self.templates[role].format(
            epoch=moment.progress.epochs_finished - 1,
            epochs_finished=moment.progress.epochs_finished,
            global_step=moment.progress.global_step,
            stage=_in_a_name(moment.progress.stage),
            stage_number=moment.stage_number,
            metric=moment.metric,
            metric_name=_in_a_name(moment.monitor),
        )
        if name.startswith(".") or len(os.fsencode(name)) > _LONGEST_NAME:
            raise UsageError(
                f"layout {self.name}: the template {self.templates[role]!r} of {role} makes {name!r}; "
                f"expected a name without a dot before it, of at most {_LONGEST_NAME} bytes. "
                "Give the stage a short name."
            )
        return name

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

        Save rules that only the training program knows are left out; a keep rule that only it knows plans
        nothing, and says so.

        Raises:
            UsageError: the record is not one that `policy` made.
        """
        try:
            return Layout(
                name=str(policy["layout"]),
                templates={str(role): str(template) for role, template in dict(policy["templates"]).items()},
                save=_known_rules(policy["save"]),
                keep=_keep_rule(policy["keep"]),
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


@dataclass(frozen=True)
class UnknownKeep(KeepRule):
    """Stands for a keep rule of somebody's own, of which only the record is known here."""

    record: Mapping[str, Any]

    def keeps(self, entries: Sequence[Entry]) -> dict[str, str]:
        raise self._refusal()

    def describe(self) -> str:
        raise self._refusal()

    def to_dict(self) -> dict[str, object]:
        return dict(self.record)

    def _refusal(self) -> UsageError:
        return UsageError(
            f"the recorded keep rule {str(self.record.get('kind'))[:80]!r} is not known here, as it is the "
            "training program's own. Its save deletes what it does not keep; try another one with --keep N."
        )


def _keep_rule(record: Any) -> KeepRule:
    try:
        return KeepRule.from_dict(record)
    except UsageError:
        if not isinstance(record, Mapping) or not isinstance(record.get("kind"), str):
            raise
        return UnknownKeep(record)


def _known_rules(records: Sequence[Any]) -> tuple[SaveRule, ...]:
    known = []
    for record in records:
        try:
            known.append(SaveRule.from_dict(record))
        except UsageError:
            if not isinstance(record, Mapping) or not isinstance(record.get("kind"), str):
                raise
    return tuple(known)


def _in_a_name(text: str | None) -> str:
    """Text for a file name: "val/f1" must not lead into another folder."""
    return re.sub(r"[/\\\0]", "_", text or "").lstrip(".")[:_LONGEST_TEXT]


@lru_cache(maxsize=256)
def _problem(template: str) -> str | None:
    """What is wrong with a template: names that it makes must be found again, and found quickly."""
    try:
        fields = [(name, form or "") for _, name, form, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        return f"cannot be read ({error})"
    unknown = sorted({name for name, _ in fields} - _FIELDS)
    if unknown or "/" in template or not template:
        return f"has {unknown or 'a path'}"
    if template.startswith(".") or not template.endswith(SUFFIXES):
        return "makes names that nobody lists"
    told = [name for name, _ in fields if name in _TEXTS]
    if len(told) > len(set(told)):
        return "has a text more than once"
    # A width of a thousand million would fill the memory: no name is longer than 255.
    if len(fields) > _LONGEST_NAME or any("{" in form or re.search(r"\d{4}", form) for _, form in fields):
        return "has a field without sense"
    try:
        names = [template.format(**sample) for sample in _SAMPLES]
    except (ValueError, OverflowError) as error:
        return f"cannot be filled in ({error})"
    lost = next(
        (n for n in names if len(os.fsencode(n)) > _LONGEST_NAME or not _pattern(template).fullmatch(n)), None
    )
    return None if lost is None else f"makes the name {lost[:100]!r}, which is not found again"


@lru_cache(maxsize=256)
def _pattern(template: str) -> re.Pattern[str]:
    """What file names a template makes."""
    parts = []
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if name is None:
            continue
        if name in _COUNTS:
            parts.append(r"-?\d++")
        elif name == "metric":
            # Possessive, as are the counts: fields side by side must not be tried in every division.
            parts.append(r"(?>0*+nan|-?0*+inf|-?\d++(?:\.\d++)?(?:e[+-]?\d++)?)")
        else:
            parts.append(r"[^/]*?")
    return re.compile("".join(parts))
