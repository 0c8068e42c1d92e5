"""Checking many files and folders: each file once, whatever its names, and whose files lie among them."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptcore.catalogue import SUFFIXES
from ckptcore.cli.listing import OTHER_RUN, list_folder
from ckptcore.cli.output import Progress, note
from ckptcore.cli.text import clean, size
from ckptcore.errors import CheckpointError
from ckptcore.resume import ARCHIVED
from ckptcore.semver import is_version
from ckptcore.tree import walk
from ckptcore.verifying import Report, verify


@dataclass(frozen=True)
class Checked:
    """A file that was checked, under all names by which it was found."""

    paths: tuple[Path, ...]
    report: Report
    size: int

    def as_json(self) -> dict[str, Any]:
        """The file as `--json` shows it."""
        return {
            "path": self.paths[0],
            "paths": list(self.paths),
            "ok": self.report.ok,
            "format": self.report.format,
            "checked": self.report.checked,
            "tensors": self.report.tensors,
            "run_key": self.report.run_key,
            "findings": list(self.report.findings),
            "size": self.size,
        }


@dataclass(frozen=True)
class Strangers:
    """Files of other runs in one folder."""

    directory: Path
    names: tuple[str, ...]
    run_keys: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The folder as `--json` shows it."""
        return {"directory": self.directory, "names": list(self.names), "run_keys": list(self.run_keys)}


def checkpoint_files(paths: Sequence[Path]) -> list[Path]:
    """The files among the paths, and the checkpoints in and below the folders among them.

    Raises:
        FileNotFoundError: a path does not exist.
        OSError: a folder cannot be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        os.stat(path)
        found.update(dict.fromkeys(_below(path) if path.is_dir() else (path,)))
    return list(found)


def _below(directory: Path) -> Iterator[Path]:
    for place, folders, files in walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if name.endswith(SUFFIXES) and not name.startswith(".") and path.is_file():
                yield path


def check(files: Sequence[Path], named: Collection[Path] = ()) -> list[Checked]:
    """Check every file once, however many names it has; what was rotated away meanwhile is passed over.

    Args:
        files: the files.
        named: those of them that the user named.

    Raises:
        FileNotFoundError: a named one is gone.
    """
    names: dict[tuple[int, int], list[Path]] = {}
    for path in files:
        try:
            status = path.stat()
        except FileNotFoundError:
            _gone(path, named)
            continue
        names.setdefault((status.st_dev, status.st_ino), []).append(path)
    progress = Progress("checking", len(names))
    checked = []
    try:
        for paths in names.values():
            found = _checked(paths, named, progress)
            if found is not None:
                checked.append(found)
    finally:
        progress.end()
    return checked


def _checked(paths: list[Path], named: Collection[Path], progress: Progress) -> Checked | None:
    """One file under the first of its names that is still there; None where none is."""
    for at, path in enumerate(paths):
        try:
            nbytes = path.stat().st_size
            if at == 0:
                progress.begin(path.name, f"({size(nbytes)})")
            report = verify(path)
        except FileNotFoundError:
            _gone(path, named)
            continue
        return Checked(tuple(paths[at:]), _with_card(report, paths[at:]), nbytes)
    return None


def _gone(path: Path, named: Collection[Path]) -> None:
    if path in named:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    note(f"ckpt: {clean(str(path))} is gone: its writer rotated it away meanwhile")


def _with_card(report: Report, paths: Sequence[Path]) -> Report:
    """A promoted version must also be what its card says."""
    found = list(report.findings)
    for path in paths:
        if is_version(path.name):
            from ckptcore.versions import check_version, list_versions

            found += [
                f
                for card in list_versions(path.parent)
                if card.path.name == path.name
                for f in check_version(card)
            ]
    findings = tuple(dict.fromkeys(found))
    return Report(
        report.path, not findings, findings, report.format, report.checked, report.tensors, report.run_key
    )


def strangers(files: Sequence[Path]) -> list[Strangers]:
    """The files, among those given, of other runs than the newest file's in their folder.

    A folder that other runs' files were moved to, and promoted versions, hold them rightly.
    """
    found = []
    for directory in dict.fromkeys(path.parent for path in files):
        given = {path.name for path in files if path.parent == directory}
        if ARCHIVED in directory.parts:
            continue
        try:
            others = [i for i in list_folder(directory).of_status(OTHER_RUN) if given & set(i.names)]
        except CheckpointError:
            continue  # Each file was checked already; a folder that cannot be listed tells nothing of runs.
        keys = dict.fromkeys((i.header.run_key if i.header else None) or "saved by hand" for i in others)
        if others:
            found.append(Strangers(directory, tuple(name for i in others for name in i.names), tuple(keys)))
    return found
