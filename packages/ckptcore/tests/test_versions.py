"""Promotion: a version is a file of its own that nothing overwrites, with a card that tells the truth."""

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptcore
from ckptcore import durable, versions
from ckptcore.archive import archive
from ckptcore.errors import (
    CheckpointError,
    DamagedCheckpoint,
    DiskFull,
    FolderNotWritable,
    UsageError,
    VersionRefused,
)
from ckptcore.exporting import export_weights
from ckptcore.versions import check_version, list_versions, pinned_names, promote

HYPERPARAMETERS = {"crop": 176, "weight_decay": 0.02, "flips": True, "head": [96, 12]}


def save(path, seed=0, width=4, **more):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    state = {
        "epoch": 9,
        "global_step": 100,
        "model_state_dict": model.state_dict(),
        "val_auc": 0.791,
        "best_metric": 0.791,
        "hyperparameters": HYPERPARAMETERS,
        "timestamp": "2026-03-30T22:15:00-04:00",
        **more,
    }
    return ckptcore.save(path, state, {"run_key": "r1", "metrics": {"test_auc": 0.776}})


@pytest.fixture
def best(tmp_path):
    return save(tmp_path / "resnet50_best.pth")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def test_row_4_10_promote_makes_a_read_only_version_with_its_card(best, tmp_path):
    promote(best, version="1.0.0")
    save(best, seed=1)
    card = promote(
        best, bump="minor", notes="longer warm-up", dataset="clinic A, 2024", model_name="thorax_net"
    )
    version = tmp_path / "resnet50_v1.1.0_best.pth"
    assert card.path == version and version.read_bytes() == best.read_bytes()
    assert version.stat().st_ino != best.stat().st_ino and version.stat().st_nlink == 1
    told = json.loads((tmp_path / "resnet50_v1.1.0_best.json").read_text())
    assert told["model_name"] == "thorax_net" and told["version"] == "1.1.0"
    assert told["dataset"] == "clinic A, 2024" and told["notes"] == "longer warm-up"
    assert told["training_date"] == "2026-03-31"
    assert told["hyperparameters"] == HYPERPARAMETERS
    assert told["performance"] == {"test_auc": 0.776, "val_auc": 0.791}
    assert told["file_name"] == version.name and told["sha256"] == sha256(version)
    assert told["size"] == version.stat().st_size and told["parameters"] == 3 * 4 + 4 + 4 * 2 + 2
    assert told["model_digest"] == ckptcore.read_header(best).model_digest
    assert (
        told["epochs_finished"] == 10
        and told["run_key"] == "r1"
        and told["source_name"] == "resnet50_best.pth"
    )
    first = json.loads((tmp_path / "resnet50_v1.0.0_best.json").read_text())
    assert told["parent"] == {
        "version": "1.0.0",
        "model_digest": first["model_digest"],
        "sha256": first["sha256"],
    }
    assert first["parent"] is None
    for path in (version, card.card_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert str(tmp_path) not in card.card_path.read_text()


def test_row_4_10_a_changed_architecture_asks_for_a_new_major_number(best, tmp_path):
    promote(best, version="1.1.0")
    save(best, width=5)
    for request in ({"version": "1.2.0"}, {"bump": "minor"}, {"bump": "patch"}):
        with pytest.raises(VersionRefused, match=r"0\.weight had \(4, 3\), has \(5, 3\).*expected 2\.0\.0"):
            promote(best, **request)
    assert visible(tmp_path) == ["resnet50_best.pth", "resnet50_v1.1.0_best.json", "resnet50_v1.1.0_best.pth"]
    assert promote(best, bump="major").version == "2.0.0"


def test_new_and_lost_tensors_are_named_even_when_the_parent_is_gone(best):
    first = promote(best, version="1.0.0")
    save(best, model_state_dict={"other.weight": torch.zeros(2)})
    with pytest.raises(VersionRefused, match=r"other\.weight is new, 0\.weight is gone"):
        promote(best, bump="minor")
    first.path.unlink()
    with pytest.raises(VersionRefused, match="not there to say where"):
        promote(best, bump="minor")
    assert promote(best, version="3.0.0").parent.version == "1.0.0"


def test_weights_of_another_type_keep_the_architecture(best):
    promote(best, version="1.0.0")
    save(best, model_state_dict=nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).half().state_dict())
    assert promote(best, bump="patch").version == "1.0.1"


