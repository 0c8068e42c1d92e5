"""The only module that changes the file system: everything that must survive a power cut goes through here.

A file appears under its name in four steps: written to a hidden temporary file beside the target, fsync,
rename, fsync of the folder. Until the last step the old file stands; after it the new one does. Whoever is
killed before leaves the temporary file, and the next one who writes to the folder removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from ckptcore.errors import DiskFull, FolderNotWritable

TEMPORARY_PREFIX = ".ckptcore-"
TEMPORARY_SUFFIX = ".tmp"
_in_flight: set[str] = set()
"""Names of the temporary files that this process is writing, perhaps in another thread."""
_WRITER = re.compile(
    r"\.ckptcore-(?P<machine>[0-9a-f]{8})-(?P<process>[1-9]\d{0,8})-(?P<begun>\d*)-[0-9a-f]{16}\.tmp"
)
_ABANDONED = 86_400.0
"""Seconds after which a temporary file of another machine, whose processes nobody sees here, is left over."""

_FICLONE = 0x40049409
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EACCES}


def is_temporary(name: str) -> bool:
    """Whether a file name is one that this module gives to unfinished files."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def temporary_beside(target: Path) -> Path:
    """A fresh name for an unfinished file in the folder of its target."""
    process = os.getpid()
    writer = f"{_machine()}-{process}-{_begun(process) or ''}"
    path = target.parent / f"{TEMPORARY_PREFIX}{writer}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    # The name alone, which is nobody else's: a folder may be spelt in several ways.
    _in_flight.add(path.name)
    return path


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary process may still write to a folder's file system."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each durable in the one above it.

    Raises:
        FolderNotWritable: it cannot be made, or is no folder.
    """
    missing = []
    above = folder.absolute()
    try:
        while not above.exists() and not above.is_symlink():
            missing.append(above)
            above = above.parent
        for path in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(path)
            sync_folder(path.parent)
    except (OSError, ValueError) as error:
        # ValueError: a NUL in the path, as a broken text field gives it.
        raise FolderNotWritable(
            f"cannot make the folder {str(folder)!r}: {getattr(error, 'strerror', None) or error}. "
            "Give a folder that you may write to."
        ) from error
    if not folder.is_dir():
        raise FolderNotWritable(f"{folder} is no folder; expected a folder to keep checkpoints in.")


def make_new_folder(wanted: Path) -> Path:
    """Make a folder that was not there; where the name is taken, one whose name ends in _2, _3, ...

    Raises:
        FolderNotWritable: it cannot be made.
    """
    make_folder(wanted.parent)
    folder, number = wanted, 1
    while True:
        try:
            os.mkdir(folder)
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}_{number}")
        except OSError as error:
            raise FolderNotWritable(
                f"cannot make the folder {folder}: {error.strerror}. Give a folder that you may write to."
            ) from error
        else:
            sync_folder(folder.parent)
            return folder


def require_writable(folder: Path) -> None:
    """Prove that files can be made in a folder, by making one.

    Raises:
        FolderNotWritable: they cannot.
    """
    probe = temporary_beside(folder / "probe")
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.unlink(probe)
        _in_flight.discard(probe.name)
    except OSError as error:
        raise FolderNotWritable(
            f"cannot write to {folder}: {error.strerror}. Ask for write permission, or give another folder."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync of the folder itself)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems know no fsync of folders; there the server makes renames durable.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


@contextmanager
def staged(target: Path, size: int, mode: int | None = None) -> Iterator[tuple[int, Path]]:
    """A temporary file beside the target; durable when the block ends, gone when it fails.

    What killed writers left beside the target goes first.

    Args:
        target: the name that the file will get.
        size: bytes that will be written, to refuse before the first one if they do not fit.
        mode: its permissions; by default those of the file it replaces, else what the umask allows.

    Yields:
        A descriptor to write to and the temporary path, which the caller renames with `publish`.

    Raises:
        DiskFull: the space is not there, before or while writing.
    """
    with suppress(OSError):
        # Before the room is measured, as it may be what they left that fills the disk.
        sweep(target.parent)
    free = free_bytes(target.parent)
    if size > free:
        raise DiskFull(target, size, free)
    path = temporary_beside(target)
    fd = _create(path, target, size)
    try:
        try:
            yield fd, path
            if mode is None and target.is_file():
                mode = target.stat().st_mode & 0o777 | 0o200
            if mode is not None:
                os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException as error:
        remove_quietly(path)
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise DiskFull(target, size, free_bytes(target.parent)) from error
        raise


def _create(path: Path, target: Path, size: int) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DiskFull(target, size, free_bytes(target.parent)) from error
        if error.errno in _NOT_WRITABLE:
            raise FolderNotWritable(
                f"cannot write to {target.parent}: {error.strerror}. "
                "Ask for write permission, or give another folder."
            ) from error
        raise


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte at the descriptor's position."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def publish(temporary: Path, names: list[Path]) -> None:
    """Give a finished temporary file its names, all in one folder, and make them durable.

    The names become hard links to one file, each put in place by a rename; where the file system has no hard
    links, copies.
    """
    made = [temporary]
    try:
        for name in names[1:]:
            made.append(temporary_beside(name))
            link_or_copy(temporary, made[-1])
            replace(made[-1], name)
        replace(temporary, names[0])
        sync_folder(temporary.parent)
    except BaseException as error:
        for leftover in made:
            remove_quietly(leftover)
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            # A longer folder needs a block, too.
            raise DiskFull(names[0], 0, free_bytes(temporary.parent)) from error
        raise


def add_names(source: Path, names: list[Path]) -> None:
    """Give a durable file further names in its folder, in place of whatever has them, and make them durable.

    Raises:
        DiskFull: there is no room for the names.
    """
    link = temporary_beside(source)
    try:
        link_or_copy(source, link)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DiskFull(names[0], 0, free_bytes(source.parent)) from error
        raise
    publish(link, names)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link to the source, or a durable copy of it where links cannot be had."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_durable(source, target)


def replace(source: Path, target: Path) -> None:
    """Rename over the target. Two links to one file, which rename(2) leaves alone, lose the first name."""
    os.replace(source, target)
    if source.exists():
        os.unlink(source)
    _in_flight.discard(source.name)


def copy_durable(source: Path, target: Path, mode: int | None = None) -> None:
    """A copy with an inode of its own (a reflink where the file system shares blocks), synced, under a new
    name.

    Raises:
        DiskFull: it does not fit.
    """
    size = source.stat().st_size
    with staged(target, size, mode) as (fd, temporary), open(source, "rb") as reader:
        if not _reflink(reader.fileno(), fd):
            while chunk := reader.read(4 << 20):
                write_all(fd, chunk)
    publish(temporary, [target])


def _reflink(source_fd: int, target_fd: int) -> bool:
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        return False
    return True


def write_text(target: Path, text: str, mode: int | None = None) -> None:
    """A small text file, whole or not at all."""
    write_bytes(target, text.encode("utf-8"), mode)


def write_bytes(target: Path, data: bytes, mode: int | None = None) -> None:
    """A small file, whole or not at all."""
    with staged(target, len(data), mode) as (fd, temporary):
        write_all(fd, data)
    publish(temporary, [target])


def claim(temporary: Path, target: Path) -> None:
    """Rename to a name that must be free.

    Raises:
        FileExistsError: it is taken.
    """
    try:
        _link_or_rename(temporary, target)
    except BaseException:
        remove_quietly(temporary)
        raise


def _link_or_rename(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "the name is taken", str(target)) from error
        os.rename(temporary, target)
    else:
        os.unlink(temporary)
    _in_flight.discard(temporary.name)


def remove(path: Path) -> None:
    """Delete a file; a file that is gone already is no error."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def remove_quietly(path: Path) -> None:
    """Delete a temporary file as far as that can be done; it is swept away later otherwise."""
    with suppress(OSError):
        os.unlink(path)
    _in_flight.discard(path.name)


