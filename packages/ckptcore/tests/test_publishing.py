"""Publishing: copies with inodes of their own, read-only; an earlier run's files go, versions stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ckptcore
from ckptcore import durable, layouts
from ckptcore.errors import DamagedCheckpoint, FolderBusy, UsageError


def train(folder: Path, epochs: int, **options: bool) -> None:
    layout = layouts.saved_models("net", every=2, **options)
    with ckptcore.CheckpointManager(folder, layout, asynchronous=False, handle_signals=False) as manager:
        for epoch in range(epochs):
            state = {"model_state_dict": {"w": torch.full((3,), float(epoch))}}
            manager.step(state, epoch=epoch, metrics={"val_auc": 0.5 + epoch / 100})


def test_published_files_are_read_only_copies_without_the_managers_own_latest(tmp_path: Path) -> None:
    train(tmp_path / "work", 4)
    published = ckptcore.publish(tmp_path / "work", tmp_path / "saved_models" / "net")
    assert {path.name for path in published} == {"net_best.pth", "net_epoch_2.pth", "net_epoch_4.pth"}
    for path in published:
        assert path.stat().st_mode & 0o777 == 0o444
        assert path.stat().st_nlink == 1
        assert ckptcore.verify(path).ok
    assert (tmp_path / "work" / "net_latest.pth").exists()


def test_publishing_again_drops_an_earlier_runs_files_and_keeps_versions_and_strangers(
    tmp_path: Path,
) -> None:
    target = tmp_path / "published"
    train(tmp_path / "first", 6)
    ckptcore.publish(tmp_path / "first", target)
    ckptcore.promote(target / "net_best.pth", version="1.0.0")
    (target / "notes.txt").write_text("mine")
    train(tmp_path / "second", 2)
    ckptcore.publish(tmp_path / "second", target)
    assert {path.name for path in target.iterdir()} >= {
        "net_v1.0.0_best.pth",
        "net_v1.0.0_best.json",
        "notes.txt",
    }
    assert {path.name for path in target.glob("*epoch*")} == {"net_epoch_2.pth"}
    assert ckptcore.read_header(target / "net_best.pth").epochs_finished == 2
    assert ckptcore.read_header(target / "net_v1.0.0_best.pth").epochs_finished == 6


def test_a_damaged_file_stops_it_before_anything_is_published(tmp_path: Path) -> None:
    train(tmp_path / "work", 2)
    best = tmp_path / "work" / "net_best.pth"
    data = bytearray(best.read_bytes())
    data[len(data) // 3] ^= 1
    best.write_bytes(data)
    with pytest.raises(DamagedCheckpoint):
        ckptcore.publish(tmp_path / "work", tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_a_folder_without_a_recorded_layout_is_refused(tmp_path: Path) -> None:
    ckptcore.save(tmp_path / "a.pt", {"epoch": 1})
    with pytest.raises(UsageError, match="recorded layout"):
        ckptcore.publish(tmp_path, tmp_path / "published")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("through", ["itself", "a link", "another spelling"])
def test_the_work_folder_is_no_place_to_publish_to(through: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    train(work, 4)
    (tmp_path / "link").symlink_to(work)
    target = {"itself": work, "a link": tmp_path / "link", "another spelling": work / ".." / "work"}[through]
    before = contents(work)
    with pytest.raises(UsageError, match="work folder itself"):
        ckptcore.publish(work, target)
    assert contents(work) == before


def test_a_folder_that_a_manager_writes_to_is_busy_and_free_again_after_publishing(tmp_path: Path) -> None:
    train(tmp_path / "first", 2)
    train(tmp_path / "second", 4)
    before = contents(tmp_path / "second")
    layout = layouts.saved_models("net", every=2)
    with (
        ckptcore.CheckpointManager(tmp_path / "second", layout, handle_signals=False),
        pytest.raises(FolderBusy),
    ):
        ckptcore.publish(tmp_path / "first", tmp_path / "second")
    assert contents(tmp_path / "second") == before
    ckptcore.publish(tmp_path / "first", tmp_path / "second")
    ckptcore.CheckpointManager(tmp_path / "second", layout, handle_signals=False).close()


def test_pinned_files_of_the_target_stay(tmp_path: Path) -> None:
    target = tmp_path / "published"
    train(tmp_path / "first", 6)
    train(tmp_path / "second", 2)
    ckptcore.publish(tmp_path / "first", target)
    ckptcore.pin(target / "net_epoch_6.pth", "paper")
    ckptcore.publish(tmp_path / "second", target)
    assert {path.name for path in target.glob("*epoch*")} == {"net_epoch_2.pth", "net_epoch_6.pth"}


def in_the_way(target: Path, kind: str) -> None:
    place = target / "net_epoch_2.pth"
    place.unlink()
    if kind == "a foreign file":
        torch.save({"precious": 1}, place)
    elif kind == "a folder":
        place.mkdir()
    elif kind == "a pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("nowhere")


@pytest.mark.parametrize("kind", ["a foreign file", "a folder", "a pipe", "a dangling link"])
def test_what_ckptcore_did_not_write_is_not_replaced_and_nothing_is_copied(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "published"
    train(tmp_path / "first", 4)
    train(tmp_path / "second", 2)
    ckptcore.publish(tmp_path / "first", target)
    in_the_way(target, kind)
    before, names = contents(target), sorted(os.listdir(target))
    with pytest.raises(UsageError, match=r"net_epoch_2\.pth is in the way"):
        ckptcore.publish(tmp_path / "second", target)
    assert contents(target) == before and sorted(os.listdir(target)) == names


def test_a_pinned_name_is_not_replaced_and_nothing_is_copied(tmp_path: Path) -> None:
    target = tmp_path / "published"
    train(tmp_path / "first", 4)
    train(tmp_path / "second", 2)
    ckptcore.publish(tmp_path / "first", target)
    ckptcore.pin(target / "net_epoch_2.pth", "paper")
    before = contents(target)
    with pytest.raises(UsageError, match=r"is pinned \(paper\)"):
        ckptcore.publish(tmp_path / "second", target)
    assert contents(target) == before


KILLED = """
import os, signal, sys
import ckptcore
from ckptcore import durable

durable.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
ckptcore.publish(*sys.argv[1:])
"""


def test_a_publication_that_was_killed_leaves_nothing_when_it_is_made_again(tmp_path: Path) -> None:
    work, target = tmp_path / "work", tmp_path / "published"
    train(work, 4)
    killed = subprocess.run([sys.executable, "-c", KILLED, work, target], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [durable.is_temporary(name) for name in os.listdir(target)] == [True]
    published = ckptcore.publish(work, target)
    assert sorted(target.iterdir()) == sorted(published)
