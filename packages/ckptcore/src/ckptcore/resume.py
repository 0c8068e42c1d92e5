"""Finding the checkpoint to go on from: the newest that verifies, with what was passed over and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ckptcore import durable, folder
from ckptcore.catalogue import Catalogue, Listed
from ckptcore.errors import (
    CheckpointError,
    DamagedCheckpoint,
    NewerFormat,
    UnknownFormat,
    UsageError,
    some_of,
)
from ckptcore.header import Header
from ckptcore.history import history_is, write_history
from ckptcore.layouts.layout import Layout
from ckptcore.loading import Checkpoint, load, read_header
from ckptcore.rules import Progress
from ckptcore.semver import is_version

_log = logging.getLogger(__name__)
ARCHIVED = "archived"
NONFINITE = "nonfinite"
"""Reason for a save: a loss was no number. The state may be that before it, which is whole."""
SPOILT = "was saved when a loss was no number, and holds NaN or infinity"
_NO_START = ("exception",)
"""Reasons for a save that no run goes on from unless it is named."""


def newest(
    directory: Path,
    layout: Layout,
    run_key: str | None,
    map_location: object = "cpu",
    mmap: bool = False,
) -> Checkpoint | None:
    """The newest checkpoint of a folder that verifies; damaged ones on the way are set aside and named.

    Args:
        directory: the folder.
        layout: its layout.
        run_key: only files of this run; None for the run of the newest file.
        map_location: where its tensors go.
        mmap: as for `ckptcore.load`.

    Raises:
        NewerFormat: the run was continued by a newer ckptcore; nothing is touched.
        UsageError: ``map_location`` is no device.
        OSError: nothing verified, and something could not be read at all.
    """
    catalogue = Catalogue.scan(directory)
    unreadable: OSError | None = None
    for file in candidates(catalogue, layout, run_key):
        try:
            found = load(file.path, map_location, mmap=mmap)
            if is_start(found):
                return found
            _log.warning("%s %s; trying the one before it.", file.name, SPOILT)
        except (NewerFormat, UsageError):
            raise
        except CheckpointError as error:
            # A file of no kind at all (empty, zeros) is damage, too; another program's, refused, is not.
            of_no_kind = isinstance(error, UnknownFormat) and file.header is None
            if not isinstance(error, DamagedCheckpoint) and not of_no_kind:
                _log.warning("%s cannot be resumed from: %s", file.name, error)
                continue
            names = [f for f in catalogue if f.inode == file.inode and layout.roles_of(f.name)]
            aside = ", ".join(set_aside(f.path).name for f in names)
            _log.warning("%s It was set aside as %s; trying the one before it.", error, aside)
        except OSError as error:
            _log.warning("%s cannot be read: %s; trying the one before it.", file.name, error)
            unreadable = error
    if unreadable is not None:
        # To start afresh because the disk does not answer would be to give up the run.
        raise unreadable
    _tell_of_others(catalogue, layout, run_key)
    return None


def is_start(found: Checkpoint) -> bool:
    """Whether a run goes on from a checkpoint: one of a loss that was no number may be spoilt, or not."""
    return found.header.reason != NONFINITE or _is_finite(found)


def _is_finite(value: object) -> bool:
    """Whether every number in tensors of mappings and lists is finite."""
    import torch

    if isinstance(value, torch.Tensor):
        # torch cannot tell of numbers of eight bits as they are.
        wide = value.float() if value.is_floating_point() and value.itemsize == 1 else value
        return bool(torch.isfinite(wide).all())
    if isinstance(value, Mapping):
        return all(_is_finite(value[key]) for key in value)
    return all(map(_is_finite, value)) if isinstance(value, (list, tuple)) else True


def _tell_of_others(catalogue: Catalogue, layout: Layout, run_key: str | None) -> None:
    """Say which files a fresh start leaves behind: another layout or key may have been given by mistake."""
    left = [
        f
        for f in catalogue
        if f.native
        and f.header is not None
        and f.header.run_key is not None
        and f.header.reason not in (*_NO_START, NONFINITE)
        and not is_version(f.name)
        and f.path.exists()  # What was damaged has been set aside.
    ]
    if left:
        _log.warning(
            "%s holds no checkpoint%s under the names of the layout %s: training starts afresh. "
            "There are %s. To go on from one of them, name it: resume(%r).",
            catalogue.directory,
            "" if run_key is None else f" of the run {run_key!r}",
            layout.name,
            some_of(f.name for f in reversed(left)),
            left[-1].name,
        )


def candidates(catalogue: Catalogue, layout: Layout, run_key: str | None) -> Iterator[Listed]:
    """The files to try: native ones of the run, the newest first, then foreign ones."""
    named = [f for f in catalogue if layout.roles_of(f.name)]
    # A file whose header is damaged cannot say how old it is: its time of writing decides when it is tried.
    native = [f for f in named if f.native and not (f.header and f.header.reason in _NO_START)]
    if run_key is None and native:
        newest_file = max(native, key=lambda f: (f.header.created or "") if f.header else "")
        run_key = newest_file.header.run_key if newest_file.header else None
    ours = [f for f in native if f.header is not None and f.header.run_key == run_key]
    damaged = [f for f in named if f.header is None]
    ranked = sorted(
        ours,
        key=lambda f: (_is_whole(f, layout), f.sequence, f.order, "latest" in layout.roles_of(f.name)),
        reverse=True,
    )
    yielded: set[tuple[int, int]] = set()
    for file in ranked:
        for other in damaged:
            if other.modified >= file.modified and other.inode not in yielded:
                yielded.add(other.inode)
                yield other
        if file.inode not in yielded:
            yielded.add(file.inode)
            yield file
    for file in damaged:
        if file.inode not in yielded:
            yielded.add(file.inode)
            yield file
    if run_key is None:
        foreign = [f for f in named if f.header is not None and not f.native]
        yield from sorted(foreign, key=lambda f: f.modified, reverse=True)


def _is_whole(file: Listed, layout: Layout) -> bool:
    """Whether a file holds more than weights; no run goes on from weights while there is another file."""
    roles = file.header.roles if file.header is not None else ()
    return not roles or not set(roles) <= layout.weights_only


def finish(found: Checkpoint, layout: Layout) -> list[str]:
    """Give the newest checkpoint the names that its writer had no time for; returns them.

    A kill between two renames leaves it as the best, say, and not yet as the latest. Training goes on from
    it, so nobody would ever make the missing ones.
    """
    header, folder_of_it = found.header, found.header.path.parent
    told = header.metadata.get("names")
    missing = []
    for name in told if isinstance(told, list) else []:
        if type(name) is not str or "/" in name or not layout.roles_of(name) or is_version(name):
            continue
        at = folder_of_it / name
        if not at.is_symlink() and (not at.exists() or _is_before(at, header)):
            missing.append(name)
    if not missing:
        return []
    try:
        durable.add_names(header.path, [folder_of_it / name for name in missing])
    except (CheckpointError, OSError) as error:
        _log.warning("%s lacks the names %s: %s", header.path.name, ", ".join(missing), error)
        return []
    _log.info(
        "%s was cut off while it got its names; now it has %s, too", header.path.name, ", ".join(missing)
    )
    return missing


def finish_history(directory: Path, layout: Layout, history: Mapping[str, Sequence[float]]) -> Path | None:
    """Write the history that the newest checkpoint holds, unless its file tells the same; returns the file.

    A kill between the two leaves the file an epoch behind. After the last epoch nobody would ever write it.
    """
    if layout.history_file is None or not history:
        return None
    file = directory / layout.history_file
    try:
        return None if history_is(file, history) else write_history(file, history)
    except (CheckpointError, OSError) as error:
        _log.warning("%s cannot be brought up to date: %s", file.name, error)
        return None


def _is_before(path: Path, newer: Header) -> bool:
    """Whether a file is an earlier save of the same run."""
    try:
        header = read_header(path)
    except (CheckpointError, OSError):
        return False
    before, after = header.metadata.get("sequence"), newer.metadata.get("sequence")
    return header.run_key == newer.run_key and type(before) is int and type(after) is int and before < after


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that nothing takes it for a checkpoint; who wants to look at it still can."""
    target = path.with_name(path.name + ".damaged")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged{number}")
    durable.move(path, target)
    return target


