"""A folder's checkpoints as `ckpt list` and `ckpt latest` show them: the names of one file together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ckptcore import folder
from ckptcore.catalogue import Catalogue, Listed
from ckptcore.cli.text import trouble
from ckptcore.errors import CheckpointError
from ckptcore.header import Header
from ckptcore.kinds import ROLES, kind_of_name
from ckptcore.layouts.layout import Layout
from ckptcore.pruning import NamesAlone, layout_of
from ckptcore.rotation import best_name
from ckptcore.semver import is_version

OK, DAMAGED, OTHER_RUN, FOREIGN = "ok", "damaged", "other run", "foreign"


@dataclass(frozen=True)
class Item:
    """A file of the folder.

    Attributes:
        names: its names, hard links to one file; the one that will stay longest first.
        file: what the catalogue knows of it.
        status: "ok", "damaged", "other run" or "foreign".
        roles: what its names and its header call it, the periodic ones without a word.
        best: whether it is the best one of the run.
    """

    names: tuple[str, ...]
    file: Listed
    status: str
    roles: tuple[str, ...]
    best: bool

    @property
    def finding(self) -> bool:
        """Whether it should not be here as it is."""
        return self.status in (DAMAGED, OTHER_RUN)

    @property
    def header(self) -> Header | None:
        """What the file says of itself."""
        return self.file.header

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """What was measured at it."""
        return self.file.header.metrics if self.file.header else {}

    def as_json(self) -> dict[str, Any]:
        """The file as `--json` shows it."""
        header = self.file.header
        return {
            "name": self.names[0],
            "names": list(self.names),
            "status": self.status,
            "problem": self.file.problem,
            "format": header.format if header else None,
            "roles": list(self.roles),
            "best": self.best,
            "epochs_finished": header.epochs_finished if header else None,
            "global_step": header.global_step if header else None,
            "metrics": self.metrics,
            "reason": header.reason if header else None,
            "run_key": header.run_key if header else None,
            "model_digest": header.model_digest if header else None,
            "created": header.created if header else None,
            "size": self.file.size,
        }


@dataclass(frozen=True)
class Listing:
    """All checkpoint files of a folder, from old to new.

    Attributes:
        run_key: the run of the newest file.
        layout: the recorded layout, None where there is none.
        metric: the metric that decides which is best, where that is recorded.
    """

    directory: Path
    items: tuple[Item, ...]
    run_key: str | None
    layout: Layout | None

    @property
    def metric(self) -> str | None:
        """The metric that decides which checkpoint is best; in a published folder the files tell it."""
        if self.layout:
            return self.layout.metric
        told = (item.header.metadata.get("best") for item in reversed(self.items) if item.header)
        values = (one.get("values") for one in told if isinstance(one, dict))
        return next((str(name) for one in values if isinstance(one, dict) for name in one), None)

    @property
    def names(self) -> int:
        """How many file names there are."""
        return sum(len(item.names) for item in self.items)

    @property
    def real_bytes(self) -> int:
        """Bytes on disk: every file once, however many names it has."""
        return sum(item.file.size for item in self.items)

    @property
    def named_bytes(self) -> int:
        """Bytes that the files would take without hard links."""
        return sum(item.file.size * len(item.names) for item in self.items)

    def of_status(self, status: str) -> list[Item]:
        """The files of one status."""
        return [item for item in self.items if item.status == status]

    def other_runs(self) -> list[str]:
        """Run keys of the files that another run left here."""
        keys = (item.header.run_key for item in self.of_status(OTHER_RUN) if item.header)
        return list(dict.fromkeys(key or "saved by hand" for key in keys))

    def metric_names(self) -> list[str]:
        """All metrics: the deciding one first, then what the loop gave, then what the states hold."""
        given: dict[str, None] = {}
        derived: dict[str, None] = {}
        for item in self.items:
            if item.header is not None:
                told = item.header.metadata.get("metrics")
                given.update(dict.fromkeys(told if isinstance(told, dict) else ()))
                derived.update(dict.fromkeys(item.metrics))
        first = [self.metric] if self.metric in derived else []
        rest = [name for name in derived if not name.startswith("best_")]
        loop = sorted((name for name in given if name in derived), key=_place)
        return list(dict.fromkeys([*first, *loop, *rest]))


def _place(metric: str) -> int:
    """Validation first, training last."""
    return 0 if metric.startswith("val") else 2 if metric.startswith("train") else 1


def list_folder(directory: Path) -> Listing:
    """Read a folder's headers and sort out what belongs together.

    Raises:
        UsageError: there is no such folder.
    """
    catalogue = Catalogue.scan(directory)
    recorded = folder.read_policy(directory)
    layout = recorded or layout_of(directory)
    keys = catalogue.run_keys()
    run_key = keys[-1] if keys else None
    best = best_name(catalogue.of_run(run_key), layout) if run_key else None
    groups: dict[tuple[int, int], list[Listed]] = {}
    for file in catalogue:
        groups.setdefault(file.inode, []).append(file)
    items = [_item(group, layout, run_key, best) for group in groups.values()]
    return Listing(directory, tuple(items), run_key, recorded)


def _item(group: Sequence[Listed], layout: Layout, run_key: str | None, best: str | None) -> Item:
    names = sorted((f.name for f in group), key=lambda name: ("periodic" not in layout.roles_of(name), name))
    roles = {role: None for name in names for role in _roles(name, layout)}
    is_best = best in names
    if not isinstance(layout, NamesAlone) and not is_best:
        roles.pop("best", None)  # A former best under a name of its own is the best no longer.
    return Item(tuple(names), group[0], _status(group[0], names, layout, run_key), tuple(roles), is_best)


def _roles(name: str, layout: Layout) -> list[str]:
    if is_version(name):
        return ["version"]
    if isinstance(layout, NamesAlone):
        kind = kind_of_name(name)
        return [kind] if kind in ROLES else []
    return [role for role in layout.roles_of(name) if role != "periodic"]


def _status(file: Listed, names: Sequence[str], layout: Layout, run_key: str | None) -> str:
    header = file.header
    if header is None:
        return DAMAGED
    if not file.native:
        return FOREIGN
    if header.run_key == run_key or any(is_version(name) for name in names):
        return OK  # A promoted version stays when later runs come: that is what it is for.
    if header.run_key is None and not any(
        layout.roles_of(name) for name in names if not isinstance(layout, NamesAlone)
    ):
        return OK  # Saved by hand, under a name that the run never uses.
    return OTHER_RUN


@dataclass(frozen=True)
class Choice:
    """The checkpoint to go on from.

    Attributes:
        file: the newest one that verifies; None where there is none.
        names: its names, hard links to one file.
        passed_over: names of newer ones, and why they cannot be used.
        recorded: whether the folder's manager recorded its layout.
    """

    file: Listed | None
    names: tuple[str, ...]
    passed_over: tuple[tuple[str, str], ...]
    recorded: bool

    @property
    def header(self) -> Header | None:
        """The file's header under its own path; names of one file were read under the first of them."""
        file = self.file
        return replace(file.header, path=file.path) if file and file.header else None


