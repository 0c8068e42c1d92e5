"""What a folder's headers tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptcore import Catalogue, save
from ckptcore import catalogue as catalogue_module
from ckptcore.errors import UsageError


def put(path: Path, **metadata: Any) -> Path:
    return save(path, {"model_state_dict": {"w": torch.ones(2)}}, metadata)


def test_files_come_from_old_to_new_by_epochs_then_steps_then_time(tmp_path: Path) -> None:
    for name, epochs, step in (("c.pt", 2, 5), ("a.pt", 10, 1), ("d.pt", 2, 4), ("b.pt", 0, 0)):
        put(tmp_path / name, epochs_finished=epochs, global_step=step)
    assert [file.name for file in Catalogue.scan(tmp_path)] == ["b.pt", "d.pt", "c.pt", "a.pt"]


def test_hidden_files_folders_and_other_endings_are_no_checkpoints(tmp_path: Path) -> None:
    put(tmp_path / "a.pt")
    put(tmp_path / ".hidden.pt")
    put(tmp_path / "b.txt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "broken.pt").symlink_to(tmp_path / "nowhere")
    assert [file.name for file in Catalogue.scan(tmp_path)] == ["a.pt"]


def test_a_damaged_file_is_listed_with_what_is_wrong(tmp_path: Path) -> None:
    os.truncate(put(tmp_path / "a.pt"), 300)
    (tmp_path / "b.pt").write_bytes(b"")
    first, second = Catalogue.scan(tmp_path)
    assert first.header is None and first.problem and not first.native
    assert second.header is None and second.problem
    assert first.order == (-1, -1, "") and first.sequence == -1


def test_a_foreign_file_is_listed_as_such(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "a.pt")
    (file,) = Catalogue.scan(tmp_path)
    assert file.header is not None and not file.native


def test_names_of_one_file_are_read_once_and_share_their_inode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.pt")
    os.link(tmp_path / "a.pt", tmp_path / "b.pt")
    calls = []
    real = catalogue_module.read_header
    monkeypatch.setattr(catalogue_module, "read_header", lambda path: calls.append(path) or real(path))  # type: ignore[func-returns-value]
    first, second = Catalogue.scan(tmp_path)
    assert len(calls) == 1
    assert first.inode == second.inode and first.links == 2


def test_a_file_that_vanishes_while_the_folder_is_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.pt")
    put(tmp_path / "b.pt")
    real = catalogue_module.read_header

    def read(path: Path) -> Any:
        if path.name == "a.pt":
            path.unlink()
        return real(path)

    monkeypatch.setattr(catalogue_module, "read_header", read)
    assert [file.name for file in Catalogue.scan(tmp_path)] == ["b.pt"]


def test_runs_are_told_apart_the_newest_last(tmp_path: Path) -> None:
    put(tmp_path / "a.pt", run_key="first", epochs_finished=9)
    put(tmp_path / "b.pt", run_key="second", epochs_finished=1)
    put(tmp_path / "c.pt")
    found = Catalogue.scan(tmp_path)
    assert found.run_keys() == ["first", "second"]
    assert [file.name for file in found.of_run("second")] == ["b.pt"]


@pytest.mark.parametrize("sequence", ["7", 7.5, True, None, [1]])
def test_a_count_of_saves_that_is_no_count_is_none(sequence: Any, tmp_path: Path) -> None:
    put(tmp_path / "a.pt", sequence=sequence)
    assert Catalogue.scan(tmp_path)[0].sequence == -1


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        Catalogue.scan(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no folder"):
        Catalogue.scan(put(tmp_path / "a.pt"))
