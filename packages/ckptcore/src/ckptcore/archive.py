"""Putting a folder of checkpoints away: packed, read back, compared byte for byte, and only then deleted.

Everything in the folder is packed; what is deleted is checkpoints and the files that belong to them alone.

At every moment either the originals stand or an archive that was verified after it reached the disk. What a
kill leaves is one or the other, or both. The archive is plain tar, compressed: ``tar -xf`` unpacks it.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from ckptcore import durable, folder
from ckptcore.cards import pinned_names
from ckptcore.catalogue import SUFFIXES as CHECKPOINTS
from ckptcore.errors import CheckpointError, NothingThere, UsageError
from ckptcore.lease import Lease
from ckptcore.packing import SUFFIXES, Member, Original, pack, read_back, suffix_of
from ckptcore.tree import walk

_log = logging.getLogger(__name__)
_KEPT_RECORDS = ("policy.json", "pins.json")
_HISTORY = "training_history.json"
_RUN_RECORDS = frozenset(
    {"config.json", "training_summary.json", "classification_report.json", "minimal_logging.json"}
)
_SET_ASIDE = re.compile(r"\.damaged\d*$")
NO_CHECKPOINT = "packed, and no checkpoint"
"""Why a file stays that does not belong to checkpoints."""


@dataclass(frozen=True)
class Kept:
    """A file that stays in the folder, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ArchiveReport:
    """What `archive` did.

    Attributes:
        path: the archive.
        members: what is in it.
        removed: names that were deleted from the folder.
        kept: names that stay there.
        original_bytes: bytes of the packed files, names of one file counted once.
        archive_bytes: bytes of the archive.
    """

    path: Path
    members: tuple[Member, ...]
    removed: tuple[str, ...]
    kept: tuple[Kept, ...]
    original_bytes: int
    archive_bytes: int


def archive_name(directory: str | os.PathLike[str], day: date | None = None) -> str:
    """The usual name of a folder's archive: ``archived_xray_20260131.tar.zst``.

    Args:
        directory: the folder.
        day: its date; today (UTC) by default.
    """
    shown = day or datetime.now(UTC).date()
    return f"archived_{Path(directory).resolve().name}_{shown:%Y%m%d}{SUFFIXES[0]}"


def archive(
    directory: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    remove: bool = True,
    include_versions: bool = False,
) -> ArchiveReport:
    """Pack a folder into one file, prove that the file holds everything, and delete the checkpoints.

    Deleted are checkpoint files, those set aside as damaged, and the JSON files that managers write beside
    them; programs, data and whatever else lies there is packed and stays. Promoted versions, their cards and
    files pinned by hand are packed and stay as well. Hidden files stay and are not packed, but for the record
    of the folder's rules and pins.

    Args:
        directory: the folder, with those below it.
        to: the archive, outside the folder, ``.tar.zst`` or ``.tar.gz``.
        remove: whether the originals go once the archive is proven.
        include_versions: whether versions and pinned files go as well.

    Raises:
        NothingThere: the folder holds no file, or none but the record of its rules and pins.
        UsageError: the name is taken, of another kind, or in the folder.
        FolderBusy: a training run writes to the folder.
        DamagedCheckpoint: what was read back is not what is in the folder; nothing was deleted.
        DiskFull: the archive does not fit; nothing was changed.
        OSError: a folder or a file cannot be read; nothing was changed.
    """
    if not os.fspath(directory) or not os.fspath(to):
        raise UsageError("expected a folder to archive and a file to make, got an empty path.")
    source, target = Path(directory), Path(to)
    _check_target(source, target)
    with _sole_writer(source, remove):
        found, kept = _list(source)
        if all(file.path.parent.name == folder.HIDDEN for file in found):
            raise NothingThere(f"{source} holds no files to archive.")
        durable.make_folder(target.parent)
        durable.require_writable(target.parent)
        pinned = _strangers(found, include_versions)
        pinned |= {} if include_versions else _pinned(source, found)
        if remove:
            for parent in {file.path.parent for file in found if file.name not in pinned}:
                durable.require_writable(parent)
        members = _archive(source, target, found)
        kept += [Kept(name, reason) for name, reason in sorted(pinned.items())]
        removed = _remove(found, pinned, kept) if remove else ()
    return ArchiveReport(
        path=target,
        members=members,
        removed=removed,
        kept=tuple(kept),
        original_bytes=sum({f.inode: f.status.st_size for f in found}.values()),
        archive_bytes=target.stat().st_size,
    )


def _archive(source: Path, target: Path, found: Sequence[Original]) -> tuple[Member, ...]:
    """Make the archive under a hidden name, prove it, and only then give it its own."""
    try:
        temporary = pack(source, target, found)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename or target} went away while it was packed; somebody writes to {source}. "
            "Nothing was changed. Wait until that has ended."
        ) from error
    try:
        members = read_back(temporary, target, source, found)
        durable.claim(temporary, target)
    except FileExistsError as error:
        raise UsageError(f"{target} exists already; somebody else made it just now.") from error
    finally:
        durable.remove_quietly(temporary)
    durable.sync_folder(target.parent)
    return members