def move(source: Path, target: Path) -> None:
    """Rename within one file system, durable in both folders; at no moment is the file without a name."""
    if source.parent == target.parent:
        os.replace(source, target)
        sync_folder(target.parent)
        return
    # Two folders reach the disk one after the other: the new name must be there before the old one goes.
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(source, target)
    else:
        sync_folder(target.parent)
        os.unlink(source)
    sync_folder(target.parent)
    sync_folder(source.parent)


def move_link(source: Path, target: Path, aim: str) -> None:
    """Move a symbolic link to another folder and let it name ``aim``, durable in both folders."""
    os.symlink(aim, target)
    sync_folder(target.parent)
    os.unlink(source)
    sync_folder(source.parent)


def sweep(folder: Path) -> list[Path]:
    """Delete the temporary files that killed writers left in a folder; what anybody is writing stays.

    Other machines and containers may write to the folder, too. Whether their processes live is not to be
    seen here, so their files go when nothing was done to them for a day; so do those whose name says nothing.
    """
    gone = []
    with os.scandir(folder) as entries:
        for entry in entries:
            left = is_temporary(entry.name) and entry.is_file(follow_symlinks=False)
            if left and not _is_being_written(entry):
                remove_quietly(Path(entry.path))
                gone.append(Path(entry.path))
    return gone


def _is_being_written(entry: os.DirEntry[str]) -> bool:
    """Whether who gave a temporary file its name may still live."""
    writer = _WRITER.fullmatch(entry.name)
    if entry.name in _in_flight:
        return True
    if writer is None or writer["machine"] != _machine():
        with suppress(FileNotFoundError):
            # The time of the inode: a further name of an old file is as old as the file by any other.
            return time.time() - entry.stat(follow_symlinks=False).st_ctime < _ABANDONED
        return True
    process = int(writer["process"])
    begun = None if process == os.getpid() else _begun(process)
    return begun is not None and (begun == writer["begun"] or not (begun and writer["begun"]))


def _begun(process: int) -> str | None:
    """When a process of this machine began, as the kernel counts; empty where it does not tell.

    Numbers of processes are given again, soon so in a container or after a restart; number and beginning
    together are not.

    Returns:
        None for a process that has ended, even if its parent has not asked how.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # Another user's, and so it lives; the kernel tells everybody when it began.
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as stream:
            told = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if told[0] in "ZX" else told[19]


@cache
def _machine() -> str:
    """Names the machine, and the container where that counts its processes for itself."""
    told: list[object] = [os.uname().nodename]
    # Several machines may have one name, such as localhost.
    with suppress(OSError):
        told.append(Path("/etc/machine-id").read_bytes())
    with suppress(OSError):
        told.append(os.stat("/proc/self/ns/pid").st_ino)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]
