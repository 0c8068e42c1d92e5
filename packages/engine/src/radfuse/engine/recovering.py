"""Mends what DVC was writing when it was killed.

Most of its files appear whole or not at all, but some it writes in place, and a kill, a full disk or a power
cut within the writing leaves them cut off. Every later ``dvc repro`` then stops at them:

- ``.dvc/tmp/rwlock``, where it notes which of its processes reads and writes what,
- ``dvc.lock``, where it notes what each stage was made from,
- what it was putting into its cache of runs, below ``.dvc/cache/runs``,
- ``NAME.dvc`` of data that ``dvc add`` took up.

And copies it had begun stay beside what they were to become (`unfinished_copies`), which stops nothing.

What is whole is judged by DVC's own schemas: a file that DVC can read is never touched, but for a
``dvc.lock`` without a line feed at its end. DVC always writes one, and without it nobody can tell
``size: 12`` from the begin of ``size: 1234``. Such a file loses the entry of its last stage, which then runs
again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ckptcore import durable
from radfuse.engine.errors import RadfuseError
from radfuse.engine.unfinished_copies import unfinished_copies

_REPOSITORY = ".dvc"
_PIPELINE, _MADE_FROM = "dvc.yaml", "dvc.lock"
_OUTPUTS = {"data", "saved_models", "mlruns", "reports"}
"""Folders beside a dvc.yaml that have no pipelines in them, and may have a million files."""
_OTHERS = {".dvc", ".git"}
"""A folder that has one of these has a DVC of its own, or another checkout of this one."""
_HEAD = "schema: '2.0'\nstages:\n"
_STAGE = re.compile(r"^  [^\s#][^\n]*?(?::[ \t]*\r?$|\Z)", re.MULTILINE)
"""The line in dvc.lock at which a stage begins; the last one of the file may be cut off."""


class NoRepository(RadfuseError):
    """Neither the folder nor one above it belongs to DVC, or DVC is not installed."""


class DvcAtWork(RadfuseError):
    """Another DVC holds the files."""


def recover(folder: Path) -> list[str]:
    """Mend the files of the DVC repository that a folder lies in.

    Args:
        folder: in the repository, or its root.

    Returns:
        What was cut off and what was done about it, one line a file; none where every file was whole.

    Raises:
        NoRepository: there is none.
        DvcAtWork: something is cut off, and a DVC is reading or writing these files.
    """
    root = repository_of(folder)
    # Looked at without DVC's locks, for it waits for them three seconds only.
    folders = [*_folders(root)]
    suspects = [*_cut_off(root, folders)]
    pipelines = [place / _PIPELINE for place, files in folders if _PIPELINE in files]
    copies = [*unfinished_copies(root, pipelines)]
    if not suspects and not copies:
        return []
    try:
        with _locked(root):
            done = [(file, _mended(file)) for file in [*suspects, *copies]]
    except DvcAtWork:
        if suspects:
            raise
        # Perhaps they are its own, and it is at the end of them in a moment.
        return []
    return [f"{os.path.relpath(file, root)}: {what}" for file, what in done if what]


def repository_of(folder: Path) -> Path:
    """The root of the DVC repository that a folder lies in.

    Raises:
        NoRepository: there is none.
    """
    folder = Path(os.path.abspath(folder))
    for one in (folder, *folder.parents):
        if (one / _REPOSITORY).is_dir():
            return one
    raise NoRepository(f"{folder}: expected a folder of a DVC repository, found no .dvc there or above.")


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders in which pipelines may be, each with the names of its files."""
    for place, below, files in os.walk(root):
        if Path(place) != root and not _OTHERS.isdisjoint([*below, *files]):
            below.clear()
            continue
        passed = _OUTPUTS if _PIPELINE in files else set()
        below[:] = sorted(name for name in below if not name.startswith(".") and name not in passed)
        yield Path(place), sorted(files)


