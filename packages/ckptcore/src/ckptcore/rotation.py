"""What rotation keeps and deletes in a folder, decided from what is on disk; each decision has its reason."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ckptcore import durable, folder
from ckptcore.catalogue import Catalogue, Listed
from ckptcore.errors import UsageError
from ckptcore.layouts.layout import Layout
from ckptcore.rules import (
    Decision,
    Entry,
    KeepAll,
    KeepRule,
    Mode,
    finite_score,
    improves,
    metrics_watched,
    plan,
)
from ckptcore.semver import is_version
from ckptcore.verifying import verify

_log = logging.getLogger(__name__)
_ROTATING = ("periodic",)
_OPTIONAL = {f"milestone: {role}" for role in ("stage", "final", "exception")}
_LOOSE = Entry("", None, None, 0.0)
MUST_STAY, MAY_GO, SAFE_TO_DELETE, UNDECIDED = "must stay", "may go", "safe to delete", "yours to decide"


@dataclass(frozen=True)
class Plan:
    """The decisions for every checkpoint file of a folder.

    Attributes:
        decisions: for the files of the run, from old to new.
        untouched: name and reason of the files that rotation never looks at.
        verdicts: for every one of these files, for whoever needs space: "must stay" (best, latest, versions,
            what was pinned by hand), "may go" (kept by a rule or as a milestone, of another run, damaged),
            "safe to delete" (the rule does not keep it), "yours to decide" (foreign, or saved by hand).
    """

    decisions: tuple[Decision, ...]
    untouched: tuple[tuple[str, str], ...]
    verdicts: Mapping[str, str] = field(default_factory=dict)

    @property
    def doomed(self) -> list[str]:
        """The names that would be deleted."""
        return [d.name for d in self.decisions if not d.keep]


def plan_folder(
    directory: Path,
    layout: Layout,
    run_key: str | None,
    keep: KeepRule | None = None,
    catalogue: Catalogue | None = None,
) -> Plan:
    """What rotation would do now.

    Args:
        directory: the folder.
        layout: its layout.
        run_key: the run whose files rotate; None for that of the newest file.
        keep: another keep rule than the layout's.
        catalogue: what lies in the folder, where that was just read.
    """
    catalogue = Catalogue.scan(directory) if catalogue is None else catalogue
    if run_key is None:
        run_key = (catalogue.run_keys() or [""])[-1]
    ours, untouched = _sort_out(catalogue, layout, run_key)
    best = best_name(ours, layout)
    pins = folder.read_pins(directory)
    entries = {file.name: _entry(file, layout, best, pins) for file in ours}
    entries = _count_links_once(_pin_targets(entries, catalogue, pins), ours)
    former = {f.name for f in ours if layout.roles_of(f.name) == ("best",) and not entries[f.name].pins}
    decisions = {
        d.name: d for d in plan([e for n, e in entries.items() if n not in former], keep or layout.keep)
    }
    decisions |= {n: Decision(n, False, f"no longer the best ({best} is)", entries[n].size) for n in former}
    verdicts = {n: SAFE_TO_DELETE if not d.keep else _verdict(entries[n]) for n, d in decisions.items()}
    others = [file for file in catalogue if file.name not in verdicts]
    verdicts |= {f.name: MUST_STAY if f.name in pins else _verdict_on_other(f, run_key) for f in others}
    return Plan(tuple(decisions[file.name] for file in ours), tuple(untouched), verdicts)


def _verdict(entry: Entry) -> str:
    return MAY_GO if set(entry.pins) <= _OPTIONAL else MUST_STAY


def _verdict_on_other(file: Listed, run_key: str) -> str:
    """What can be said of a file that rotation does not look at."""
    if is_version(file.name):
        return MUST_STAY
    if file.header is None:
        return MAY_GO
    return MAY_GO if file.native and file.header.run_key not in (None, run_key) else UNDECIDED


def rotate(
    directory: Path,
    layout: Layout,
    run_key: str,
    *,
    spare: Iterable[str] = (),
    catalogue: Catalogue | None = None,
) -> list[str]:
    """Delete what the layout's rules do not keep; returns the names that went.

    Only called after the newest checkpoint is durable, by the holder of the folder's lock.

    Args:
        directory: the folder.
        layout: its layout.
        run_key: the run whose files rotate.
        spare: names that stay whatever the rules say.
        catalogue: what lies in the folder, where that was just read.
    """
    spared = set(spare)
    doomed = plan_folder(directory, layout, run_key, catalogue=catalogue).doomed
    gone = [name for name in doomed if name not in spared]
    for name in gone:
        durable.remove(directory / name)
    if gone:
        durable.sync_folder(directory)
        _log.info("rotated away: %s", ", ".join(gone))
    return gone


def drop_former_bests(directory: Path, layout: Layout) -> list[str]:
    """Delete the former best files that a kill between commit and rotation left; returns the names that went.

    Only while the best one verifies: of two, one is always whole. By the holder of the folder's lock.
    """
    try:
        found = plan_folder(directory, layout, None, KeepAll())
    except UsageError as error:
        _log.warning("nothing is rotated away: %s", error)
        return []
    best = [d.name for d in found.decisions if d.keep and "best" in layout.roles_of(d.name)]
    if not found.doomed or not best or not all(verify(directory / name).ok for name in best):
        return []
    for name in found.doomed:
        durable.remove(directory / name)
    durable.sync_folder(directory)
    _log.info("rotated away: %s", ", ".join(found.doomed))
    return found.doomed


def keep_former_best(directory: Path, layout: Layout, archived: Path) -> Path | None:
    """Give the best files a name in a dated folder, too: what is best by another metric will replace them.

    They stay where they are, for it may be from them alone that training can go on.

    Returns:
        The folder, or None where there is no best file.
    """
    names = [f.name for f in Catalogue.scan(directory) if "best" in layout.roles_of(f.name)]
    names = [name for name in names if not is_version(name)]
    if not names:
        return None
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_best"
    taken = len(list(archived.glob(f"{stamp}*")))
    target = archived / (f"{stamp}{taken + 1}" if taken else stamp)
    durable.make_folder(target)
    for name in names:
        durable.link_or_copy((directory / name).resolve(), target / name)
    durable.sync_folder(target)
    return target


def best_name(files: Sequence[Listed], layout: Layout) -> str | None:
    """Which file in the role of best is the best one; ties keep the earlier."""
    candidates = [f for f in files if "best" in layout.roles_of(f.name)]
    if layout.metric is None or layout.mode is None:
        return candidates[-1].name if candidates else None
    mode: Mode = "max" if layout.mode == "max" else "min"
    chosen: Listed | None = None
    for file in candidates:
        value = _metric(file, layout.metric)
        if chosen is None or (value is not None and improves(value, _metric(chosen, layout.metric), mode)):
            chosen = file
    return chosen.name if chosen else None


def roles_fed(layout: Layout) -> dict[str, set[str]]:
    """For each metric that a save rule watches, the roles of the files that it makes."""
    found: dict[str, set[str]] = {}
    for rule in layout.save:
        for metric in metrics_watched((rule,)):
            found.setdefault(metric, set()).add(rule.role)
    return found


def best_values(files: Sequence[Listed], layout: Layout) -> dict[str, float]:
    """The values that a new checkpoint must beat: those of the best files on disk, by metric."""
    found: dict[str, float] = {}
    feeds = roles_fed(layout)
    for metric, mode in metrics_watched(layout.save).items():
        for file in files:
            value = _metric(file, metric)
            if (
                value is not None
                and feeds[metric].intersection(layout.roles_of(file.name))
                and improves(value, found.get(metric), mode)
            ):
                found[metric] = value
    return found


def _metric(file: Listed, metric: str) -> float | None:
    return finite_score(file.header.metrics, metric) if file.header is not None else None


def _sort_out(
    catalogue: Catalogue, layout: Layout, run_key: str
) -> tuple[list[Listed], list[tuple[str, str]]]:
    """The files that rotation may look at, and why it leaves the others alone."""
    ours, untouched = [], []
    for file in catalogue:
        if file.header is None:
            untouched.append((file.name, f"damaged: {file.problem}"))
        elif not file.native:
            untouched.append((file.name, f"not written by ckptcore ({file.header.format})"))
        elif file.header.run_key != run_key:
            untouched.append((file.name, f"of another run ({file.header.run_key or 'saved by hand'})"))
        elif not is_version(file.name) and not layout.roles_of(file.name):
            untouched.append((file.name, f"no name of the layout {layout.name}"))
        else:
            ours.append(file)
    return ours, untouched


def _entry(file: Listed, layout: Layout, best: str | None, pins: dict[str, str]) -> Entry:
    header = file.header
    assert header is not None
    return Entry(
        name=file.name,
        epochs_finished=header.epochs_finished,
        global_step=header.global_step,
        created=_unix(header.created, file.modified),
        metrics=header.metrics,
        size=file.size,
        pins=_pins(file, layout, best, pins),
    )


def _pin_targets(
    entries: dict[str, Entry], catalogue: Catalogue, pins: Mapping[str, str]
) -> dict[str, Entry]:
    """What a pinned symbolic link stands for is pinned with it: some tools make such links of hard ones."""
    held: dict[tuple[int, int], str] = {}
    for file in catalogue:
        pinned = file.name in pins or is_version(file.name) or entries.get(file.name, _LOOSE).pins
        if pinned and file.path.is_symlink():
            held.setdefault(file.inode, file.name)
    return entries | {
        file.name: replace(entries[file.name], pins=(f"{held[file.inode]} is a link to it",))
        for file in catalogue
        if file.inode in held and file.name in entries and not entries[file.name].pins
    }


def _count_links_once(entries: dict[str, Entry], ours: Sequence[Listed]) -> dict[str, Entry]:
    """Names of one file free its bytes only with the last: a pinned one holds them, else the first does."""
    counted: set[tuple[int, int]] = set()
    for file in sorted(ours, key=lambda f: not entries[f.name].pins):
        if file.inode in counted:
            entries[file.name] = replace(entries[file.name], size=0)
        counted.add(file.inode)
    return entries


def _pins(file: Listed, layout: Layout, best: str | None, pins: dict[str, str]) -> tuple[str, ...]:
    """Why nothing may delete a file; empty for the ones that rotate."""
    found = [f"pinned by hand: {pins[file.name]}"] if file.name in pins else []
    roles = layout.roles_of(file.name)
    if is_version(file.name):
        return (*found, "version")
    for role in roles:
        if role == "best":
            # A template with the score in it leaves the former best behind under another name.
            found += ["best"] if file.name == best else []
        elif role not in _ROTATING:
            found.append({"latest": "latest"}.get(role, f"milestone: {role}"))
    return tuple(found)


def _unix(created: str | None, modified_ns: int) -> float:
    try:
        return datetime.fromisoformat(created or "").timestamp()
    except ValueError:
        return modified_ns / 1e9
