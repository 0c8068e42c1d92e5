"""An archive holds everything, is proven before an original goes, and never takes a version away."""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from datetime import date

import pytest
import torch
from unreadable import make_unreadable

import ckptcore
from ckptcore import archive as archiving
from ckptcore import durable, folder, packing
from ckptcore.archive import archive, archive_name
from ckptcore.errors import CheckpointError, DamagedCheckpoint, DiskFull, FolderBusy, NothingThere, UsageError
from ckptcore.layouts import plain
from ckptcore.lease import Lease
from ckptcore.versions import promote

SUFFIXES = [".tar.zst", ".tar.gz"]


@pytest.fixture
def run(tmp_path):
    """A folder as training leaves it: hard links, histories, a version, a folder below, hidden files."""
    top = tmp_path / "xray"
    for epoch in (5, 10):
        torch.manual_seed(epoch)
        state = {"epoch": epoch - 1, "model_state_dict": torch.nn.Linear(40, 40).state_dict()}
        ckptcore.save(top / f"resnet50_epoch_{epoch}.pth", state)
    os.link(top / "resnet50_epoch_10.pth", top / "resnet50_best.pth")
    (top / "training_history.json").write_text('{"loss": [1.0, 0.5]}\n')
    (top / "config").mkdir()
    (top / "config" / "params.json").write_text("{}\n")
    (top / ".ckptcore-0123456789abcdef.tmp").write_bytes(b"unfinished")
    (top / ".gitignore").write_text("*\n")
    folder.write_pins(top, {})
    promote(top / "resnet50_best.pth", bump="minor")
    return top


PACKED = [
    ".ckptcore/pins.json",
    "config/params.json",
    "resnet50_best.pth",
    "resnet50_epoch_10.pth",
    "resnet50_epoch_5.pth",
    "resnet50_v1.0.0_best.json",
    "resnet50_v1.0.0_best.pth",
    "training_history.json",
]


def contents(top):
    return {p.relative_to(top).as_posix(): p.read_bytes() for p in sorted(top.rglob("*")) if p.is_file()}


def unpack(path, to):
    """With the programs that a person has, not with our own code."""
    to.mkdir()
    if path.name.endswith(".zst"):
        import zstandard

        with open(path, "rb") as packed, open(to / "a.tar", "wb") as plain:
            zstandard.ZstdDecompressor().copy_stream(packed, plain)
        path = to / "a.tar"
    subprocess.run(["tar", "-xf", path, "-C", to], check=True)
    return to / "xray"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_row_4_11_an_archive_unpacks_to_what_was_in_the_folder_and_the_originals_go(run, tmp_path, suffix):
    before = contents(run)
    report = archive(run, tmp_path / f"old{suffix}")
    found = unpack(report.path, tmp_path / "unpacked")
    assert contents(found) == {name: before[name] for name in PACKED}
    assert (found / "resnet50_best.pth").stat().st_ino == (found / "resnet50_epoch_10.pth").stat().st_ino
    assert [member.name for member in report.members] == PACKED
    assert [m.link_of for m in report.members if m.link_of] == ["resnet50_best.pth"]
    assert report.archive_bytes == report.path.stat().st_size
    sizes = {os.stat(found / name).st_ino: len(before[name]) for name in PACKED}
    assert report.original_bytes == sum(sizes.values())
    assert set(report.removed) == set(before) - set(contents(run))


def test_row_4_11_versions_cards_and_pins_stay_and_hidden_files_are_left_alone(run, tmp_path):
    folder.write_pins(run, {"resnet50_epoch_5.pth": "the one in the paper"})
    report = archive(run, tmp_path / "old.tar.zst")
    assert sorted(contents(run)) == [
        ".ckptcore-0123456789abcdef.tmp",
        ".ckptcore/pins.json",
        ".ckptcore/writer.lock",
        ".gitignore",
        "config/params.json",
        "resnet50_epoch_5.pth",
        "resnet50_v1.0.0_best.json",
        "resnet50_v1.0.0_best.pth",
    ]
    assert {kept.name: kept.reason for kept in report.kept} == {
        ".ckptcore/pins.json": "the folder's rules and pins",
        "config/params.json": "packed, and no checkpoint",
        "resnet50_epoch_5.pth": "pinned by hand: the one in the paper",
        "resnet50_v1.0.0_best.json": "a promoted version",
        "resnet50_v1.0.0_best.pth": "a promoted version",
    }


def test_row_1_8_versions_go_as_well_when_that_is_asked_for(run, tmp_path):
    report = archive(run, tmp_path / "old.tar.gz", include_versions=True)
    assert "resnet50_v1.0.0_best.pth" in report.removed
    assert [name for name in contents(run) if not name.startswith(".")] == ["config/params.json"]


def test_what_is_no_checkpoint_is_packed_and_stays(run, tmp_path):
    others = [
        "README.md",
        "config.json",
        "data/labels.csv",
        "notes.damaged",
        "settings/training_history.json",
    ]
    for name in others:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (run / "resnet50_epoch_15.pth.damaged2").write_bytes(b"set aside")
    report = archive(run, tmp_path / "old.tar.gz")
    assert {"resnet50_epoch_15.pth.damaged2", "training_history.json"} <= set(report.removed)
    left = {kept.name for kept in report.kept if kept.reason == "packed, and no checkpoint"}
    assert left == {*others, "config/params.json"} and not left & set(report.removed)
    assert left <= set(contents(run)) and left <= {member.name for member in report.members}


