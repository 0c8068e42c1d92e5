"""How much room checkpoints really take: by folder and by kind, hard links counted once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptcore.cards import CARD_SUFFIX
from ckptcore.errors import UsageError
from ckptcore.kinds import BEST, EXPORT, OTHER, PERIODIC, ROLES, VERSION, kind_of_name
from ckptcore.semver import SUFFIXES, is_version
from ckptcore.tree import walk

KINDS = ("best", "periodic", "versions", "exports", "other")
_BLOCK = 512
_ROW_OF = {
    **dict.fromkeys((*ROLES, PERIODIC), "periodic"),
    **{BEST: "best", VERSION: "versions", EXPORT: "exports"},
}
# A file with several names counts under the one that says most about why it must stay.
_ORDER = ("versions", "best", "exports", "periodic", "other")


@dataclass(frozen=True)
class KindRow:
    """Files of one kind.

    Attributes:
        files: names.
        apparent_bytes: the sizes of all names.
        real_bytes: what the disk gives up if they all go: blocks in use, names of one file counted once.
    """

    files: int
    apparent_bytes: int
    real_bytes: int


@dataclass(frozen=True)
class Row:
    """Files of one folder, in all and by kind; ``name`` is "." for files in the root itself."""

    name: str
    files: int
    apparent_bytes: int
    real_bytes: int
    kinds: Mapping[str, KindRow]


@dataclass(frozen=True)
class DiskUsage:
    """What `disk_usage` found; ``total`` counts a file once even where two folders name it."""

    root: Path
    rows: tuple[Row, ...]
    total: Row


@dataclass(frozen=True)
class _File:
    kind: str
    size: int
    blocks: int
    inode: tuple[int, int]


def disk_usage(root: str | os.PathLike[str]) -> DiskUsage:
    """Measure a folder of checkpoints, one row for each folder in it.

    Args:
        root: say ``saved_models``, with a folder for each modality.

    Raises:
        UsageError: there is no such folder.
        OSError: a folder below cannot be read.
    """
    top = Path(root)
    if not top.is_dir():
        raise UsageError(f"expected a folder to measure, got {top}, which is no folder.")
    groups: dict[str, list[_File]] = {}
    with os.scandir(top) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            name = entry.name if entry.is_dir(follow_symlinks=False) else "."
            groups.setdefault(name, []).extend(_files(entry, top))
    rows = tuple(_row(name, files) for name, files in sorted(groups.items()) if files)
    return DiskUsage(top, rows, _row("total", [file for files in groups.values() for file in files]))


def kind_of(path: Path) -> str:
    """What a file is for, by its name and folder: one of `KINDS`."""
    name = path.name
    if name.endswith(CARD_SUFFIX) and is_version(name.removesuffix(CARD_SUFFIX) + SUFFIXES[0]):
        return "versions"
    found = _ROW_OF.get(kind_of_name(name), OTHER)
    return "exports" if found != "versions" and "exports" in path.parts else found


def _files(entry: os.DirEntry[str], top: Path) -> Iterator[_File]:
    if not entry.is_dir(follow_symlinks=False):
        yield from _measured(Path(entry.path), top)
        return
    for where, _, names in walk(entry.path):
        for name in names:
            yield from _measured(Path(where, name), top)


def _measured(path: Path, top: Path) -> Iterator[_File]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return  # Rotated away by its writer while we were looking.
    inode = (status.st_dev, status.st_ino)
    yield _File(kind_of(path.relative_to(top)), status.st_size, status.st_blocks * _BLOCK, inode)


def _row(name: str, files: list[_File]) -> Row:
    once: dict[tuple[int, int], _File] = {}
    for file in sorted(files, key=lambda f: _ORDER.index(f.kind)):
        once.setdefault(file.inode, file)
    kinds = {}
    for kind in KINDS:
        named = [file for file in files if file.kind == kind]
        real = sum(file.blocks for file in once.values() if file.kind == kind)
        kinds[kind] = KindRow(len(named), _sizes(named), real)
    return Row(name, len(files), _sizes(files), sum(file.blocks for file in once.values()), kinds)


def _sizes(files: Iterable[_File]) -> int:
    return sum(file.size for file in files)