def move_other_runs(directory: Path, layout: Layout, run_key: str) -> Path | None:
    """Move the files that another run left under this layout's names to a dated folder; nothing is deleted.

    What is pinned by hand stays. The history goes along, and goes alone where no file of this run is there.

    Returns:
        The folder, or None where there was nothing to move.
    """
    pins = folder.pins_if_readable(directory)
    files = _of_layout(directory, layout)
    ours = {f.name for f in files if f.native and f.header is not None and f.header.run_key == run_key}
    others = [f.name for f in files if f.name not in ours and f.name not in pins]
    history = layout.history_file
    if history is not None and (others or not ours) and (directory / history).exists():
        others.append(history)
    return _archive(directory, others, "of another run") if others else None


def move_abandoned(directory: Path, layout: Layout, run_key: str, now: Progress) -> Path | None:
    """Move what the run saved beyond the point where it goes on now: it went back, and left that line.

    Left in place they would be taken for the last ones by rotation. The best one stays the best until it is
    beaten, and pinned files stay.

    Args:
        directory: the folder.
        layout: its layout.
        run_key: the run.
        now: what is about to be saved.
    """
    # A loop that counts no steps is given one an epoch, which says nothing beside a count that was given.
    step = now.global_step if now.global_step > now.epochs_finished else None
    pins = folder.pins_if_readable(directory)
    ahead = []
    for file in _of_layout(directory, layout):
        epochs, steps, _ = file.order
        beyond = epochs > now.epochs_finished or (
            epochs == now.epochs_finished and step is not None and steps > step
        )
        ours = file.native and file.header is not None and file.header.run_key == run_key
        if ours and beyond and file.name not in pins and "best" not in layout.roles_of(file.name):
            ahead.append(file.name)
    return (
        _archive(directory, ahead, "of the line of training that was left by going back") if ahead else None
    )


