"""Disk use by folder and kind, in the bytes that the disk really gives."""

import os
import subprocess

import pytest
from unreadable import make_unreadable

from ckptcore.disk_usage import KINDS, disk_usage
from ckptcore.errors import UsageError


def put(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


@pytest.fixture
def saved_models(tmp_path):
    for epoch in (5, 10, 15):
        put(tmp_path / "thorax" / f"resnet50_epoch_{epoch}.pth", 100_000)
    os.link(tmp_path / "thorax" / "resnet50_epoch_15.pth", tmp_path / "thorax" / "resnet50_best.pth")
    put(tmp_path / "thorax" / "resnet50_v1.1.0_best.pth", 50_000)
    put(tmp_path / "thorax" / "resnet50_v1.1.0_best.json", 500)
    put(tmp_path / "thorax" / "training_history.json", 2_000)
    put(tmp_path / "head" / "unet_best.pth", 80_000)
    put(tmp_path / "head" / "deep" / "unet_latest.pth", 70_000)
    put(tmp_path / "exports" / "thorax_onnx.onnx", 30_000)
    put(tmp_path / "exports" / "mixture_traced.pt", 20_000)
    put(tmp_path / "README.md", 100)
    return tmp_path


def test_row_4_11_disk_use_is_told_by_modality_and_kind(saved_models):
    found = disk_usage(saved_models)
    assert [row.name for row in found.rows] == [".", "exports", "head", "thorax"]
    by_name = {row.name: row for row in found.rows}
    thorax = by_name["thorax"]
    assert {kind: thorax.kinds[kind].files for kind in KINDS} == {
        "best": 1, "periodic": 3, "versions": 2, "exports": 0, "other": 1,
    }  # fmt: skip
    assert thorax.apparent_bytes == 4 * 100_000 + 50_500 + 2_000
    assert by_name["head"].kinds["best"].apparent_bytes == 80_000
    assert by_name["head"].kinds["periodic"].apparent_bytes == 70_000
    assert by_name["exports"].kinds["exports"].files == 2
    assert by_name["."].kinds["other"].files == 1


def test_row_4_11_names_of_one_file_cost_its_bytes_once(saved_models):
    thorax = {row.name: row for row in disk_usage(saved_models).rows}["thorax"]
    one = os.stat(saved_models / "thorax" / "resnet50_epoch_5.pth").st_blocks * 512
    assert thorax.kinds["best"].real_bytes == one
    assert (
        thorax.kinds["periodic"].real_bytes == 2 * one and thorax.kinds["periodic"].apparent_bytes == 300_000
    )


def test_the_total_is_what_du_says(saved_models):
    os.link(saved_models / "head" / "unet_best.pth", saved_models / "exports" / "unet_best.pth")
    folders = sum(os.stat(where).st_blocks * 512 for where, _, _ in os.walk(saved_models))
    said = subprocess.run(
        ["du", "-s", "--block-size=512", saved_models], capture_output=True, text=True, check=True
    )
    total = disk_usage(saved_models).total
    assert total.real_bytes + folders == int(said.stdout.split()[0]) * 512
    assert total.files == 13 and total.real_bytes < sum(
        row.real_bytes for row in disk_usage(saved_models).rows
    )


def test_holes_cost_nothing(tmp_path):
    with open(tmp_path / "a_best.pth", "wb") as file:
        file.truncate(10_000_000)
    [row] = disk_usage(tmp_path).rows
    assert row.apparent_bytes == 10_000_000 and row.real_bytes == 0


def test_links_are_not_followed_and_an_absent_folder_is_said(saved_models, tmp_path):
    before = disk_usage(saved_models).total.real_bytes
    (saved_models / "loop").symlink_to(saved_models)
    assert disk_usage(saved_models).total.real_bytes <= before + 4096
    with pytest.raises(UsageError, match="no folder"):
        disk_usage(tmp_path / "absent")


def test_an_empty_folder_has_no_rows(tmp_path):
    found = disk_usage(tmp_path)
    assert found.rows == () and found.total.files == 0 and set(found.total.kinds) == set(KINDS)


def test_a_folder_below_that_cannot_be_read_is_an_error(saved_models, monkeypatch):
    make_unreadable(monkeypatch, saved_models / "head" / "deep")
    with pytest.raises(PermissionError, match="deep"):
        disk_usage(saved_models)