@pytest.mark.parametrize("bump", ["major", "minor", "patch"])
def test_the_first_version_is_1_0_0_whatever_the_bump(best, bump):
    assert promote(best, bump=bump).version == "1.0.0"


@pytest.mark.parametrize(("bump", "expected"), [("major", "2.0.0"), ("minor", "1.11.0"), ("patch", "1.10.3")])
def test_a_bump_counts_from_the_highest_version_by_number_not_by_text(best, bump, expected):
    for number in ("1.2.9", "1.9.0", "1.10.2"):
        promote(best, version=number)
    assert promote(best, bump=bump).version == expected


@pytest.mark.parametrize("number", ["1.2.0", "1.1.9", "0.9.0"])
def test_a_number_that_is_taken_or_too_low_is_refused(best, tmp_path, number):
    promote(best, version="1.2.0")
    before = {name: (tmp_path / name).read_bytes() for name in visible(tmp_path)}
    with pytest.raises(VersionRefused, match=r"newest of resnet50 is 1\.2\.0"):
        promote(best, version=number)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.parametrize("text", ["1.0", "v1.0.0", "1.0.0-rc1", "01.0.0"])
def test_a_number_that_is_no_semantic_version_is_refused(best, tmp_path, text):
    with pytest.raises(VersionRefused, match="three numbers"):
        promote(best, version=text)
    assert os.listdir(tmp_path) == ["resnet50_best.pth"]


def test_exactly_one_of_number_and_bump_is_asked_for(best):
    for request in ({}, {"version": "1.0.0", "bump": "minor"}):
        with pytest.raises(UsageError, match="not both"):
            promote(best, **request)
    with pytest.raises(VersionRefused, match="major, minor, patch"):
        promote(best, bump="bigger")


def test_models_in_one_folder_are_numbered_apart_and_another_folder_can_be_given(best, tmp_path):
    promote(best, version="3.0.0")
    save(tmp_path / "unet_epoch_5.pth")
    assert promote(tmp_path / "unet_epoch_5.pth", bump="minor").file_name == "unet_v1.0.0_best.pth"
    card = promote(best, bump="minor", directory=tmp_path / "published" / "xray")
    assert card.path == tmp_path / "published" / "xray" / "resnet50_v1.0.0_best.pth" and card.path.exists()


def test_a_file_without_a_models_name_takes_the_one_that_is_given(tmp_path):
    save(tmp_path / "best_model.pt")
    assert (
        promote(tmp_path / "best_model.pt", bump="minor", model_name="CT net/3D").file_name
        == "CT_net_3D_v1.0.0_best.pt"
    )
    assert promote(tmp_path / "best_model.pt", bump="minor").file_name == "model_v1.0.0_best.pt"


def test_a_damaged_checkpoint_is_not_promoted(best, tmp_path):
    data = bytearray(best.read_bytes())
    data[data.index(ckptcore.load(best)["model_state_dict"]["0.weight"].numpy().tobytes())] ^= 1
    best.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=r"0\.weight"):
        promote(best, bump="minor")
    best.write_bytes(data[:-30])
    with pytest.raises(DamagedCheckpoint):
        promote(best, bump="minor")
    assert os.listdir(tmp_path) == ["resnet50_best.pth"]


def test_a_foreign_file_must_be_imported_first(tmp_path):
    torch.save({"model_state_dict": nn.Linear(2, 2).state_dict()}, tmp_path / "a.pth")
    with pytest.raises(VersionRefused, match="ckpt import"):
        promote(tmp_path / "a.pth", bump="minor")
    ckptcore.save(tmp_path / "b.pth", {"epoch": 1})
    with pytest.raises(VersionRefused, match="no model"):
        promote(tmp_path / "b.pth", bump="minor")


def test_hyperparameters_that_json_cannot_say_are_named(tmp_path):
    values = {"weights": torch.ones(3), "key": b"\x00", "nan": float("nan"), 5: (1, 2)}
    card = promote(save(tmp_path / "a_best.pth", hyperparameters=values), bump="minor")
    told = json.loads(card.card_path.read_text())
    assert told["hyperparameters"]["nan"] == "nan" and told["hyperparameters"]["5"] == [1, 2]
    assert "see the checkpoint" in told["hyperparameters"]["weights"]
    assert list_versions(tmp_path)[0].hyperparameters == told["hyperparameters"]