def make_way(directory: Path, run_key: str, names: Sequence[str]) -> Path | None:
    """Move what has a name that is about to be given and is not this run's to a dated folder.

    Somebody may have put it there since the run began; a rename over it would be its end.

    Raises:
        UsageError: it is a promoted version, which stays where it is.
    """
    for name in names:
        if is_version(name) and (directory / name).exists():
            raise UsageError(
                f"{name} is a promoted version and stays as it is; the layout gives new files its name. "
                "Give the layout another name."
            )
    strangers = [name for name in names if not _may_be_replaced(directory / name, run_key)]
    return _archive(directory, strangers, "not written by this run") if strangers else None


def _may_be_replaced(path: Path, run_key: str) -> bool:
    try:
        header = read_header(path)
    except FileNotFoundError:
        return not path.is_symlink()
    except (CheckpointError, OSError):
        return False
    return header.format == "ckptcore" and header.run_key == run_key


def _of_layout(directory: Path, layout: Layout) -> list[Listed]:
    """The files that have one of the layout's names and are no promoted version."""
    return [f for f in Catalogue.scan(directory) if layout.roles_of(f.name) and not is_version(f.name)]


def _move(path: Path, target: Path, moved: Sequence[str]) -> None:
    """Move a file to a folder below; a relative link is written anew, unless what it names moves along."""
    aim = os.readlink(path) if path.is_symlink() else None
    if aim is None or os.path.isabs(aim) or os.path.normpath(aim) in moved:
        durable.move(path, target / path.name)
        return
    back = os.path.relpath(path.parent.resolve(), target.resolve())
    durable.move_link(path, target / path.name, os.path.join(back, aim))


def _archive(directory: Path, names: Sequence[str], what: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = directory / ARCHIVED / stamp
    number = 1
    while target.exists():
        number += 1
        target = directory / ARCHIVED / f"{stamp}_{number}"
    durable.make_folder(target)
    for name in names:
        _move(directory / name, target, names)
    _log.warning(
        "%s held %d files %s (%s, ...). They were moved to %s.", directory, len(names), what, names[0], target
    )
    return target
