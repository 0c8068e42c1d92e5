"""The small hidden folder beside the checkpoints: policy, pins, lock. No checkpoint needs it to be read."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Formatter
from types import NoneType
from typing import Any

from ckptcore import durable
from ckptcore.errors import UsageError
from ckptcore.layouts.layout import Layout

_log = logging.getLogger(__name__)
HIDDEN = ".ckptcore"
_POLICY = "policy.json"
_PINS = "pins.json"
MAX_BYTES = 1 << 20
_NAMES = ("metric", "mode", "history_file")
"""What may be missing from a recorded policy, and is text where it is there."""


def hidden(directory: Path) -> Path:
    """The hidden folder of a checkpoint folder."""
    return directory / HIDDEN


def sweep(directory: Path) -> None:
    """Delete what killed writers left unfinished. Only the holder of the folder's lock may call this."""
    for folder in (directory, hidden(directory)):
        durable.sweep(folder)


def write_policy(directory: Path, layout: Layout) -> None:
    """Record how the folder is named and rotated, so that `ckpt plan` can explain it."""
    data = (json.dumps(layout.policy(), indent=2, sort_keys=True) + "\n").encode()
    path = hidden(directory) / _POLICY
    _refuse_no_file(path)
    if not path.exists() or path.read_bytes() != data:
        durable.write_bytes(path, data)


def read_policy(directory: Path) -> Layout | None:
    """The recorded layout of a folder; None where no manager opened it yet.

    Raises:
        UsageError: the record was changed by hand into something else.
    """
    found = _read(hidden(directory) / _POLICY)
    if found is None:
        return None
    wrong = [name for name in _NAMES if not isinstance(found.get(name), (str, NoneType))]
    if wrong:
        raise UsageError(
            f"the recorded policy has no name under {wrong[0]!r}; open the folder with its manager again."
        )
    return Layout.from_policy(found)


def read_pins(directory: Path) -> dict[str, str]:
    """The files that somebody pinned by hand, with why."""
    found = _read(hidden(directory) / _PINS) or {}
    return {str(name): str(why) for name, why in found.items()}


def pins_if_readable(directory: Path) -> dict[str, str]:
    """The same, for who deletes nothing: a list that cannot be read is said, and taken for an empty one."""
    try:
        return read_pins(directory)
    except UsageError as error:
        _log.warning("what is pinned is not known: %s", error)
        return {}


def write_pins(directory: Path, pins: dict[str, str]) -> None:
    """Replace the list of pinned files."""
    durable.make_folder(hidden(directory))
    durable.write_text(hidden(directory) / _PINS, json.dumps(pins, indent=2, sort_keys=True) + "\n")


def pin(file: str | os.PathLike[str], why: str) -> None:
    """Keep a checkpoint from being rotated away, cleaned or archived, for a reason that `ckpt plan` shows.

    Raises:
        UsageError: there is no such file, or no reason; or training gives its name to the next checkpoint.
    """
    path = Path(file)
    if not path.is_file() or not why.strip():
        raise UsageError(f"expected a checkpoint file and a reason, got {path} and {why!r}.")
    if role := _role_rewritten(path):
        raise UsageError(
            f"{path.name} is the {role} of its folder, and training gives that name to the next one. "
            "Promote it to a version (ckpt promote), or copy it to another name and pin the copy."
        )
    durable.make_folder(hidden(path.parent))
    with _pins_locked(path.parent):
        write_pins(path.parent, read_pins(path.parent) | {path.name: why})


def unpin(file: str | os.PathLike[str]) -> None:
    """Let rotation decide again about a file; one that is not pinned, or gone, is no error."""
    path = Path(file)
    if path.name not in read_pins(path.parent):
        return
    with _pins_locked(path.parent):
        pins = read_pins(path.parent)
        if pins.pop(path.name, None) is not None:
            write_pins(path.parent, pins)


def _role_rewritten(path: Path) -> str | None:
    """The role for which the folder's layout writes a file anew under its name; None for files that stay."""
    try:
        layout = read_policy(path.parent)
    except UsageError:
        return None
    if layout is None:
        return None
    for role in layout.roles_of(path.name):
        fields = Formatter().parse(layout.templates[role])
        if role in ("latest", "best") and all(name is None for _, name, _, _ in fields):
            return role
    return None


@contextmanager
def _pins_locked(directory: Path) -> Iterator[None]:
    """Alone with the pins: who reads them to add one must not undo what another adds meanwhile."""
    # filelock takes as long to import as a thousand headers to read, and only writers need it.
    from filelock import FileLock

    with FileLock(hidden(directory) / "pins.lock"):
        yield


def _read(path: Path) -> dict[str, Any] | None:
    what_to_do = (
        "Put back what it said, or delete it and pin the files again; until then nothing is rotated away."
        if path.name == _PINS
        else "Delete it; the manager writes it again."
    )
    _refuse_no_file(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(
                f"{path} has more than {MAX_BYTES:,} bytes; ckptcore did not write it. {what_to_do}"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON ({error}). {what_to_do}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no object. {what_to_do}")
    return found


def _refuse_no_file(path: Path) -> None:
    """Before it is opened: a pipe would keep its reader waiting for ever."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise UsageError(f"{path} is {kind}; expected a file that ckptcore wrote. Move it away.")
