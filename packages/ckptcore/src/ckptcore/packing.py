"""A folder's files in one compressed tar, read back and compared with the originals."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from ckptcore import durable
from ckptcore.errors import DamagedCheckpoint
from ckptcore.hashing import CHUNK, cores

SUFFIXES = (".tar.zst", ".tar.gz")
_LEVEL = {".tar.zst": 3, ".tar.gz": 6}


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: path below the folder, with slashes.
        size: bytes; 0 for a further name of a file.
        sha256: digest of its content.
        link_of: the member that holds the content, where this is a further name of the same file.
    """

    name: str
    size: int
    sha256: str
    link_of: str | None = None


@dataclass(frozen=True)
class Original:
    """A file of the folder as it was when it was listed."""

    name: str
    path: Path
    status: os.stat_result

    @property
    def inode(self) -> tuple[int, int]:
        return self.status.st_dev, self.status.st_ino

    def is_unchanged(self) -> bool:
        """Whether the name still means the same content, as far as a look at the inode can tell."""
        try:
            now = os.lstat(self.path)
        except FileNotFoundError:
            return False
        then = self.status
        return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) == (
            *self.inode,
            then.st_size,
            then.st_mtime_ns,
        )


def suffix_of(path: Path) -> str | None:
    """Which of `SUFFIXES` a file name ends in."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)


def pack(source: Path, target: Path, found: Sequence[Original]) -> Path:
    """The packed temporary file beside the target, on the disk."""
    # Weights are nearly noise: compression takes off a tenth. What does not fit shows while writing.
    size = sum({f.inode: f.status.st_size for f in found}.values()) * 9 // 10
    top = source.resolve().name
    first: dict[tuple[int, int], str] = {}
    with (
        durable.staged(target, size) as (fd, temporary),
        open(fd, "wb", closefd=False) as raw,
        _compressed(raw, target) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for file in found:
            with open(file.path, "rb") as content:
                info = _info(f"{top}/{file.name}", file, content)
                if file.inode in first:
                    info.type, info.linkname, info.size = tarfile.LNKTYPE, f"{top}/{first[file.inode]}", 0
                    tar.addfile(info)
                else:
                    first[file.inode] = file.name
                    tar.addfile(info, content)
    return temporary


def _info(name: str, file: Original, content: IO[bytes]) -> tarfile.TarInfo:
    """What tar keeps of a file: its name, mode and time, and nothing of who or where."""
    info = tarfile.TarInfo(name)
    info.size = os.fstat(content.fileno()).st_size
    info.mode = stat.S_IMODE(file.status.st_mode) & 0o777
    info.mtime = int(file.status.st_mtime)
    return info


@contextmanager
def _compressed(raw: IO[bytes], target: Path) -> Iterator[IO[bytes]]:
    suffix = suffix_of(target) or SUFFIXES[0]
    if suffix == ".tar.gz":
        with gzip.GzipFile("", "wb", _LEVEL[suffix], raw, mtime=0) as packed:
            yield cast(IO[bytes], packed)
        return
    import zstandard

    compressor = zstandard.ZstdCompressor(_LEVEL[suffix], threads=cores(), write_checksum=True)
    with compressor.stream_writer(raw, closefd=False) as writer:
        yield cast(IO[bytes], writer)


@contextmanager
def _decompressed(raw: IO[bytes], target: Path) -> Iterator[IO[bytes]]:
    if suffix_of(target) == ".tar.gz":
        with gzip.GzipFile("", "rb", fileobj=raw) as packed:
            yield cast(IO[bytes], packed)
        return
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False) as reader:
        yield cast(IO[bytes], reader)


def read_back(temporary: Path, target: Path, source: Path, found: Sequence[Original]) -> tuple[Member, ...]:
    """Read the archive back from the disk and compare every member with the file it was made from.

    Raises:
        DamagedCheckpoint: naming what differs.
    """
    wrong: list[str] = []
    members: dict[str, Member] = {}
    prefix = source.resolve().name + "/"
    try:
        with open(temporary, "rb") as raw:
            # What is compared shall come from the disk, not from memory that still holds what was meant.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with _decompressed(raw, target) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
                for info in tar:
                    member = _member(tar, info, prefix, members)
                    members[member.name] = member
                # The checksum of the compressed stream comes after the last member.
                while packed.read(CHUNK):
                    pass
    except _broken(target) as error:
        wrong.append(f"it cannot be read back ({error})")
    for file in found:
        member_found = members.get(file.name)
        if member_found is None or not _is_same(file, member_found, members):
            wrong.append(f"{file.name} is not in it as it is in the folder")
    if wrong or len(members) != len(found):
        raise DamagedCheckpoint(target, wrong or ["it holds more than the folder"])
    return tuple(members[file.name] for file in found)


def _broken(target: Path) -> tuple[type[Exception], ...]:
    """What a damaged archive raises when it is read."""
    found: tuple[type[Exception], ...] = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
    if suffix_of(target) == ".tar.gz":
        return found
    import zstandard

    return (*found, zstandard.ZstdError)


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, prefix: str, before: dict[str, Member]) -> Member:
    name = info.name.removeprefix(prefix)
    if info.islnk():
        first = info.linkname.removeprefix(prefix)
        return Member(name, 0, before[first].sha256 if first in before else "", first)
    content = tar.extractfile(info) or io.BytesIO()
    return Member(name, info.size, _sha256(content))


def _sha256(content: IO[bytes]) -> str:
    sha = hashlib.sha256()
    while chunk := content.read(CHUNK):
        sha.update(chunk)
    return sha.hexdigest()


def _is_same(file: Original, member: Member, members: dict[str, Member]) -> bool:
    """Whether a member is the file as it now stands in the folder."""
    if not file.is_unchanged():
        return False
    if member.link_of is not None:
        first = members.get(member.link_of)
        return first is not None and first.link_of is None and first.sha256 == member.sha256
    try:
        with open(file.path, "rb") as content:
            return _sha256(content) == member.sha256
    except FileNotFoundError:
        return False