def test_performance_is_what_this_checkpoint_scored_in_finite_numbers(tmp_path):
    measured = {"val_loss": float("nan"), "train_loss": float("inf"), "val_auc": 0.5, "val_dice": 0.625}
    so_far = {"best_metric": 0.75, "best_epoch": 3, "best_val_auc": 0.75, "best_overlap": 0.625}
    card = promote(save(tmp_path / "a_epoch_5.pth", **measured, **so_far, best_recall=0.25), bump="minor")
    assert json.loads(card.card_path.read_text())["performance"] == {
        "best_recall": 0.25,  # told of nowhere else
        "test_auc": 0.776,
        "val_auc": 0.5,
        "val_dice": 0.625,
    }


def test_promoting_needs_no_torch(best):
    script = (
        "import sys; from ckptcore import promote; "
        "promote(sys.argv[1], bump='minor'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, best], check=True, timeout=60)


def test_versions_are_listed_by_model_and_number_with_what_is_wrong_with_them(best, tmp_path):
    for number in ("1.0.0", "1.2.0", "1.10.0", "1.11.0", "1.12.0"):
        promote(best, version=number)
    (tmp_path / "resnet50_v1.2.0_best.pth").unlink()
    (tmp_path / "resnet50_v1.10.0_best.json").unlink()
    changed = tmp_path / "resnet50_v1.11.0_best.pth"
    changed.chmod(0o644)
    save(changed, seed=5)
    broken = tmp_path / "resnet50_v1.12.0_best.json"
    broken.chmod(0o644)
    broken.write_text('{"version": "1.12.0"}')
    found = list_versions(tmp_path)
    assert [(card.version, card.status) for card in found] == [
        ("1.0.0", "whole"),
        ("1.2.0", "missing"),
        ("1.10.0", "incomplete"),
        ("1.11.0", "changed"),
        ("1.12.0", "unreadable"),
    ]
    assert found[2].model_digest == ckptcore.read_header(best).model_digest
    assert [bool(check_version(card)) for card in found] == [False, True, True, True, True]
    with pytest.raises(VersionRefused, match="cannot be read"):
        promote(best, bump="minor")


def test_one_flipped_bit_in_a_version_is_found_by_the_full_check(best):
    card = promote(best, bump="minor")
    card.path.chmod(0o644)
    data = bytearray(card.path.read_bytes())
    data[300] ^= 1
    card.path.write_bytes(data)
    [listed] = list_versions(card.directory)
    assert listed.status == "whole"
    assert check_version(listed) == ("resnet50_v1.0.0_best.pth is not the file that was promoted",)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"version": 3}', "[" * 100_000])
def test_a_card_that_is_none_is_listed_and_breaks_nothing(best, tmp_path, text):
    card = promote(best, bump="minor")
    card.card_path.chmod(0o644)
    card.card_path.write_text(text)
    assert [c.status for c in list_versions(tmp_path)] == ["unreadable"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_in_place_of_a_card_is_listed_without_waiting(best, tmp_path, make):
    card = promote(best, bump="minor")
    card.card_path.unlink()
    make(card.card_path)
    assert [c.status for c in list_versions(tmp_path)] == ["unreadable"]


def test_a_pipe_in_place_of_a_version_is_a_finding_without_waiting(best, tmp_path):
    card = promote(best, bump="minor")
    card.path.unlink()
    os.mkfifo(card.path)
    [listed] = list_versions(tmp_path)
    assert listed.status == "changed" and "no regular file" in check_version(listed)[0]


def test_a_card_that_speaks_of_another_file_is_not_believed(best, tmp_path):
    card = promote(best, bump="minor")
    card.card_path.chmod(0o644)
    told = json.loads(card.card_path.read_text())
    for name in ("../resnet50_v1.0.0_best.pth", "/etc/passwd", "resnet50_v2.0.0_best.pth"):
        card.card_path.write_text(json.dumps(told | {"file_name": name}))
        assert [c.status for c in list_versions(tmp_path)] == ["unreadable"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("created", 5),
        ("training_date", 20260331),
        ("epochs_finished", "ten"),
        ("run_key", {}),
        ("model_digest", 1),
        ("performance", {"val_auc": [0.5]}),
        ("parent", {"version": 1, "model_digest": None, "sha256": ""}),
        ("size", True),
    ],
)
def test_a_card_with_a_value_of_another_type_is_not_believed(best, tmp_path, field, value):
    card = promote(best, bump="minor")
    card.card_path.chmod(0o644)
    card.card_path.write_text(json.dumps(json.loads(card.card_path.read_text()) | {field: value}))
    assert [c.status for c in list_versions(tmp_path)] == ["unreadable"]