def _cut_off(root: Path, folders: Iterable[tuple[Path, list[str]]]) -> Iterator[Path]:
    rwlock = root / _REPOSITORY / "tmp" / "rwlock"
    if rwlock.is_file() and not _is_whole(rwlock):
        yield rwlock
    yield from sorted(_cache(root).glob("runs/*/*/.*.tmp"))
    for place, files in folders:
        for name in files:
            lock = name == _MADE_FROM and _PIPELINE in files
            if (lock or name.endswith(".dvc")) and not _is_whole(place / name):
                yield place / name


def _cache(root: Path) -> Path:
    given: str | None = _config(root)["cache"].get("dir")
    return Path(given) if given else root / _REPOSITORY / "cache"


def _config(root: Path) -> Any:
    try:
        from dvc.config import Config
    except ModuleNotFoundError:
        raise NoRepository("expected DVC in this environment (pip install dvc), found none.") from None
    return Config(dvc_dir=str(root / _REPOSITORY))


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold what DVC holds while it reads pipelines, and while it writes its notes."""
    from dvc.lock import LockError, make_lock

    own = root / _REPOSITORY / "tmp"
    links = bool(_config(root)["core"].get("hardlink_lock", False))
    with ExitStack() as held:
        for name in ("lock", "rwlock.lock"):
            lock = make_lock(str(own / name), tmp_dir=str(own), hardlink_lock=links)
            try:
                held.enter_context(lock)
            except LockError:
                gone = f" If it was killed, delete {own / name}." if links else ""
                raise DvcAtWork(
                    f"{root}: files of DVC are cut off, and another DVC is at work here. Wait until it has "
                    f"ended, then call `radfuse recover` again.{gone}"
                ) from None
        yield


def _is_whole(file: Path) -> bool:
    text = _text(file)
    if file.name == "rwlock":
        return _is_json(text)
    lock = file.name == _MADE_FROM
    # DVC ends a lock with a line feed; without it a number may be the begin of another one.
    return (text.endswith("\n") or not lock) and _is_valid(text, lock)


def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8", errors="replace")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_valid(text: str, lock: bool) -> bool:
    """Whether DVC reads it, which has YAML 1.2: in 1.1 a folder named `yes` is no text."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA, COMPILED_SINGLE_STAGE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from voluptuous import Invalid

    try:
        (COMPILED_LOCKFILE_SCHEMA if lock else COMPILED_SINGLE_STAGE_SCHEMA)(parse_yaml(text, ""))
    except (YAMLFileCorruptedError, Invalid):
        return False
    return True


def _mended(file: Path) -> str | None:
    """Mend a file that was cut off, unless it is whole by now; returns what was done."""
    if file.suffix == ".tmp":
        durable.remove_quietly(file)
        return "removed, as DVC did not come to the end of it"
    if not file.is_file() or _is_whole(file):
        return None
    if file.name == "rwlock":
        durable.remove(file)
        return "removed, as it was cut off; DVC begins a new one"
    if file.name != _MADE_FROM:
        return (
            "left as it is, and no DVC can read it: take that of a commit (git checkout), or `dvc add` again"
        )
    return _mend_lock(file)


def _mend_lock(file: Path) -> str:
    # A file that had not reached the disk at a power cut may end in zeros.
    text = _text(file).split("\0")[0]
    readable = _is_valid(text, lock=True)
    perhaps = " (perhaps only its last line feed was missing: nobody can tell)" if readable else ""
    begun = [*_STAGE.finditer(text)]
    kept = text[: begun[-1].start()] if begun else ""
    if len(begun) < 2 and (_HEAD.startswith(text.rstrip(" ")) or kept == _HEAD):
        durable.remove(file)
        return f"removed, as it was cut off in its first stage; every stage is looked at again{perhaps}"
    if len(begun) < 2 or not _is_valid(kept, lock=True):
        # As after an unfinished merge. DVC says where.
        return (
            "left as it is, and no DVC can read it, nor the begin of it: mend it, take that of a commit (git "
            "checkout -- dvc.lock) or remove it, after which finished trainings are found again"
        )
    durable.write_text(file, kept)
    stage = begun[-1][0].strip().rstrip(":").strip("'\"")
    kept_too = f"{len(begun) - 1} are kept{perhaps}"
    return f"cut off within {stage}, so it and the stages after it are looked at again; {kept_too}"