def test_the_records_of_a_run_go_with_its_checkpoint_and_a_policy_names_no_program(tmp_path):
    run = tmp_path / "xray"
    ckptcore.save(run / "best.ckpt", {"epoch": 0})
    for name in ("config.json", "minimal_logging.json", "scores.json", "train.py"):
        (run / name).write_text("{}")
    (run / ".ckptcore").mkdir()
    folder.write_policy(run, dataclasses.replace(plain("loss"), history_file="train.py"))
    assert set(archive(run, tmp_path / "a.tar.gz").removed) == {
        *("best.ckpt", "config.json", "minimal_logging.json")
    }
    folder.write_policy(run, dataclasses.replace(plain("loss"), history_file="scores.json"))
    assert archive(run, tmp_path / "b.tar.gz").removed == ("scores.json",)
    assert (run / "train.py").exists()


def test_an_empty_path_is_not_the_current_folder(tmp_path):
    with pytest.raises(UsageError, match="empty path"):
        archive("", tmp_path / "a.tar.gz")


def test_a_copy_beside_a_writer_that_rotates_names_what_went(run, tmp_path, monkeypatch):
    real = archiving._list

    def rotated(source):
        listed = real(source)
        (source / "resnet50_epoch_5.pth").unlink()
        return listed

    monkeypatch.setattr(archiving, "_list", rotated)
    with pytest.raises(CheckpointError, match=r"resnet50_epoch_5\.pth went away"):
        archive(run, tmp_path / "a.tar.gz", remove=False)
    assert sorted(os.listdir(tmp_path)) == ["xray"]