def _check_target(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UsageError(f"expected a folder to archive, got {source}, which is no folder.")
    if suffix_of(target) is None:
        raise UsageError(f"expected an archive that ends in {' or '.join(SUFFIXES)}, got {target.name}.")
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{target} lies in the folder that it shall hold. Give a place outside {source}.")
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already, and an archive is never replaced. Give another name.")


def _list(source: Path) -> tuple[list[Original], list[Kept]]:
    """The files to pack, sorted by name, and those that are left alone."""
    found: list[Original] = []
    kept: list[Kept] = []
    for where, folders, names in walk(source):
        at = Path(where)
        record = at.name == folder.HIDDEN and at != source
        for name in [n for n in folders if (at / n).is_symlink()]:
            kept.append(Kept((at / name).relative_to(source).as_posix(), "a symbolic link"))
        folders[:] = (
            [] if record else sorted(n for n in folders if not n.startswith(".") or n == folder.HIDDEN)
        )
        for name in sorted(names):
            path = at / name
            shown = path.relative_to(source).as_posix()
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue  # Rotated away by its writer while we were looking.
            if not stat.S_ISREG(status.st_mode):
                kept.append(
                    Kept(shown, "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file")
                )
            elif name in _KEPT_RECORDS if record else not name.startswith("."):
                found.append(Original(shown, path, status))
    return sorted(found, key=lambda f: f.name), kept


@contextmanager
def _sole_writer(source: Path, remove: bool) -> Iterator[None]:
    """Hold every checkpoint folder below, so that no run saves into what is being put away.

    A copy leaves nothing behind: it holds only those that once had a writer and that it may write to.
    """
    with ExitStack() as held:
        for where, folders, _ in walk(source):
            managed = folder.HIDDEN in folders
            folders[:] = [name for name in folders if not name.startswith(".")]  # They stay as they are.
            if managed:
                if not remove and not _may_be_held(Path(where)):
                    continue
                lease = Lease(Path(where))
                lease.acquire()
                held.callback(lease.release)
        yield


def _may_be_held(directory: Path) -> bool:
    """Whether a folder once had a writer, and we may write to it."""
    lock = folder.hidden(directory) / "writer.lock"
    return lock.exists() and os.access(lock, os.W_OK) and os.access(lock.parent, os.W_OK)


def _strangers(found: Sequence[Original], include_versions: bool) -> dict[str, str]:
    """The packed files that do not belong to checkpoints, with why they stay."""
    beside: dict[Path, list[Original]] = {}
    for file in found:
        beside.setdefault(file.path.parent, []).append(file)
    reasons: dict[str, str] = {}
    for parent, files in beside.items():
        if parent.name != folder.HIDDEN:
            ours = _ours(parent, {file.path.name for file in files}, include_versions)
            reasons |= {file.name: NO_CHECKPOINT for file in files if file.path.name not in ours}
    return reasons


def _ours(parent: Path, names: set[str], include_versions: bool) -> set[str]:
    """The names in a folder that belong to checkpoints: the files, and what is written beside them."""
    ours = {name for name in names if _SET_ASIDE.sub("", name).endswith(CHECKPOINTS)}
    if any(name.endswith(".ckpt") for name in ours):
        ours |= _RUN_RECORDS
    if include_versions:
        ours |= pinned_names(parent)
    try:
        layout = folder.read_policy(parent)
    except CheckpointError as error:
        _log.warning("the policy of %s cannot be read. %s", parent, error)
        layout = None
    if ours or layout is not None:
        ours.add(_HISTORY)
    if layout is not None and layout.history_file and layout.history_file.endswith(".json"):
        ours.add(layout.history_file)
    return ours


def _pinned(source: Path, found: Sequence[Original]) -> dict[str, str]:
    """The packed files that stay, with why: versions and their cards, what somebody pinned, the pins."""
    reasons: dict[str, str] = {}
    for parent in sorted({file.path.parent for file in found}):
        at = "" if parent == source else parent.relative_to(source).as_posix() + "/"
        if parent.name == folder.HIDDEN:
            reasons |= {
                file.name: "the folder's rules and pins" for file in found if file.path.parent == parent
            }
            continue
        reasons |= {at + name: "a promoted version" for name in pinned_names(parent)}
        try:
            reasons |= {at + name: f"pinned by hand: {why}" for name, why in folder.read_pins(parent).items()}
        except CheckpointError as error:
            _log.warning("the pins of %s cannot be read; nothing of it is deleted. %s", parent, error)
            reasons |= {f.name: "the folder's pins cannot be read" for f in found if f.path.parent == parent}
    names = {file.name for file in found}
    return {name: why for name, why in reasons.items() if name in names}


def _remove(found: Sequence[Original], pinned: dict[str, str], kept: list[Kept]) -> tuple[str, ...]:
    """Delete the originals that are still what was packed."""
    removed = []
    for file in found:
        if file.name in pinned or file.path.parent.name == folder.HIDDEN:
            continue
        if not file.is_unchanged():
            kept.append(Kept(file.name, "changed while it was archived"))
            continue
        durable.remove(file.path)
        removed.append(file.name)
    for parent in {file.path.parent for file in found}:
        durable.sync_folder(parent)
    return tuple(removed)
