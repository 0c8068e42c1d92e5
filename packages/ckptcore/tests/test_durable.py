"""Files appear whole or not at all; see tests/powercut for what an unsynced write may leave."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from states import tiny_state

import ckptcore
from ckptcore import durable
from ckptcore.errors import DiskFull, FolderNotWritable

CALLS = [
    "open",
    "write",
    "pwrite",
    "fsync",
    "replace",
    "rename",
    "link",
    "unlink",
    "fchmod",
    "statvfs",
    "close",
    "ftruncate",
]


class Failing:
    """Makes the n-th of the calls by which files are changed fail, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, code: int) -> None:
        self.count = 0
        self.failed: str | None = None
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), fail_at, code))

    def _wrapped(self, name: str, real: Callable[..., Any], fail_at: int, code: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == fail_at:
                self.failed = name
                if name == "close":
                    real(*args, **kwargs)
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call


def write_new(target: Path, data: bytes) -> None:
    """As importing, exporting, promoting and archiving give a name that must be free."""
    with durable.staged(target, len(data)) as (fd, temporary):
        durable.write_all(fd, data)
    durable.claim(temporary, target)
    durable.sync_folder(target.parent)


ACTIONS: dict[str, Callable[[Path], object]] = {
    "save": lambda folder: ckptcore.save(folder / "a.pt", tiny_state()),
    "write_text": lambda folder: durable.write_text(folder / "a.pt", "new"),
    "copy_durable": lambda folder: durable.copy_durable(folder / "source", folder / "a.pt"),
    "write_new": lambda folder: write_new(folder / "new", b"new"),
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_failure_at_any_call_leaves_the_old_file_and_no_leftovers(
    tmp_path: Path, action: str, code: int
) -> None:
    (tmp_path / "source").write_text("source")
    for fail_at in range(1, 60):
        (tmp_path / "a.pt").write_text("old")
        (tmp_path / "new").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, fail_at, code)
            try:
                ACTIONS[action](tmp_path)
                error = None
            except (OSError, DiskFull) as caught:
                error = caught
        if failing.failed is None:
            assert error is None
            break
        assert_whole(tmp_path, failing.failed, error, code)
    assert fail_at > 5


def assert_whole(folder: Path, failed: str, error: Exception | None, code: int) -> None:
    renamed = (folder / "a.pt").read_bytes() != b"old" or (folder / "new").exists()
    assert error is not None or renamed or failed == "unlink", failed
    leftovers = [name for name in os.listdir(folder) if durable.is_temporary(name)]
    # A name that cannot be unlinked stays, hidden; the next writer of the folder sweeps it away.
    assert leftovers == [] or failed == "unlink", failed
    for name in leftovers:
        (folder / name).unlink()
    if (folder / "a.pt").read_bytes()[:2] == b"PK":
        assert ckptcore.verify(folder / "a.pt").ok
    else:
        assert (folder / "a.pt").read_text() in ("old", "new", "source")
    if code == errno.ENOSPC and failed in ("write", "pwrite", "fsync"):
        assert isinstance(error, DiskFull) or renamed


def test_a_full_disk_says_what_was_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object, *_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull, match=r"a\.pt: needs [\d,]+ bytes, [\d,]+ are free") as caught:
        ckptcore.save(tmp_path / "a.pt", tiny_state())
    assert caught.value.free == durable.free_bytes(tmp_path) or caught.value.free > 0
    assert os.listdir(tmp_path) == []


def test_a_keyboard_interrupt_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        durable.write_text(tmp_path / "a", "text")
    assert os.listdir(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:7]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:7], at))
    path = ckptcore.save(tmp_path / "a.pt", tiny_state())
    monkeypatch.undo()
    assert ckptcore.verify(path).ok


def test_file_and_folder_are_synced_in_order_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*args: Any, name: str = name, real: Any = real) -> Any:
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            events.append("fsync folder" if folder else name)
            return real(*args)

        monkeypatch.setattr(os, name, spy)
    ckptcore.save(tmp_path / "a.pt", tiny_state())
    assert events == ["fsync", "replace", "fsync folder"]


def test_a_folder_that_knows_no_fsync_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def picky(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no fsync of folders")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", picky)
    durable.write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


def test_the_mode_is_kept_given_or_left_to_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        durable.write_text(tmp_path / "a", "x")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
        (tmp_path / "a").chmod(0o664)
        durable.write_text(tmp_path / "a", "y")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o664
        durable.write_text(tmp_path / "a", "z", mode=0o444)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o444
    finally:
        os.umask(before)


