"""Finding the checkpoint to go on from: the newest that verifies, with what was passed over and why."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ckptcore import durable
from ckptcore.catalogue import Catalogue, Listed
from ckptcore.errors import CheckpointError, DamagedCheckpoint
from ckptcore.layouts.layout import Layout
from ckptcore.load import Checkpoint, load

_log = logging.getLogger(__name__)
ARCHIVED = "archived"


def newest(directory: Path, layout: Layout, run_key: str | None, map_location: object = "cpu") -> Checkpoint | None:
    """The newest checkpoint of a folder that verifies; damaged ones on the way are set aside and named.

    Args:
        directory: the folder.
        layout: its layout.
        run_key: only files of this run; None for the run of the newest file.
        map_location: where its tensors go.
    """
    for file in candidates(Catalogue.scan(directory), layout, run_key):
        try:
            return load(file.path, map_location)
        except DamagedCheckpoint as error:
            aside = set_aside(file.path)
            _log.warning("%s It was set aside as %s; trying the one before it.", error, aside.name)
        except CheckpointError as error:
            _log.warning("%s cannot be resumed from: %s", file.name, error)
    return None


def candidates(catalogue: Catalogue, layout: Layout, run_key: str | None) -> Iterator[Listed]:
    """The files to try, best first: native ones of the run from the newest on, then foreign files under the layout's names."""
    named = [f for f in catalogue if layout.roles_of(f.name)]
    # A file whose header is damaged cannot say how old it is; its time of writing decides whether it would have been next.
    native = [f for f in named if f.native and not (f.header and f.header.reason in ("exception", "nonfinite"))]
    if run_key is None and native:
        newest_file = max(native, key=lambda f: (f.header.created or "") if f.header else "")
        run_key = newest_file.header.run_key if newest_file.header else None
    ours = [f for f in native if f.header is not None and f.header.run_key == run_key]
    damaged = [f for f in named if f.header is None]
    ranked = sorted(ours, key=lambda f: (f.order, "latest" in layout.roles_of(f.name), f.modified), reverse=True)
    yielded = set()
    for file in ranked:
        for other in damaged:
            if other.modified >= file.modified and other.inode not in yielded:
                yielded.add(other.inode)
                yield other
        if file.inode not in yielded:
            yielded.add(file.inode)
            yield file
    yield from (f for f in damaged if f.inode not in yielded)
    if run_key is None:
        foreign = [f for f in named if f.header is not None and not f.native]
        yield from sorted(foreign, key=lambda f: f.modified, reverse=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that nothing takes it for a checkpoint; it is kept for whoever wants to look."""
    target = path.with_name(path.name + ".damaged")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged{number}")
    durable.move(path, target)
    return target


def move_other_runs(directory: Path, layout: Layout, run_key: str) -> Path | None:
    """Move the files that another run left under this layout's names to a dated folder; nothing is deleted.

    Returns:
        The folder, or None where there was nothing to move.
    """
    others = [
        f
        for f in Catalogue.scan(directory)
        if layout.roles_of(f.name) and not (f.native and f.header is not None and f.header.run_key == run_key)
    ]
    if not others:
        return None
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = directory / ARCHIVED / stamp
    number = 1
    while target.exists():
        number += 1
        target = directory / ARCHIVED / f"{stamp}_{number}"
    durable.make_folder(target)
    for file in others:
        durable.move(file.path, target / file.name)
    _log.warning(
        "%s held %d checkpoint files of another run (%s, ...). They were moved to %s.",
        directory,
        len(others),
        others[0].name,
        target,
    )
    return target