def test_versions_and_cards_are_pinned_and_nothing_else(best, tmp_path):
    promote(best, bump="minor")
    (tmp_path / "training_history.json").write_text("{}")
    assert pinned_names(tmp_path) == {"resnet50_v1.0.0_best.pth", "resnet50_v1.0.0_best.json"}
    with pytest.raises(UsageError, match="no folder"):
        pinned_names(tmp_path / "absent")


def test_overwriting_the_source_in_place_does_not_reach_the_version(best):
    card = promote(best, bump="minor")
    with open(best, "r+b") as file:
        file.write(b"\0" * 1000)
    assert check_version(card) == () and ckptcore.verify(card.path).ok


@pytest.mark.parametrize("meanwhile", ["replaced", "deleted"])
def test_a_best_that_is_rotated_while_it_is_copied_is_promoted_as_it_was(
    best, tmp_path, monkeypatch, meanwhile
):
    real, before = durable.copy_durable, best.read_bytes()

    def rotated_before(source, target, mode=None):
        best.unlink() if meanwhile == "deleted" else save(best, seed=9)
        real(source, target, mode)

    monkeypatch.setattr(durable, "copy_durable", rotated_before)
    card = promote(best, bump="minor")
    assert card.path.read_bytes() == before and check_version(card) == ()


def test_a_best_that_is_gone_once_it_was_opened_is_checked_and_promoted_all_the_same(best, monkeypatch):
    real = versions.list_versions

    def deleted_before(folder):
        best.unlink()
        return real(folder)

    monkeypatch.setattr(versions, "list_versions", deleted_before)
    assert check_version(promote(best, bump="minor")) == ()


def test_a_checkpoint_that_is_overwritten_while_it_is_copied_is_not_promoted(best, tmp_path, monkeypatch):
    real = durable.copy_durable

    def overwritten_before(source, target, mode=None):
        with open(best, "r+b") as file:
            file.write(b"\0" * 1000)
        real(source, target, mode)

    monkeypatch.setattr(durable, "copy_durable", overwritten_before)
    with pytest.raises(VersionRefused, match="written to while"):
        promote(best, bump="minor")
    assert os.listdir(tmp_path) == ["resnet50_best.pth"]


def test_of_two_promotions_to_one_number_one_is_refused(tmp_path):
    sources = [save(tmp_path / f"net_epoch_{i}.pth", seed=i) for i in range(4)]
    for turn in range(5):
        results, start = [], threading.Barrier(len(sources))

        def run(source, results=results, start=start):
            start.wait()
            try:
                results.append(promote(source, version=f"1.{turn}.0"))  # noqa: B023
            except VersionRefused as error:
                results.append(error)

        threads = [threading.Thread(target=run, args=(source,)) for source in sources]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        won = [result for result in results if not isinstance(result, CheckpointError)]
        assert len(results) == 4 and len(won) == 1
        assert check_version(won[0]) == ()
    assert [card.status for card in list_versions(tmp_path)] == ["whole"] * 5
    assert not [name for name in os.listdir(tmp_path) if durable.is_temporary(name)]


def test_a_symbolic_link_in_the_versions_place_is_refused(best, tmp_path):
    (tmp_path / "resnet50_v1.0.0_best.pth").symlink_to(best)
    with pytest.raises(VersionRefused, match="symbolic link"):
        promote(best, version="1.0.0")


def test_what_a_cut_off_promotion_left_is_completed_by_the_same_checkpoint_only(best, tmp_path):
    promote(best, bump="minor").card_path.unlink()
    assert [card.status for card in list_versions(tmp_path)] == ["incomplete"]
    other = save(tmp_path / "resnet50_epoch_3.pth", seed=3)
    with pytest.raises(
        VersionRefused, match=rf"another content.*rm -f {tmp_path}/resnet50_v1\.0\.0_best\.pth$"
    ):
        promote(other, version="1.0.0")
    inode = (tmp_path / "resnet50_v1.0.0_best.pth").stat().st_ino
    card = promote(best, bump="minor", notes="again")
    assert card.path.stat().st_ino == inode and check_version(card) == ()
    assert [(c.status, c.notes) for c in list_versions(tmp_path)] == [("whole", "again")]


