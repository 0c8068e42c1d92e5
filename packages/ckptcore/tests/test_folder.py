"""The hidden folder: policy and pins."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptcore import durable, folder
from ckptcore.errors import UsageError
from ckptcore.layouts import plain, staged


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


@pytest.mark.parametrize("name", ["metric", "mode", "history_file"])
def test_a_policy_with_something_else_for_a_name_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / ".ckptcore").mkdir()
    changed = plain("loss", "min").policy() | {name: {}}
    (tmp_path / ".ckptcore" / "policy.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError, match=f"no name under '{name}'"):
        folder.read_policy(tmp_path)


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
        killed = durable.temporary_beside(where / "a")
        durable.remove_quietly(killed)  # From now on nobody is writing it.
        killed.write_bytes(b"unfinished")
        assert durable.is_temporary(killed.name)
        (where / ".ckptcore-mine").write_bytes(b"")
        (where / "a.tmp").write_bytes(b"")
    folder.sweep(tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".ckptcore-mine", "a.tmp"}


@pytest.mark.parametrize("name", ["pins.json", "policy.json"])
def test_a_folder_in_place_of_a_record_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / ".ckptcore" / name).mkdir(parents=True)
    read = folder.read_pins if name == "pins.json" else folder.read_policy
    with pytest.raises(UsageError, match="is a folder"):
        read(tmp_path)
    if name == "policy.json":
        with pytest.raises(UsageError, match="is a folder"):
            folder.write_policy(tmp_path, plain())


def test_broken_pins_are_not_said_to_be_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".ckptcore").mkdir()
    (tmp_path / ".ckptcore" / "pins.json").write_text("{")
    with pytest.raises(UsageError, match="pin the files again"):
        folder.read_pins(tmp_path)
    assert folder.pins_if_readable(tmp_path) == {}
    assert "what is pinned is not known" in caplog.text


def test_a_name_that_training_gives_to_the_next_checkpoint_is_not_pinned(tmp_path: Path) -> None:
    (tmp_path / ".ckptcore").mkdir()
    for name in ("best.pt", "latest.pt", "epoch_1.pt"):
        (tmp_path / name).write_bytes(b"")
    folder.write_policy(tmp_path, plain("loss"))
    for name in ("best.pt", "latest.pt"):
        with pytest.raises(UsageError, match="Promote it"):
            folder.pin(tmp_path / name, "paper")
    folder.pin(tmp_path / "epoch_1.pt", "paper")
    folder.write_policy(tmp_path, staged("f1"))  # Its best has a name of its own each time.
    (tmp_path / "best_model_f1_0.9000.pth").write_bytes(b"")
    folder.pin(tmp_path / "best_model_f1_0.9000.pth", "paper")
    assert set(folder.read_pins(tmp_path)) == {"epoch_1.pt", "best_model_f1_0.9000.pth"}


def test_pins_of_many_at_once_are_all_kept(tmp_path: Path) -> None:
    files = [tmp_path / f"m{number}.pt" for number in range(24)]
    for file in files:
        file.write_bytes(b"")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: folder.pin(file, "paper"), files))
        assert len(folder.read_pins(tmp_path)) == 24
        list(pool.map(folder.unpin, files[:20]))
    assert set(folder.read_pins(tmp_path)) == {file.name for file in files[20:]}


@pytest.mark.parametrize("name", ["pins.json", "policy.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_in_place_of_a_record_is_said_without_waiting(
    name: str, kind: str, tmp_path: Path
) -> None:
    place = tmp_path / ".ckptcore" / name
    place.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    read = folder.read_pins if name == "pins.json" else folder.read_policy
    with pytest.raises(UsageError, match="is no regular file"):
        read(tmp_path)
    if name == "policy.json":
        with pytest.raises(UsageError, match="is no regular file"):
            folder.write_policy(tmp_path, plain())
