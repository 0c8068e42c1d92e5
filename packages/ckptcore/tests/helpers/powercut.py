"""What a disk may hold after a power cut: operations are recorded, then replayed with un-synced ones dropped.

The file system modelled keeps no journal and promises only what POSIX does. Until a file is synced, what was
written to it may be there, be missing, be cut short or be zeros. Until its folder is synced, a name that was
made, renamed, linked or deleted may be there or not, each independently of the others; only a rename within
one folder is one change, and one across folders is two. Syncing a file says nothing about its name.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

from ckptcore.durable import is_temporary

SAMPLES = 5000
"""States drawn for one moment, where more are possible."""


@dataclass(frozen=True)
class Entry:
    """A change of names in a folder that reaches the disk as one: (name, its new meaning or None)."""

    folder: str
    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Operation:
    """One recorded call: its kind, and what that kind needs."""

    kind: str
    entries: tuple[Entry, ...] = ()
    file: int = -1
    content: bytes = b""
    folder: str = ""
    mark: Any = None


@dataclass
class Recording:
    """Everything that happened below a folder.

    Attributes:
        start: names by folder, before the first operation; -1 means a folder.
        contents: of the files that were there.
        operations: in order.
        left: contents at the end, of the files that are still there.
    """

    start: dict[str, dict[str, int]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    left: dict[int, bytes] = field(default_factory=dict)

    def mark(self, what: Any) -> None:
        """Note that from here on a caller was told that something is done."""
        self.operations.append(Operation("mark", mark=what))


class _Recorder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.recording = Recording()
        self._files: dict[int, int] = {}
        self._open: dict[int, tuple[str, Any]] = {}
        self._count = 0
        for where, folders, names in os.walk(root):
            at = self._relative(where) or ""
            self.recording.start[at] = dict.fromkeys(folders, -1) | {
                name: self.number(os.path.join(where, name)) for name in names
            }
            for name in names:
                number = self.recording.start[at][name]
                self.recording.contents[number] = Path(where, name).read_bytes()

    def _relative(self, path: Any) -> str | None:
        if isinstance(path, int):
            return None
        try:
            found = Path(os.path.abspath(path)).relative_to(self.root).as_posix()
        except ValueError:
            return None
        return "" if found == "." else found

    def number(self, path: Any, new: bool = False) -> int:
        inode = os.stat(path, follow_symlinks=False).st_ino
        if new or inode not in self._files:
            self._count += 1
            self._files[inode] = self._count
        return self._files[inode]

    def _add(self, kind: str, *entries: tuple[str, int | None], **more: Any) -> None:
        """Record changes of names, those in one folder as one."""
        folders: dict[str, list[tuple[str, int | None]]] = {}
        for path, meaning in entries:
            at = PurePosixPath(path)
            folders.setdefault("" if str(at.parent) == "." else str(at.parent), []).append((at.name, meaning))
        made = tuple(Entry(folder, tuple(changes)) for folder, changes in folders.items())
        self.recording.operations.append(Operation(kind, made, **more))

    def open(self, call: Callable[..., int], path: Any, flags: int, *rest: Any, **named: Any) -> int:
        shown = self._relative(path)
        new = shown is not None and bool(flags & os.O_CREAT) and not os.path.lexists(path)
        fd = call(path, flags, *rest, **named)
        self._open.pop(fd, None)
        if shown is not None:
            if os.path.isdir(path):
                self._open[fd] = ("folder", shown)
            else:
                self._open[fd] = ("file", self.number(path, new))
            if new:
                self._add("create", (shown, self.number(path)))
        return fd

    def data(self, call: Callable[..., Any], fd: int, *rest: Any) -> Any:
        result = call(fd, *rest)
        kind, what = self._open.get(fd, ("", None))
        if kind == "file":
            self.recording.operations.append(Operation("data", file=what))
        return result

    def fsync(self, call: Callable[..., None], fd: int) -> None:
        call(fd)
        kind, what = self._open.get(fd, ("", None))
        if kind == "file":
            content = os.pread(fd, os.fstat(fd).st_size, 0)
            self.recording.operations.append(Operation("sync", file=what, content=content))
        elif kind == "folder":
            self.recording.operations.append(Operation("sync folder", folder=what))

    def rename(self, call: Callable[..., None], source: Any, target: Any, **named: Any) -> None:
        old, new = self._relative(source), self._relative(target)
        same = os.path.lexists(target) and os.path.samefile(source, target)
        file = -1 if os.path.isdir(source) else self.number(source)
        call(source, target, **named)
        if old is not None and new is not None and not same:
            self._add("rename", (new, file), (old, None))

    def link(self, call: Callable[..., None], source: Any, target: Any, **named: Any) -> None:
        call(source, target, **named)
        shown = self._relative(target)
        if shown is not None:
            self._add("link", (shown, self.number(target)))

    def unlink(self, call: Callable[..., None], path: Any, **named: Any) -> None:
        call(path, **named)
        shown = self._relative(path)
        if shown is not None:
            self._add("unlink", (shown, None))

    def mkdir(self, call: Callable[..., None], path: Any, *rest: Any) -> None:
        call(path, *rest)
        shown = self._relative(path)
        if shown is not None:
            self._add("mkdir", (shown, -1))


_WATCHED = {
    "open": "open",
    "write": "data",
    "pwrite": "data",
    "ftruncate": "data",
    "fsync": "fsync",
    "replace": "rename",
    "rename": "rename",
    "link": "link",
    "unlink": "unlink",
    "remove": "unlink",
    "mkdir": "mkdir",
}


@contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """Record the file operations of this process below a folder."""
    recorder = _Recorder(root.resolve())

    def watched(handler: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: handler(call, *args, **named)

    patches = {n: watched(getattr(recorder, h), getattr(os, n)) for n, h in _WATCHED.items()}
    with mock.patch.multiple(os, **patches):
        yield recorder.recording
    for path in root.rglob("*"):
        if path.is_file():
            recorder.recording.left[recorder.number(path)] = path.read_bytes()


@dataclass(frozen=True)
class State:
    """One content of the disk, and what callers had been told by the last moment at which it may be found.

    Attributes:
        names: path to file number; -1 is a folder.
        contents: by file number.
        told: the marks before the cut.
    """

    names: dict[str, int]
    contents: dict[int, bytes]
    told: tuple[Any, ...]

    def materialise(self, at: Path) -> None:
        """Make the folder as it would be found."""
        at.mkdir()
        made: dict[int, Path] = {}
        for name, file in self.names.items():
            path = at / name
            if file == -1:
                path.mkdir()
            elif file in made:
                os.link(made[file], path)
            else:
                path.write_bytes(self.contents[file])
                made[file] = path


@dataclass(frozen=True)
class Survey:
    """The states that power cuts leave, each once.

    Attributes:
        moments: operations before which the power was cut, and the end.
        replays: combinations that were looked at.
        sampled: moments with more combinations than could be looked at.
        states: the different ones.
    """

    moments: int
    replays: int
    sampled: int
    states: list[State]


def survey(recording: Recording, seed: int = 0) -> Survey:
    """All states that a cut at any moment may leave."""
    chance = random.Random(seed)
    final = _final_contents(recording)
    durable = {folder: dict(names) for folder, names in recording.start.items()}
    pending: list[Entry] = []
    synced = dict(recording.contents)
    dirty: set[int] = set()
    told: list[Any] = []
    found: dict[frozenset[tuple[str, int, bytes]], State] = {}
    replays = sampled = 0
    moments = [None, *recording.operations]
    for operation in moments:
        if operation is not None:
            _advance(operation, durable, pending, synced, dirty, told)
            if operation.kind in ("data", "sync") and replays:
                # Where only temporary names reach the file, the states are those of before.
                reachable = {
                    f for e in pending for n, f in e.changes if f is not None and not is_temporary(n)
                }
                if operation.file not in reachable:
                    continue
        count = 2 ** len(pending)
        choices: Sequence[tuple[bool, ...]]
        if count > SAMPLES:
            sampled += 1
            choices = [tuple(chance.random() < 0.5 for _ in pending) for _ in range(SAMPLES)]
            choices += [(True,) * len(pending), (False,) * len(pending)]
        else:
            choices = list(product((False, True), repeat=len(pending)))
        for kept in choices:
            names = _names(durable, pending, kept)
            for contents in _contents(names, synced, dirty, final):
                replays += 1
                # A state that is found again later is checked against what callers knew then.
                found[_key(names, contents)] = State(names, contents, tuple(told))
    return Survey(len(moments), replays, sampled, list(found.values()))


def _advance(
    operation: Operation,
    durable: dict[str, dict[str, int]],
    pending: list[Entry],
    synced: dict[int, bytes],
    dirty: set[int],
    told: list[Any],
) -> None:
    match operation.kind:
        case "mark":
            told.append(operation.mark)
        case "data":
            dirty.add(operation.file)
        case "sync":
            synced[operation.file] = operation.content
            dirty.discard(operation.file)
        case "sync folder":
            names = durable.setdefault(operation.folder, {})
            for entry in [e for e in pending if e.folder == operation.folder]:
                _apply(names, entry)
                pending.remove(entry)
        case _:
            pending.extend(operation.entries)
            if operation.kind == "create":
                synced[operation.entries[0].changes[0][1] or 0] = b""


def _apply(names: dict[str, int], entry: Entry) -> None:
    for name, meaning in entry.changes:
        if meaning is None:
            names.pop(name, None)
        else:
            names[name] = meaning


def _names(
    durable: dict[str, dict[str, int]], pending: Sequence[Entry], kept: Sequence[bool]
) -> dict[str, int]:
    """Path to file, for what the root reaches."""
    folders = {folder: dict(names) for folder, names in durable.items()}
    for entry, there in zip(pending, kept, strict=True):
        if there:
            _apply(folders.setdefault(entry.folder, {}), entry)
    found: dict[str, int] = {}
    waiting = [""]
    while waiting:
        at = waiting.pop()
        for name, file in folders.get(at, {}).items():
            path = f"{at}/{name}" if at else name
            found[path] = file
            if file == -1:
                waiting.append(path)
    return found


def _contents(
    names: dict[str, int], synced: dict[int, bytes], dirty: set[int], final: dict[int, bytes]
) -> Iterator[dict[int, bytes]]:
    """What the reached files may hold."""
    files = sorted({file for file in names.values() if file != -1})
    shown = {file for path, file in names.items() if not is_temporary(PurePosixPath(path).name)}
    unsure = [file for file in files if file in dirty]
    variants = []
    for file in unsure:
        whole = final.get(file, b"")
        half = whole[: len(whole) // 2]
        torn = [half + bytes(len(whole) - len(half))]
        full = [synced.get(file, b""), whole, half, bytes(len(whole)), *torn]
        variants.append(full if file in shown else torn)
    for chosen in product(*variants):
        yield {file: synced.get(file, b"") for file in files} | dict(zip(unsure, chosen, strict=True))


def _final_contents(recording: Recording) -> dict[int, bytes]:
    """What each file holds when all is written."""
    return recording.left | {o.file: o.content for o in recording.operations if o.kind == "sync"}


def _key(names: dict[str, int], contents: dict[int, bytes]) -> frozenset[tuple[str, int, bytes]]:
    """The same for states that differ only in unfinished files and in who held the folder."""
    return frozenset(
        (path, file, contents.get(file, b""))
        for path, file in names.items()
        if "/.ckptcore-" not in f"/{path}" and not path.endswith(("writer.lock", "writer.json"))
    )
