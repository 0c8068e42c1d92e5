"""The hidden folder: policy and pins."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptcore import durable, folder
from ckptcore.errors import UsageError
from ckptcore.layouts import plain


def test_the_policy_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / ".ckptcore").mkdir()
    layout = plain("val_auc", "max", every=2, last=4)
    folder.write_policy(tmp_path, layout)
    found = folder.read_policy(tmp_path)
    assert found is not None
    assert found.policy() == layout.policy()


def test_a_policy_that_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    (tmp_path / ".ckptcore").mkdir()
    folder.write_policy(tmp_path, plain())
    before = (tmp_path / ".ckptcore" / "policy.json").stat()
    folder.write_policy(tmp_path, plain())
    assert (tmp_path / ".ckptcore" / "policy.json").stat() == before
    folder.write_policy(tmp_path, plain(last=9))
    assert (tmp_path / ".ckptcore" / "policy.json").stat().st_ino != before.st_ino


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[]", b"{}", b"\xff\xfe\x00", b"[" * 100_000, b" " * (folder.MAX_BYTES + 1)]
)
def test_a_policy_changed_into_something_else_is_said_and_the_manager_writes_it_again(
    broken: bytes, tmp_path: Path
) -> None:
    (tmp_path / ".ckptcore").mkdir()
    (tmp_path / ".ckptcore" / "policy.json").write_bytes(broken)
    with pytest.raises(UsageError):
        folder.read_policy(tmp_path)
    folder.write_policy(tmp_path, plain())
    assert folder.read_policy(tmp_path) is not None


def test_without_a_hidden_folder_there_is_no_policy_and_no_pin(tmp_path: Path) -> None:
    assert folder.read_policy(tmp_path) is None
    assert folder.read_pins(tmp_path) == {}


def test_pins_are_read_back(tmp_path: Path) -> None:
    folder.write_pins(tmp_path, {"epoch_3.pt": "for the paper"})
    assert folder.read_pins(tmp_path) == {"epoch_3.pt": "for the paper"}


def test_sweeping_takes_unfinished_files_of_both_folders_and_nothing_else(tmp_path: Path) -> None:
    hidden = tmp_path / ".ckptcore"
    hidden.mkdir()
    for where in (tmp_path, hidden):
        durable.temporary_beside(where / "x").write_bytes(b"unfinished")
        (where / ".ckptcore-mine").write_bytes(b"")
        (where / "a.tmp").write_bytes(b"")
    folder.sweep(tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".ckptcore-mine", "a.tmp"}
