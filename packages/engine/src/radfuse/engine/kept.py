"""Folders in which a stage keeps what it has finished until all of it is published, each under a key.

They lie in the work folder, outside of what DVC deletes. The key is a digest of everything that decides the
bits of what is kept: what belongs to other parameters, data, code or machines is never met.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore import durable
from ckptcore.errors import CheckpointError, FolderBusy, holder_text
from ckptcore.lease import Lease
from radfuse.engine import workfolder
from radfuse.engine.errors import RadfuseError

if TYPE_CHECKING:
    from radfuse.engine.places import Places

_log = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds that another process, such as one whose DVC was just killed, is given to end."""
_A_DAY = 86_400.0


class Busy(RadfuseError):
    """Another process is at the same."""


@contextmanager
def opened(places: Places, name: str, part: str, recipe: Mapping[str, Any]) -> Iterator[Path]:
    """The folder in which something is kept, held until the block ends.

    Args:
        places: of the pipeline.
        name: of the modality, or of what else is made.
        part: of the work folder: ``predictions``, ``exports``.
        recipe: everything that decides the bits of what is kept, as plain values; names the folder.

    Raises:
        Busy: another process is at the same, and does not end.
    """
    folder = _root(places, name, part) / workfolder.key_of(recipe)
    lease = Lease(folder)
    _acquire(lease, f"{part} of {name}")
    try:
        # Whoever had the lease may have finished, and taken the folder away.
        durable.make_folder(folder)
        if workfolder.read_record(folder) is None:
            _announce_nearest(places, name, part, recipe)
            noted = {
                "recipe": dict(recipe),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "pipeline": workfolder.name_of_pipeline(places),
            }
            durable.write_text(folder / workfolder.RECORD, json.dumps(noted, indent=1) + "\n")
        yield folder
    finally:
        lease.release()


def prune(places: Places, name: str, part: str) -> list[str]:
    """Delete what earlier, unfinished runs of this pipeline left, if nobody touched it for a day.

    What was published since has taken its place. Those of a day may be another process's, or of parameters
    that are tried in turn. What cannot be deleted is told and left.

    Returns:
        Names of the deleted folders.
    """
    gone = []
    for folder in _folders(places, name, part):
        lease = Lease(folder)
        try:
            if time.time() - _touched(folder) < _A_DAY:
                continue
            lease.acquire()
            shutil.rmtree(folder)
            gone.append(folder.name)
        except FolderBusy:
            continue
        except (OSError, CheckpointError) as error:
            # What this one made is published, and this is in nobody's way.
            _log.warning(
                "what was kept of earlier %s of %s, %s, was not deleted, or not wholly: %s",
                part,
                name,
                folder.name,
                error,
            )
        finally:
            lease.release()
    if gone:
        _log.info("deleted what was kept of earlier, unfinished %s of %s: %s", part, name, ", ".join(gone))
    return gone


def _acquire(lease: Lease, what: str) -> None:
    try:
        lease.acquire()
    except FolderBusy as busy:
        other = f"another process is at exactly these {what} ({holder_text(busy.holder)})"
        _log.warning("%s; waiting for it to end, %g s at the most", other, LONGEST_WAIT)
        try:
            lease.acquire(LONGEST_WAIT)
        except FolderBusy:
            raise Busy(f"{other}; wait for it, or end it.") from None


def _announce_nearest(places: Places, name: str, part: str, recipe: Mapping[str, Any]) -> None:
    """Say why what an unfinished run has kept is of no use, if there is any."""
    folders = _folders(places, name, part)
    recipes = [(workfolder.read_record(folder) or {}).get("recipe") for folder in folders]
    told = [workfolder.differences(one, recipe) for one in recipes if isinstance(one, dict)]
    if told:
        least = min(told, key=len)
        _log.info(
            "what was kept of unfinished %s of %s is not taken over, as it differs in:\n  %s",
            part,
            name,
            "\n  ".join(least),
        )


def _root(places: Places, name: str, part: str) -> Path:
    return places.work(name) / part


def _folders(places: Places, name: str, part: str) -> list[Path]:
    """What this pipeline keeps, and what a kill left without a record."""
    root = _root(places, name, part)
    if not root.is_dir():
        return []
    found = sorted(one for one in root.iterdir() if one.is_dir())
    records = [workfolder.read_record(one) or {} for one in found]
    own = workfolder.name_of_pipeline(places)
    return [one for one, told in zip(found, records, strict=True) if told.get("pipeline", own) == own]


def _touched(folder: Path) -> float:
    try:
        return max(one.stat().st_mtime for one in (folder, *folder.iterdir()))
    except FileNotFoundError:
        # It was finished meanwhile.
        return time.time()
