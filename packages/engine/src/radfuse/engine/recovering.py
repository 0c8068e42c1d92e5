"""Mends what DVC was writing when it was killed.

DVC writes two files in place: ``.dvc/tmp/rwlock``, where it notes which of its processes reads and writes
what, and ``dvc.lock``, where it notes what each stage was made from. A kill within the writing leaves them
cut off, and every later ``dvc repro`` stops at them. Its other files appear whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckptcore import durable
from radfuse.engine.errors import RadfuseError

_REPOSITORY = ".dvc"
_PIPELINE, _MADE_FROM = "dvc.yaml", "dvc.lock"
_OUTPUTS = {"data", "saved_models", "mlruns", "reports"}
"""Folders beside a dvc.yaml that have no pipelines in them, and may have a million files."""
_HEAD = "schema: '2.0'\nstages:\n"
_STAGE = re.compile(r"^  [^\s#][^\n]*?(?::[ \t]*\r?$|\Z)", re.MULTILINE)
"""The line in dvc.lock at which a stage begins; the last one of the file may be cut off."""
_PATIENCE = 10.0
"""Seconds for another DVC to let go: it holds its locks while it reads and writes, not while a stage runs."""


class NoRepository(RadfuseError):
    """Neither the folder nor one above it belongs to DVC."""


class DvcAtWork(RadfuseError):
    """Another DVC holds the files."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _File(_Strict):
    """A dependency or an output, as DVC's own schema demands it."""

    path: str
    hash: str = ""
    md5: Annotated[str, Field(pattern=r"^(?:.{3,})?$")] | None = None
    size: int = 0
    nfiles: int = 0
    isexec: bool = False


class _Stage(_Strict):
    cmd: str | list[str]
    deps: list[_File] = []
    params: dict[str, dict[str, Any]] = {}
    outs: list[_File] = []


class _Lock(_Strict):
    version: Annotated[Literal["2.0"], Field(alias="schema")]
    stages: dict[str, _Stage] = {}


def recover(folder: Path) -> list[str]:
    """Mend the files of the DVC repository that a folder lies in.

    Args:
        folder: in the repository, or its root.

    Returns:
        What was mended and what follows from it, one line a file; none where every file was whole.

    Raises:
        NoRepository: there is none.
        DvcAtWork: a DVC is reading or writing the files.
    """
    root = repository_of(folder)
    own = root / _REPOSITORY / "tmp"
    if not own.is_dir():
        return []
    with ExitStack() as held:
        # DVC holds the first while it reads pipelines and writes dvc.lock, the second while it writes rwlock.
        for name in ("lock", "rwlock.lock"):
            try:
                held.enter_context(FileLock(own / name, timeout=_PATIENCE))
            except Timeout:
                raise DvcAtWork(f"{root}: another DVC is at work here; wait until it has ended.") from None
        mended = [_mend_rwlock(own / "rwlock"), *(_mend_lock(file) for file in _made_from(root))]
    return [f"{os.path.relpath(file, root)}: {what}" for file, what in filter(None, mended)]


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


def _made_from(root: Path) -> Iterator[Path]:
    for place, below, files in os.walk(root):
        passed = _OUTPUTS if _PIPELINE in files else set()
        below[:] = sorted(name for name in below if not name.startswith(".") and name not in passed)
        if _MADE_FROM in files:
            yield Path(place, _MADE_FROM)


def _mend_rwlock(file: Path) -> tuple[Path, str] | None:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        named = [*_processes(json.loads(text))]
    except (ValueError, TypeError, AttributeError, KeyError):
        durable.remove(file)
        return file, "removed, as it was cut off; DVC begins a new one"
    written = file.stat().st_mtime
    if not named or any(_is_dvc(pid, written) for pid in named):
        return None
    # DVC itself takes a process for alive wherever its number is in use again, as after a restart.
    durable.remove(file)
    return file, "removed, as every process that it names has ended"


def _processes(noted: Any) -> Iterator[int]:
    for infos in [*noted.get("read", {}).values(), *noted.get("write", {}).values()]:
        for info in infos if isinstance(infos, list) else [infos]:
            yield int(info["pid"])


def _is_dvc(pid: int, noted: float) -> bool:
    """Whether the process is the one that a file of this age can have named."""
    try:
        process = psutil.Process(pid)
        # A second, as the system counts a process's start in ticks from a boot that it knows in seconds.
        return process.create_time() <= noted + 1 and any("dvc" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _mend_lock(file: Path) -> tuple[Path, str] | None:
    text = file.read_bytes().decode("utf-8", errors="replace")
    if _is_whole(text):
        return None
    begun = [*_STAGE.finditer(text)]
    kept = text[: begun[-1].start()] if begun else ""
    if len(begun) < 2 and (_HEAD.startswith(text.rstrip(" ")) or kept == _HEAD):
        durable.remove(file)
        return file, "removed, as it was cut off in its first stage; every stage is looked at again"
    if len(begun) < 2 or not _is_whole(kept):
        # As after an unfinished merge. DVC says where, and not everything that it takes is known here.
        return file, (
            "left as it is, neither what DVC writes nor the begin of it; if DVC refuses it, mend it, take "
            "that of a commit (git checkout -- dvc.lock) or remove it: finished trainings are found again"
        )
    durable.write_text(file, kept)
    stage = begun[-1][0].strip().rstrip(":").strip("'\"")
    return file, f"cut off within {stage}, which is looked at again; {len(begun) - 1} other stages are kept"


def _is_whole(text: str) -> bool:
    try:
        _Lock.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError):
        return False
    return True
