"""The lock of a folder: one holder, known by name, gone with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ckptcore import durable
from ckptcore.errors import FolderBusy
from ckptcore.lease import Lease

HOLD = """
import os, sys
from pathlib import Path
from ckptcore.lease import Lease
lease = Lease(Path(sys.argv[1]))
lease.acquire()
if len(sys.argv) > 2 and os.fork() == 0:
    lease.release()  # a data loader's worker, say, that ends as its parent's copy would
    if sys.argv[2] == "exit":
        sys.exit()
    os.write(1, b"forked\\n")
    sys.stdin.read()
    os._exit(0)
if len(sys.argv) > 2 and sys.argv[2] == "exit":
    os.wait()
os.write(1, b"held\\n")
sys.stdin.read()
"""


def hold(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != b"held\n":
        assert process.poll() is None
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def test_the_holder_is_named_and_a_kill_frees_the_folder_at_once(tmp_path: Path) -> None:
    process = hold(tmp_path)
    lease = Lease(tmp_path)
    with pytest.raises(FolderBusy, match=f"pid {process.pid}"):
        lease.acquire()
    end(process)
    lease.acquire()
    assert lease.holder()["pid"] == os.getpid()
    lease.release()
    assert lease.holder() == {}


def test_a_second_lease_of_the_same_process_is_refused(tmp_path: Path) -> None:
    first, second = Lease(tmp_path), Lease(tmp_path)
    first.acquire()
    with pytest.raises(FolderBusy, match=f"pid {os.getpid()}"):
        second.acquire()
    second.release()  # holds nothing, ends nothing
    with pytest.raises(FolderBusy):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_who_waits_gets_the_folder_when_it_is_given_back(tmp_path: Path) -> None:
    first, second = Lease(tmp_path), Lease(tmp_path)
    first.acquire()
    threading.Timer(0.2, first.release).start()
    began = time.monotonic()
    second.acquire(wait_seconds=20)
    assert 0.1 < time.monotonic() - began < 15
    second.release()


def test_a_forked_child_neither_keeps_nor_ends_its_parents_lock(tmp_path: Path) -> None:
    process = hold(tmp_path, "exit")  # the child has gone
    lease = Lease(tmp_path)
    try:
        with pytest.raises(FolderBusy, match=f"pid {process.pid}"):
            lease.acquire()
    finally:
        end(process)
    process = hold(tmp_path / "other", "stay")
    os.kill(process.pid, signal.SIGKILL)  # the child stays
    process.wait()
    lease = Lease(tmp_path / "other")
    try:
        lease.acquire(wait_seconds=5)
        lease.release()
    finally:
        end(process)


@pytest.mark.parametrize("note", [b"", b"{", b"[1]", b"\xff\xfe", b"x" * 100])
def test_a_note_that_says_nothing_holds_nobody_up(note: bytes, tmp_path: Path) -> None:
    process = hold(tmp_path)
    (tmp_path / ".ckptcore" / "writer.json").write_bytes(note)
    try:
        with pytest.raises(FolderBusy, match="an unknown process"):
            Lease(tmp_path).acquire()
    finally:
        end(process)
    lease = Lease(tmp_path)
    lease.acquire()
    lease.release()


def test_a_note_that_cannot_be_written_for_lack_of_space_is_no_reason_not_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(durable, "free_bytes", lambda _: 0)
    lease = Lease(tmp_path)
    lease.acquire()
    assert "is not noted" in caplog.text
    with pytest.raises(FolderBusy):
        Lease(tmp_path).acquire()
    lease.release()


def test_a_lease_that_could_not_be_completed_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_text", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
        with pytest.raises(OSError, match="broken"):
            Lease(tmp_path).acquire()
    lease = Lease(tmp_path)
    lease.acquire()
    lease.release()


def test_a_folder_in_the_place_of_the_note_does_not_keep_the_lock_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".ckptcore" / "writer.json").mkdir(parents=True)
    lease = Lease(tmp_path)
    lease.acquire()
    assert "is not noted" in caplog.text
    with pytest.raises(FolderBusy):
        Lease(tmp_path).acquire()
    lease.release()
    Lease(tmp_path).acquire()
