"""Publishing: the files of a finished run, copied to where other people and pipelines look for them."""

from __future__ import annotations

import os
from pathlib import Path

from ckptcore import durable, folder
from ckptcore.catalogue import Catalogue, Listed
from ckptcore.errors import DamagedCheckpoint, UsageError
from ckptcore.layouts.layout import Layout
from ckptcore.semver import is_version
from ckptcore.verifying import verify

READ_ONLY = 0o444


def publish(
    directory: str | os.PathLike[str], target: str | os.PathLike[str], *, layout: Layout | None = None
) -> list[Path]:
    """Copy a run's checkpoints to another folder, each a read-only file of its own; an earlier run's go.

    A tool that later overwrites ``latest`` in place reaches none of them. What is published: the files of the
    newest run under the layout's names, without what a signal or an exception left, and without a latest that
    only the manager keeps. Promoted versions in the target always stay.

    Args:
        directory: the work folder, written by a manager.
        target: the folder to publish to, made when missing.
        layout: the layout of the work folder; by default the one that its manager recorded.

    Returns:
        The published files.

    Raises:
        UsageError: there is nothing to publish, or no layout is known.
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
    if not files:
        raise UsageError(f"{source} holds no checkpoint of the layout {names.name} to publish.")
    for inode in {file.inode: file for file in files}.values():
        report = verify(inode.path)
        if not report.ok:
            raise DamagedCheckpoint(inode.path, report.findings)
    durable.make_folder(place)
    for file in files:
        durable.copy_durable(file.path, place / file.name, mode=READ_ONLY)
    published = {file.name for file in files}
    for old in Catalogue.scan(place):
        former = names.roles_of(old.name) and old.native and not is_version(old.name)
        if former and old.name not in published:
            durable.remove(old.path)
    durable.sync_folder(place)
    return [place / file.name for file in files]


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