def test_several_names_are_links_to_one_file(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("epoch_1.pt", "best.pt", "latest.pt")]
    (tmp_path / "best.pt").write_text("old best")
    with durable.staged(names[0], 4) as (fd, temporary):
        durable.write_all(fd, b"data")
    durable.publish(temporary, names)
    assert {name.stat().st_ino for name in names} == {names[0].stat().st_ino}
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "epoch_1.pt", "latest.pt"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_where_there_are_no_links_the_names_are_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(code, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    names = [tmp_path / name for name in ("epoch_1.pt", "best.pt")]
    with durable.staged(names[0], 4) as (fd, temporary):
        durable.write_all(fd, b"data")
    durable.publish(temporary, names)
    assert [name.read_bytes() for name in names] == [b"data", b"data"]
    assert names[0].stat().st_ino != names[1].stat().st_ino
    write_new(tmp_path / "new", b"n")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "new", b"n")
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "epoch_1.pt", "new"]


def test_replacing_a_link_to_the_same_file_leaves_no_second_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    durable.replace(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


def test_a_copy_has_an_inode_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10_000_000)
    durable.copy_durable(tmp_path / "a", tmp_path / "b", mode=0o444)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "a").stat().st_ino != (tmp_path / "b").stat().st_ino
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o444


def test_a_new_file_never_takes_a_taken_name(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "taken", b"x")
    assert (tmp_path / "taken").read_text() == "mine"
    assert os.listdir(tmp_path) == ["taken"]


def left_over(folder: Path) -> Path:
    """A temporary file that nobody is writing any more."""
    path = durable.temporary_beside(folder / "a")
    durable.remove_quietly(path)
    path.write_text("unfinished")
    return path


def test_only_temporary_files_are_swept(tmp_path: Path) -> None:
    left, folder, link = (left_over(tmp_path) for _ in range(3))
    for path in (folder, link):
        path.unlink()
    folder.mkdir()
    link.symlink_to(left)
    for name in ("a.pt", ".hidden", f"x{left.name}"):
        (tmp_path / name).write_text("x")
    assert durable.sweep(tmp_path) == [left]
    assert (tmp_path / "a.pt").exists()


WRITER = """
import os, signal, sys
from pathlib import Path
from ckptcore import durable

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
"""
KILLED = {
    "written": "os.replace = die; durable.write_text(folder / 'a', 'new')",
    "copied": "os.replace = die; durable.copy_durable(folder / 'a', folder / 'b')",
    "named": "os.replace = die; durable.add_names(folder / 'a', [folder / 'b', folder / 'c'])",
    "claimed": (
        "os.link = die\n"
        "with durable.staged(folder / 'b', 1) as (_, made): pass\n"
        "durable.claim(made, folder / 'b')"
    ),
    "probed": "os.close = die; durable.require_writable(folder)",
}


def writer(folder: Path, what: str) -> subprocess.Popen[str]:
    """Another process, at work in a folder."""
    command = [sys.executable, "-c", WRITER + what, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "a zombie"])
@pytest.mark.parametrize("how", KILLED)
def test_what_a_killed_process_left_goes_with_the_next_write_to_the_folder(
    tmp_path: Path, how: str, reaped: bool
) -> None:
    (tmp_path / "a").write_text("old")
    with writer(tmp_path, KILLED[how]) as killed:
        ended = os.waitid(os.P_PID, killed.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        assert ended is not None and ended.si_status == signal.SIGKILL
        left = set(os.listdir(tmp_path)) - {"a"}
        assert left and all(map(durable.is_temporary, left))
        durable.write_text(tmp_path / "a", "newer")
        assert os.listdir(tmp_path) == ["a"]


def test_what_a_living_process_writes_stays_while_others_write_to_the_folder(tmp_path: Path) -> None:
    held = "with durable.staged(folder / 'b', 1) as (_, made): print(flush=True); input()\n"
    with writer(tmp_path, held + "durable.publish(made, [folder / 'b'])") as living:
        assert living.stdout is not None and living.stdout.readline() == "\n"
        durable.write_text(tmp_path / "a", "x")
        assert len(os.listdir(tmp_path)) == 2
        living.communicate("\n", timeout=60)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_this_process_writes_stays_however_its_folder_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with durable.staged(Path("a"), 1) as (_, unfinished):
        durable.write_text(tmp_path / "b", "x")
        assert unfinished.exists()
    durable.publish(unfinished, [Path("a")])
    assert sorted(os.listdir()) == ["a", "b"]


def renamed(path: Path, at: int, part: str) -> Path:
    """The file under a name with another machine (1), process (2) or beginning of that process (3)."""
    parts = path.name.split("-")
    return path.rename(path.with_name("-".join([*parts[:at], part, *parts[at + 1 :]])))


def test_a_process_that_was_given_the_number_of_a_killed_one_keeps_nothing(tmp_path: Path) -> None:
    for process in (os.getpid(), os.getppid()):
        renamed(renamed(left_over(tmp_path), 2, str(process)), 3, "1")
    durable.write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


def test_what_another_machine_writes_stays_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x")
    os.utime(tmp_path / "a", (0, 0))
    theirs = renamed(left_over(tmp_path), 1, "0123abcd")
    further = renamed(left_over(tmp_path), 1, "0123abcd")
    further.unlink()
    os.link(tmp_path / "a", further)
    nameless = tmp_path / ".ckptcore-x.tmp"
    nameless.write_text("x")
    assert durable.sweep(tmp_path) == []
    tomorrow = time.time() + 86_401
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert set(durable.sweep(tmp_path)) == {theirs, further, nameless}
    assert os.listdir(tmp_path) == ["a"]


def test_folders_that_are_made_are_synced_in_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(durable, "sync_folder", lambda folder: synced.append(folder.name))
    durable.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path.name, "a"]
    durable.make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_text("x"), lambda path: path.symlink_to("nowhere")],
    ids=["file", "dangling link"],
)
def test_a_folder_name_that_is_taken_by_something_else_is_an_error(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "x")
    with pytest.raises(FolderNotWritable):
        durable.make_folder(tmp_path / "x")
    with pytest.raises(FolderNotWritable):
        durable.make_folder(tmp_path / "x" / "below")


