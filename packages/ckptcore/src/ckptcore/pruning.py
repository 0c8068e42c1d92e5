"""Deleting old checkpoints by hand: the newest few stay, and everything pinned. Never beside a writer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ckptcore import durable, folder
from ckptcore.catalogue import Catalogue, Listed
from ckptcore.errors import UsageError
from ckptcore.kinds import LATEST, PERIODIC, VERSION, kind_of_name
from ckptcore.layouts.layout import Layout
from ckptcore.lease import Lease
from ckptcore.rotation import plan_folder
from ckptcore.rules import KeepRule, LastK, Nothing


@dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Attributes:
        removed: the names that went, from old to new.
        freed: bytes that the file system has back.
    """

    removed: tuple[str, ...]
    freed: int


class NamesAlone(Layout):
    """The layout of a folder that recorded none: names tell the roles; what no count is in is pinned."""

    def roles_of(self, file_name: str) -> tuple[str, ...]:
        kind = kind_of_name(file_name)
        if kind == VERSION:
            return ()
        # Which of several best files is the best is not known here, so none of them is called that.
        return (kind,) if kind in (PERIODIC, LATEST) else ("named",)


def layout_of(directory: Path) -> Layout:
    """The layout that a folder's manager recorded, or `NamesAlone`."""
    return folder.read_policy(directory) or NamesAlone(name="told by names alone", templates={}, save=())


def keep_newest(count: int) -> KeepRule:
    """The keep rule of `ckpt clean --keep N`; 0 leaves what is pinned.

    Raises:
        UsageError: the count is negative.
    """
    if count < 0:
        raise UsageError(f"expected how many periodic checkpoints to keep, 0 or more, got {count}.")
    return LastK(count) if count else Nothing()


def prune(directory: Path, keep: int, agreed: Collection[str] | None = None) -> Pruned:
    """Delete all but the newest periodic checkpoints and what is pinned, holding the folder's lock.

    Args:
        directory: the folder.
        keep: how many of the newest periodic checkpoints stay.
        agreed: nothing but these names goes, whatever was saved since they were shown; None for no such list.

    Raises:
        FolderBusy: a training run is writing to the folder.
    """
    Catalogue.scan(directory)
    lease = Lease(directory)
    lease.acquire()
    try:
        catalogue = Catalogue.scan(directory)
        plan = plan_folder(directory, layout_of(directory), None, keep_newest(keep), catalogue)
        doomed = [name for name in plan.doomed if agreed is None or name in agreed]
        for name in doomed:
            durable.remove(directory / name)
        if doomed:
            durable.sync_folder(directory)
    finally:
        lease.release()
    return Pruned(tuple(doomed), freed_bytes(catalogue, doomed))


def freed_bytes(catalogue: Catalogue, names: Collection[str]) -> int:
    """Bytes that deleting these files frees: none for a file that keeps another name, here or elsewhere."""
    groups: dict[tuple[int, int], list[Listed]] = {}
    for file in catalogue:
        if file.name in names:
            groups.setdefault(file.inode, []).append(file)
    return sum(files[0].size for files in groups.values() if len(files) >= files[0].links)
