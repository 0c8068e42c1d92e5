"""The cohort's folder: whose it is, who writes it, and what of it is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from radfuse.phantom import patient, tables
from radfuse.phantom.diseases import MODALITIES
from radfuse.phantom.errors import ForeignFolder
from radfuse.phantom.settings import Settings

STAMP = "phantom.json"
FORMAT = 1
CEILINGS = "ceilings.json"
LONGEST_WAIT = 60.0
"""Seconds for another call to end: one whose `dvc repro` was killed may need a moment for it."""
_LOCK = ".lock"


@contextmanager
def held(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make the folder, and keep other calls out of it.

    Args:
        out: the folder.
        say: told when another call has to be waited for.

    Raises:
        ForeignFolder: it holds something that this package did not write, or another call goes on writing it.
    """
    _refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / _LOCK)
    _acquire(lock, out, say)
    try:
        _refuse_foreign(out)
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, out: Path, say: Callable[[str], None]) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        say(f"another call is writing {out}; waiting for it to end, for {LONGEST_WAIT:g} s at most")
    try:
        lock.acquire(timeout=LONGEST_WAIT)
    except Timeout:
        raise ForeignFolder(
            f"another call is still writing {out}. Wait until it has ended, or choose another folder (--out)."
        ) from None


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ForeignFolder(
            f"expected a folder to write to, but {out} is a file. Choose another one (--out)."
        )
    # What a call leaves that is killed before it has written its stamp.
    ours = {_LOCK, patient.RECORDS, patient.PARTIAL, tables.beside(out / STAMP).name}
    if out.is_dir() and {path.name for path in out.iterdir()} - ours and _read_stamp(out) is None:
        raise ForeignFolder(
            f"{out} holds files that radfuse phantom did not write, so nothing was changed. "
            "Choose a new or empty folder (--out)."
        )


def _read_stamp(out: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.get("writer") == "radfuse.phantom" else None


def stamp(out: Path, settings: Settings, digest: str, *, complete: bool) -> None:
    """Say in the folder who writes it, and whether all of it is there."""
    content = {
        "format": FORMAT,
        "writer": "radfuse.phantom",
        "complete": complete,
        "patients": settings.patients,
        "first_patient": settings.first_patient,
        "settings": settings.of_patients,
        "digest": digest,
    }
    tables.replace(out / STAMP, (json.dumps(content, indent=2) + "\n").encode())


def clear(out: Path, settings: Settings, digest: str) -> None:
    """Remove what is unfinished, what other settings made, and patients who are no longer in the cohort."""
    shutil.rmtree(out / patient.PARTIAL, ignore_errors=True)
    before = _read_stamp(out)
    if before is not None and before.get("digest") != digest:
        _clear_all(out)
    wanted = set(settings.numbers)
    for path in sorted((out / patient.RECORDS).glob("*.json")):
        if path.stem.isdecimal() and int(path.stem) not in wanted and not _removed(out, path):
            _clear_all(out)
            break
    (out / patient.RECORDS).mkdir(exist_ok=True)


def _clear_all(out: Path) -> None:
    # Records first: should this be killed half-way, what is left of them still has its files.
    for name in (patient.RECORDS, *MODALITIES):
        if (out / name).exists():
            shutil.rmtree(out / name)
    for name in (*tables.CSV_FILES.values(), *tables.PARQUET_FILES.values(), CEILINGS):
        (out / name).unlink(missing_ok=True)


def _removed(out: Path, record_path: Path) -> bool:
    """Remove a patient; False, and nothing done, where the record is damaged and does not say which files."""
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    record_path.unlink()
    for unit in patient.units(record):
        shutil.rmtree(out / unit, ignore_errors=True)
    return True
