"""Publishing: the files of a finished run, copied to where other people and pipelines look for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ckptcore import durable, folder
from ckptcore.catalogue import Catalogue, Listed
from ckptcore.errors import DamagedCheckpoint, UsageError
from ckptcore.layouts.layout import Layout
from ckptcore.lease import Lease
from ckptcore.semver import is_version
from ckptcore.verifying import verify

READ_ONLY = 0o444


def publish(
    directory: str | os.PathLike[str], target: str | os.PathLike[str], *, layout: Layout | None = None
) -> list[Path]:
    """Copy a run's checkpoints to another folder, each a read-only file of its own; an earlier run's go.

    A tool that later overwrites ``latest`` in place reaches none of them. What is published: the files of the
    newest run under the layout's names, without what a signal or an exception left, and without a latest that
    only the manager keeps. Promoted versions and pinned files in the target always stay, and so does what
    ckptcore did not write.

    Args:
        directory: the work folder, written by a manager.
        target: the folder to publish to, made when missing.
        layout: the layout of the work folder; by default the one that its manager recorded.

    Returns:
        The published files.

    Raises:
        UsageError: there is nothing to publish, or no layout is known; or the target is the work folder, or
            has a pinned file, or one that ckptcore did not write, under such a name. Nothing was copied.
        FolderBusy: a manager writes to the target.
        DamagedCheckpoint: a file does not verify; nothing was published.
        DiskFull: a copy does not fit; what was published before stays.
    """
    source, place = Path(directory), Path(target)
    names = layout or folder.read_policy(source)
    if names is None:
        raise UsageError(
            f"{source} has no recorded layout; expected the folder of a manager, or give layout=."
        )
    files = _publishable(Catalogue.scan(source), names)
    if place.exists() and place.samefile(source):
        raise UsageError(f"{place} is the work folder itself; expected another folder to publish to.")
    if not files:
        raise UsageError(f"{source} holds no checkpoint of the layout {names.name} to publish.")
    for inode in {file.inode: file for file in files}.values():
        report = verify(inode.path)
        if not report.ok:
            raise DamagedCheckpoint(inode.path, report.findings)
    durable.make_folder(place)
    with _sole_writer(place):
        there, pins = Catalogue.scan(place), folder.read_pins(place)
        _refuse_to_replace(files, there, pins)
        for file in files:
            durable.copy_durable(file.path, place / file.name, mode=READ_ONLY)
        stay = {file.name for file in files} | set(pins)
        for old in there:
            former = names.roles_of(old.name) and old.native and not is_version(old.name)
            if former and old.name not in stay:
                durable.remove(old.path)
        durable.sync_folder(place)
    return [place / file.name for file in files]


@contextmanager
def _sole_writer(place: Path) -> Iterator[None]:
    """Hold the target where it is a manager's folder, too; another is left as it is."""
    if not (folder.hidden(place) / "writer.lock").exists():
        yield
        return
    lease = Lease(place)
    lease.acquire()
    try:
        yield
    finally:
        lease.release()


def _refuse_to_replace(files: Sequence[Listed], there: Catalogue, pins: Mapping[str, str]) -> None:
    """Before the first copy: what stays whatever is published must not have a name to publish."""
    native = {old.name for old in there if old.native}
    for file in files:
        at = there.directory / file.name
        if file.name in pins and os.path.lexists(at):
            raise UsageError(f"{at} is pinned ({pins[file.name]}). Unpin it, or publish to another folder.")
        if os.path.lexists(at) and file.name not in native:
            raise UsageError(
                f"{at} is in the way: ckptcore did not write it, or it is damaged. "
                "Move it away, or publish to another folder."
            )


def _publishable(catalogue: Catalogue, layout: Layout) -> list[Listed]:
    run_key = (catalogue.run_keys() or [""])[-1]
    hidden = {"exception"} | (set() if layout.own_latest else {"latest"})
    return [
        file
        for file in catalogue.of_run(run_key)
        if set(layout.roles_of(file.name)) - hidden
        and not is_version(file.name)
        and not (file.header and file.header.reason in ("exception", "nonfinite"))
    ]
