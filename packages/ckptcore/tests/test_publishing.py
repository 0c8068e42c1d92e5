"""Publishing: copies with inodes of their own, read-only; an earlier run's files go, versions stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptcore
from ckptcore import layouts
from ckptcore.errors import DamagedCheckpoint, UsageError


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