# --- real file systems
# ---------------------------------------------------------------------------------------


def test_a_really_full_disk_keeps_the_old_file_and_takes_a_smaller_one(small_disk: Path) -> None:
    path = ckptcore.save(small_disk / "a.pt", {"epoch": 1, "w": torch.ones(50_000)})
    with pytest.raises(DiskFull) as caught:
        ckptcore.save(path, {"epoch": 2, "w": torch.ones(400_000)})
    assert caught.value.needed > 1_600_000 > caught.value.free
    assert os.listdir(small_disk) == ["a.pt"]
    assert ckptcore.load(path)["epoch"] == 1
    assert ckptcore.load(ckptcore.save(path, {"epoch": 3}))["epoch"] == 3


def test_a_disk_that_fills_up_during_the_write_keeps_the_old_file(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ckptcore.save(small_disk / "a.pt", {"epoch": 1, "w": torch.ones(50_000)})
    free_bytes = durable.free_bytes
    answers = iter([1 << 40])
    monkeypatch.setattr(durable, "free_bytes", lambda folder: next(answers, None) or free_bytes(folder))
    with pytest.raises(DiskFull) as caught:
        ckptcore.save(path, {"epoch": 2, "w": torch.ones(400_000)})
    assert caught.value.free < 1 << 20
    assert os.listdir(small_disk) == ["a.pt"]
    assert ckptcore.load(path)["epoch"] == 1


def test_a_disk_full_to_the_last_byte_still_has_its_old_file(small_disk: Path) -> None:
    path = ckptcore.save(small_disk / "a.pt", {"epoch": 1})
    with open(small_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"x" * 4096)
    for action in (
        lambda: ckptcore.save(path, {"epoch": 2}),
        lambda: durable.write_text(small_disk / "b", "x" * 5000),
    ):
        with pytest.raises(DiskFull):
            action()
    assert sorted(os.listdir(small_disk)) == ["a.pt", "filler"]
    assert ckptcore.load(path)["epoch"] == 1


def test_room_that_a_killed_process_took_is_there_again_for_the_next_write(small_disk: Path) -> None:
    left_over(small_disk).write_bytes(bytes(700_000))
    durable.write_bytes(small_disk / "a", bytes(700_000))
    assert os.listdir(small_disk) == ["a"]


def test_a_read_only_folder_is_an_error_that_says_so_and_can_still_be_read(small_disk: Path) -> None:
    path = ckptcore.save(small_disk / "a.pt", {"epoch": 1})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(FolderNotWritable, match="Read-only file system"):
        ckptcore.save(path, {"epoch": 2})
    with pytest.raises(FolderNotWritable, match="Read-only file system"):
        durable.require_writable(small_disk)
    with pytest.raises(FolderNotWritable, match="Read-only file system"):
        durable.make_folder(small_disk / "below")
    assert ckptcore.load(path)["epoch"] == 1
    assert ckptcore.verify(path).ok


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write anywhere: permissions are tested as another user only"
)
def test_a_folder_without_permission_is_an_error_that_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FolderNotWritable, match="Permission"):
        ckptcore.save(tmp_path / "a.pt", {"epoch": 1})
    tmp_path.chmod(0o700)