@pytest.mark.parametrize(
    ("bump", "suffix", "expected"),
    [
        ("major", "pth", "2.0.0"),
        ("minor", "pth", "1.1.0"),
        ("patch", "pth", "1.0.1"),
        ("minor", "pt", "1.1.0"),
    ],
)
def test_a_bump_passes_over_what_a_cut_off_promotion_of_another_checkpoint_left(
    best, tmp_path, caplog, bump, suffix, expected
):
    promote(best, bump="minor").card_path.unlink()
    other = save(tmp_path / f"resnet50_epoch_3.{suffix}", seed=3)
    card = promote(other, bump=bump)
    assert card.version == expected and card.parent is None and "1.0.0 is passed over" in caplog.text
    assert [(c.version, c.status) for c in list_versions(tmp_path)] == [
        ("1.0.0", "incomplete"),
        (expected, "whole"),
    ]


KILLED = """
import os, signal, sys
left = int(sys.argv[2])
def counted(real):
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call
from ckptcore.versions import promote
for name in ("open", "link", "replace", "unlink", "fsync", "write", "fchmod", "rename"):
    setattr(os, name, counted(getattr(os, name)))
promote(sys.argv[1], bump="minor")
"""


def test_a_kill_at_any_call_leaves_no_version_or_a_whole_one_that_a_second_try_completes(best, tmp_path):
    statuses, killed = set(), True
    calls = 0
    while killed:
        folder = tmp_path / str(calls)
        folder.mkdir()
        source = folder / "resnet50_best.pth"
        os.link(best, source)
        code = subprocess.run([sys.executable, "-c", KILLED, source, str(calls)], timeout=60).returncode
        killed = code == -signal.SIGKILL
        assert killed or code == 0
        found = list_versions(folder)
        statuses.add(found[0].status if found else None)
        assert all(card.status in ("whole", "incomplete") for card in found)
        assert ckptcore.verify(source).ok
        if not found or found[0].status == "incomplete":
            assert promote(source, bump="minor").version == "1.0.0"
        [card] = list_versions(folder)
        assert card.status == "whole" and check_version(card) == ()
        assert stat.S_IMODE(card.path.stat().st_mode) == 0o444
        calls += 1
    assert statuses == {None, "incomplete", "whole"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_write_leaves_no_version_and_no_litter(best, tmp_path, monkeypatch, number):
    before = visible(tmp_path)
    real, left = os.write, [0]

    def fails(fd, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return real(fd, data)

    monkeypatch.setattr(os, "write", fails)
    monkeypatch.setattr(durable, "_reflink", lambda a, b: False)
    for calls in range(2):
        left[0] = calls
        with pytest.raises(DiskFull if number != errno.EIO else OSError) as caught:
            promote(best, bump="minor")
        assert ".ckptcore-" not in str(caught.value)
        assert os.listdir(tmp_path) == before


@pytest.fixture
def ordinary_user():
    """Root may write anywhere, so root asks as somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only_folder(best):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "below").mkdir()
        for target in (folder / best.name, folder / "below" / best.name):
            target.write_bytes(best.read_bytes())
            target.chmod(0o444)
        (folder / "below").chmod(0o555)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        (folder / "below").chmod(0o755)


def test_row_2_5_a_folder_without_write_permission_is_said(read_only_folder, ordinary_user):
    file = read_only_folder / "resnet50_best.pth"
    attempts = (
        lambda: promote(file, bump="minor"),
        lambda: export_weights(file, read_only_folder / "a.safetensors"),
        lambda: archive(read_only_folder / "below", read_only_folder / "a.tar.gz"),
        lambda: promote(file, bump="minor", directory=read_only_folder / "new"),
    )
    for attempt in attempts:
        with pytest.raises(FolderNotWritable, match="Permission denied"):
            attempt()
    assert sorted(os.listdir(read_only_folder)) == ["below", file.name]


def test_a_folder_that_cannot_be_written_is_said(best, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderNotWritable):
        promote(best, bump="minor", directory=tmp_path / "file" / "versions")