def test_originals_stay_when_that_is_asked_for(run, tmp_path):
    before = contents(run)
    report = archive(run, tmp_path / "old.tar.zst", remove=False)
    assert contents(run) == before and report.removed == ()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_folder_makes_the_same_bytes_and_names_nobody(run, tmp_path, suffix):
    first = archive(run, tmp_path / f"a{suffix}", remove=False).path
    second = archive(run, tmp_path / f"b{suffix}", remove=False).path
    assert first.read_bytes() == second.read_bytes()
    with (
        open(first, "rb") as raw,
        packing._decompressed(raw, first) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert all(re.fullmatch(r"xray/[^/].*", m.name) and not m.name.startswith("/") for m in members)
    modes = {m.name: m.mode for m in members}
    assert modes["xray/resnet50_v1.0.0_best.pth"] == 0o444


def test_row_4_11_the_usual_name_carries_folder_and_date(run):
    assert archive_name(run, date(2026, 1, 31)) == "archived_xray_20260131.tar.zst"
    assert re.fullmatch(r"archived_xray_\d{8}\.tar\.zst", archive_name(run))


def test_what_makes_no_sense_is_refused_before_anything_is_touched(run, tmp_path):
    before = contents(run)
    (tmp_path / "taken.tar.gz").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        archive(run, tmp_path / "taken.tar.gz")
    with pytest.raises(UsageError, match=r"\.tar\.zst or \.tar\.gz"):
        archive(run, tmp_path / "old.zip")
    with pytest.raises(UsageError, match="lies in the folder"):
        archive(run, run / "config" / "old.tar.gz")
    with pytest.raises(UsageError, match="no folder"):
        archive(tmp_path / "absent", tmp_path / "old.tar.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingThere, match="no files"):
        archive(tmp_path / "empty", tmp_path / "a new folder" / "old.tar.gz")
    assert contents(run) == before and (tmp_path / "taken.tar.gz").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["empty", "taken.tar.gz", "xray"]


def test_a_folder_that_a_run_writes_to_is_not_archived(run, tmp_path):
    lease = Lease(run)
    lease.acquire()
    try:
        with pytest.raises(FolderBusy, match="writer"):
            archive(run, tmp_path / "old.tar.gz")
        with pytest.raises(FolderBusy, match="writer"):
            archive(run, tmp_path / "copy.tar.gz", remove=False)
    finally:
        lease.release()
    assert archive(run, tmp_path / "copy.tar.gz", remove=False).removed == ()


def test_links_to_elsewhere_are_neither_followed_nor_deleted(run, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (run / "link.pth").symlink_to(tmp_path / "secret" / "key")
    (run / "folder").symlink_to(tmp_path / "secret")
    os.mkfifo(run / "pipe")
    report = archive(run, tmp_path / "old.tar.zst")
    reasons = {kept.name: kept.reason for kept in report.kept}
    assert reasons["link.pth"] == reasons["folder"] == "a symbolic link"
    assert reasons["pipe"] == "no regular file"
    assert (run / "link.pth").is_symlink() and (run / "folder").is_symlink()
    assert "secret" not in str(report.members)


@pytest.mark.parametrize("remove", [True, False])
def test_a_folder_that_cannot_be_read_stops_everything(run, tmp_path, monkeypatch, remove):
    before = contents(run)
    with monkeypatch.context() as patch:
        make_unreadable(patch, run / "config")
        with pytest.raises(PermissionError, match="config"):
            archive(run, tmp_path / "old.tar.gz", remove=remove)
    assert sorted(os.listdir(tmp_path)) == ["xray"] and contents(run).items() >= before.items()


def test_a_hidden_folder_that_cannot_be_read_stays_and_stops_nothing(run, tmp_path, monkeypatch):
    (run / ".git").mkdir()
    make_unreadable(monkeypatch, run / ".git")
    assert [m.name for m in archive(run, tmp_path / "old.tar.gz").members] == PACKED


def test_a_file_that_changes_while_it_is_packed_stops_everything(run, tmp_path, monkeypatch):
    real = packing.pack

    def changes(*args):
        temporary = real(*args)
        with open(run / "training_history.json", "a") as file:
            file.write("more")
        return temporary

    monkeypatch.setattr("ckptcore.archive.pack", changes)
    with pytest.raises(DamagedCheckpoint, match="training_history"):
        archive(run, tmp_path / "old.tar.gz")
    assert sorted(os.listdir(tmp_path)) == ["xray"]
    assert set(PACKED) <= set(contents(run))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_that_does_not_read_back_never_costs_an_original(run, tmp_path, monkeypatch, suffix):
    """One bit is flipped after writing, at places all over the archive; the last one is its own checksum."""
    before = contents(run)
    real = packing.pack
    size = archive(run, tmp_path / f"good{suffix}", remove=False).archive_bytes
    for at in [*range(0, size, size // 12), size - 5, size - 1]:

        def damaged(*args, at=at):
            temporary = real(*args)
            with open(temporary, "r+b") as file:
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))
            return temporary

        monkeypatch.setattr("ckptcore.archive.pack", damaged)
        # What the damage does not change (an unused header field) is as good as no damage; all else is found.
        try:
            archive(run, tmp_path / f"bad{suffix}", remove=False)
        except DamagedCheckpoint:
            assert not (tmp_path / f"bad{suffix}").exists()
        else:
            monkeypatch.undo()
            shutil.rmtree(tmp_path / "found", ignore_errors=True)
            assert (
                at < 10
                and contents(unpack(tmp_path / f"bad{suffix}", tmp_path / "found")).items() <= before.items()
            )
            (tmp_path / f"bad{suffix}").unlink()
        assert contents(run) == before


def test_a_truncated_archive_is_found(run, tmp_path, monkeypatch):
    real = packing.pack

    def cut(*args):
        temporary = real(*args)
        os.truncate(temporary, temporary.stat().st_size // 2)
        return temporary

    monkeypatch.setattr("ckptcore.archive.pack", cut)
    for suffix in SUFFIXES:
        with pytest.raises(DamagedCheckpoint):
            archive(run, tmp_path / f"old{suffix}")
    assert set(PACKED) <= set(contents(run))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_write_changes_nothing(run, tmp_path, monkeypatch, suffix, number):
    before = contents(run)

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(number, os.strerror(number))

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = packing._compressed
    monkeypatch.setattr(packing, "_compressed", lambda raw, target: real(Full(raw), target))
    with pytest.raises(DiskFull if number == errno.ENOSPC else OSError):
        archive(run, tmp_path / f"old{suffix}")
    assert sorted(os.listdir(tmp_path)) == ["xray"]
    assert {n: d for n, d in contents(run).items() if n != ".ckptcore/writer.lock"} == before


def test_a_disk_without_room_is_said_before_the_first_byte(run, tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 100)
    with pytest.raises(DiskFull, match=r"old\.tar\.zst"):
        archive(run, tmp_path / "old.tar.zst")
    assert set(PACKED) <= set(contents(run)) and not (tmp_path / "old.tar.zst").exists()


KILLED = """
import os, signal, sys
left = int(sys.argv[3])
def counted(real):
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call
from ckptcore.archive import archive
for name in ("open", "link", "replace", "unlink", "fsync", "write", "fchmod", "rename", "lstat"):
    setattr(os, name, counted(getattr(os, name)))
archive(sys.argv[1], sys.argv[2])
"""


def test_a_kill_at_any_call_leaves_the_originals_or_a_whole_archive(run, tmp_path):
    before = {name: data for name, data in contents(run).items() if name in PACKED}
    seen, killed, calls = set(), True, 0
    while killed:
        place = tmp_path / str(calls)
        copy = place / "xray"
        shutil.copytree(run, copy)
        target = place / "old.tar.gz"
        code = subprocess.run([sys.executable, "-c", KILLED, copy, target, str(calls)], timeout=60).returncode
        killed = code == -signal.SIGKILL
        assert killed or code == 0
        left = contents(copy)
        whole = before.items() <= left.items()
        assert whole or contents(unpack(target, place / "unpacked")).items() == before.items()
        seen.add((whole, target.exists()))
        shutil.rmtree(place)
        calls += 4
    assert seen == {(True, False), (True, True), (False, True)}