def choose(directory: Path) -> Choice:
    """What ``resume("auto")`` of the folder's manager would take; it is checked, and nothing is moved.

    Raises:
        UsageError: there is no such folder.
    """
    from ckptcore.loading import load
    from ckptcore.resume import NONFINITE, SPOILT, candidates, is_start
    from ckptcore.verifying import verify

    recorded = folder.read_policy(directory) is not None
    passed_over = []
    catalogue = Catalogue.scan(directory)
    layout = layout_of(directory)
    # Where names alone tell, a best file, which may hold weights only, comes after the numbered ones.
    files = sorted(candidates(catalogue, layout, None), key=lambda f: layout.roles_of(f.name) == ("named",))
    for file in files:
        try:
            report = verify(file.path)
        except (CheckpointError, OSError) as error:
            passed_over.append((file.name, trouble(file.name, str(error))))
            continue
        if report.ok and file.header and file.header.reason == NONFINITE and not is_start(load(file.path)):
            passed_over.append((file.name, f"it {SPOILT}"))
        elif report.ok:
            names = (file.name, *(f.name for f in catalogue if f.inode == file.inode and f.name != file.name))
            return Choice(file, names, tuple(passed_over), recorded)
        else:
            passed_over.append((file.name, "; ".join(report.findings)))
    return Choice(None, (), tuple(passed_over), recorded)
