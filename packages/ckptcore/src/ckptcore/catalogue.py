"""What checkpoints lie in a folder, told by their headers alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptcore.errors import CheckpointError, UsageError
from ckptcore.header import Header
from ckptcore.loading import read_header
from ckptcore.semver import SUFFIXES as NATIVE

SUFFIXES = (*NATIVE, ".safetensors")
"""The endings of the files that are looked at: those of native checkpoints, and safetensors."""


@dataclass(frozen=True)
class Listed:
    """A checkpoint file in a folder.

    Attributes:
        path: the file.
        header: what it says of itself; None where it is damaged.
        problem: what is wrong with it, where something is.
        size: bytes.
        inode: device and inode: names of one file share it.
        links: how many names the file has.
        modified: Unix time in nanoseconds.
    """

    path: Path
    header: Header | None
    problem: str | None
    size: int
    inode: tuple[int, int]
    links: int
    modified: int

    @property
    def name(self) -> str:
        """The file name."""
        return self.path.name

    @property
    def native(self) -> bool:
        """Whether ckptcore wrote it, and its header is whole."""
        return self.header is not None and self.header.format == "ckptcore"

    @property
    def order(self) -> tuple[int, int, str]:
        """Sort key from old to new: epochs, steps, then the time of writing; unknown counts as oldest."""
        if self.header is None:
            return (-1, -1, "")
        finished, step = self.header.epochs_finished, self.header.global_step
        return (-1 if finished is None else finished, -1 if step is None else step, self.header.created or "")

    @property
    def sequence(self) -> int:
        """Which save of its run it is, as its manager counts (clocks do not say); -1 if unknown."""
        found = self.header.metadata.get("sequence") if self.header is not None else None
        return found if type(found) is int else -1


class Catalogue(Sequence[Listed]):
    """The checkpoints of a folder, sorted from old to new and then by name."""

    def __init__(self, directory: Path, files: Sequence[Listed]) -> None:
        self.directory = directory
        self._files = sorted(files, key=lambda f: (f.order, f.name))

    def __getitem__(self, index: int) -> Listed:  # type: ignore[override]
        return self._files[index]

    def __len__(self) -> int:
        return len(self._files)

    @staticmethod
    def scan(directory: str | os.PathLike[str]) -> Catalogue:
        """Read the headers of the checkpoint files in a folder, not below it; links are read once.

        Raises:
            UsageError: there is no such folder.
        """
        folder = Path(directory)
        try:
            with os.scandir(folder) as entries:
                found = [
                    e
                    for e in entries
                    if e.name.endswith(SUFFIXES) and not e.name.startswith(".") and e.is_file()
                ]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"expected a folder of checkpoints, got {folder}, which is no folder."
            ) from error
        return Catalogue(folder, list(_listed(found)))

    def of_run(self, run_key: str) -> list[Listed]:
        """The native files of one run, from old to new."""
        return [f for f in self._files if f.native and f.header is not None and f.header.run_key == run_key]

    def run_keys(self) -> list[str]:
        """The runs that wrote native files here, the one of the newest file last."""
        keys: dict[str, str] = {}
        for file in self._files:
            if file.native and file.header is not None and file.header.run_key:
                key = file.header.run_key
                keys[key] = max(keys.get(key, ""), file.header.created or "")
        return sorted(keys, key=lambda key: keys[key])


def _listed(found: Sequence[os.DirEntry[str]]) -> Iterator[Listed]:
    seen: dict[tuple[int, int], tuple[Header | None, str | None]] = {}
    for entry in found:
        path = Path(entry.path)
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue  # Rotated away by its writer while we were looking.
        inode = (status.st_dev, status.st_ino)
        if inode not in seen:
            try:
                seen[inode] = (read_header(path), None)
            except FileNotFoundError:
                continue
            except (CheckpointError, OSError) as error:
                seen[inode] = (None, str(error))
        header, problem = seen[inode]
        yield Listed(path, header, problem, status.st_size, inode, status.st_nlink, status.st_mtime_ns)
