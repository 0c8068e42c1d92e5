"""What must stay, what may go and what goes: a rotation plan for whoever is short of disk space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptcore import folder
from ckptcore.catalogue import Catalogue
from ckptcore.cli.text import trouble
from ckptcore.errors import UsageError
from ckptcore.pruning import freed_bytes, keep_newest, layout_of
from ckptcore.rotation import Plan, plan_folder


@dataclass(frozen=True)
class Verdict:
    """What happens to a file.

    Attributes:
        name: its name.
        keep: False when rotation deletes it.
        verdict: "must stay", "may go", "safe to delete" or "yours to decide".
        reason: why.
        frees: bytes that rotation frees with it.
    """

    name: str
    keep: bool
    verdict: str
    reason: str
    frees: int

    def as_json(self) -> dict[str, Any]:
        """The file as `--json` shows it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Judged:
    """A folder's files with their verdicts, from old to new, and what deleting frees in all.

    Attributes:
        rule: what decides; None where there is no file to decide about.
        tried: how many of the newest periodic files stay by a rule that is only tried; None for the recorded
            rule.
    """

    directory: Path
    layout: str
    rule: str | None
    files: tuple[Verdict, ...]
    freed: int
    tried: int | None = None

    @property
    def doomed(self) -> list[Verdict]:
        """The files that rotation deletes."""
        return [file for file in self.files if not file.keep]

    def as_json(self) -> dict[str, Any]:
        """The plan as `--json` shows it."""
        files = [file.as_json() for file in self.files]
        head = {"directory": self.directory, "layout": self.layout, "rule": self.rule}
        return {**head, "freed_bytes": self.freed, "files": files}


def judge(directory: Path, keep: int | None = None) -> Judged:
    """The verdict for every checkpoint of a folder.

    Args:
        directory: the folder.
        keep: how many of the newest periodic checkpoints stay; None for the recorded rule.

    Raises:
        UsageError: there is no such folder; or files in it, but no recorded rule and no other given.
    """
    catalogue = Catalogue.scan(directory)
    layout = layout_of(directory)
    if not catalogue:
        return Judged(directory, layout.name, None, (), 0, keep)
    if keep is None and folder.read_policy(directory) is None:
        raise UsageError(
            f"{directory} has no recorded rule: no CheckpointManager has opened it. Try one with --keep N, "
            "or open it with its manager once."
        )
    rule = layout.keep if keep is None else keep_newest(keep)
    plan = plan_folder(directory, layout, None, rule, catalogue)
    verdicts = _verdicts(plan)
    files = tuple(verdicts[file.name] for file in catalogue if file.name in verdicts)
    return Judged(directory, layout.name, rule.describe(), files, freed_bytes(catalogue, plan.doomed), keep)


def _verdicts(plan: Plan) -> dict[str, Verdict]:
    decided = {d.name: Verdict(d.name, d.keep, "", d.reason, 0 if d.keep else d.size) for d in plan.decisions}
    decided |= {name: Verdict(name, True, "", trouble(name, reason), 0) for name, reason in plan.untouched}
    return {n: Verdict(n, v.keep, plan.verdicts[n], v.reason, v.frees) for n, v in decided.items()}
