import os
import shutil

import pytest
import torch
from trained_folders import flip_tensor, names, train

import ckptcore
from ckptcore import layouts


def row_of(out: str, name: str) -> str:
    return next(line for line in out.splitlines() if name in line)


def test_row_5_4_list_shows_a_run_from_old_to_new(ckpt, trained):
    ran = ckpt("list", trained)
    assert ran.code == 0 and ran.err == ""
    shown = [line for line in ran.out.splitlines() if "epoch_" in line]
    assert [line.lstrip("* ").split()[0] for line in shown] == [f"epoch_{n}.pt" for n in range(1, 7)]
    best = row_of(ran.out, "best.pt")
    assert best.startswith("* epoch_3.pt = best.pt") and "0.9000" in best and best.endswith("best")
    assert "epoch_6.pt = final.pt = latest.pt" in ran.out
    assert "6 files under 9 names" in ran.out and "run 0123456789abcdef" in ran.out


def test_list_as_json_has_a_file_once_and_null_for_nan(ckpt, tmp_path):
    train(tmp_path / "run", "a1", (0.5, float("nan"), float("inf")))
    found = ckpt("list", tmp_path / "run", "--json").json
    assert [f["names"] for f in found["files"]] == [
        ["epoch_1.pt", "best.pt"],
        ["epoch_2.pt"],
        ["epoch_3.pt", "final.pt", "latest.pt"],
    ]
    assert [f["metrics"]["val_auc"] for f in found["files"]] == [0.5, None, None]
    assert [f["best"] for f in found["files"]] == [True, False, False]
    assert found["metric"] == "val_auc" and found["mode"] == "max" and found["run_key"] == "a1"


def test_list_finds_damaged_files_and_says_why(ckpt, trained):
    whole = (trained / "epoch_2.pt").read_bytes()
    (trained / "epoch_2.pt").write_bytes(whole[: len(whole) // 2])
    ran = ckpt("list", trained)
    assert ran.code == 1
    assert row_of(ran.out, "epoch_2.pt").startswith("! ") and "its end is missing" in ran.out


def test_list_finds_files_of_another_run(ckpt, trained, tmp_path):
    other = train(tmp_path / "other", "fedcba9876543210", (0.1,))
    shutil.copy(trained / "epoch_2.pt", other / "epoch_9.pt")
    ran = ckpt("list", other)
    assert ran.code == 1
    assert row_of(ran.out, "epoch_9.pt").startswith("? ") and "of run 0123456789ab" in ran.out
    assert "1 file of another run: 0123456789abcdef" in ran.out
    found = ckpt("list", other, "--json").json
    assert [f["status"] for f in found["files"]].count("other run") == 1
    assert found["other_runs"] == ["0123456789abcdef"]


def test_a_promoted_version_of_an_earlier_run_is_no_finding(ckpt, trained, tmp_path):
    ckptcore.promote(trained / "best.pt", version="1.0.0", directory=tmp_path / "later")
    train(tmp_path / "later", "ffff", (0.5, 0.6))
    ran = ckpt("list", tmp_path / "later")
    assert ran.code == 0 and row_of(ran.out, "v1.0.0").rstrip().endswith("version")


def test_a_file_saved_by_hand_is_a_finding_only_under_a_name_of_the_layout(ckpt, trained):
    ckptcore.save(trained / "mine.pt", {"x": 1})
    assert ckpt("list", trained).code == 0
    ckptcore.save(trained / "epoch_4.pt", {"x": 1})
    ran = ckpt("list", trained)
    assert ran.code == 1 and row_of(ran.out, "epoch_4.pt").startswith("? ")


def test_files_of_other_programs_are_shown_as_such_without_being_opened(ckpt, trained):
    torch.save({"epoch": 3, "model": {"w": torch.zeros(2)}}, trained / "old.pth")
    ran = ckpt("list", trained)
    assert ran.code == 0 and row_of(ran.out, "old.pth").endswith("torch file")


def test_list_without_a_recorded_layout_still_names_roles(ckpt, trained):
    shutil.rmtree(trained / ".ckptcore")
    ran = ckpt("list", trained)
    assert ran.code == 0 and row_of(ran.out, "best.pt").endswith("best")


def test_a_published_folder_shows_the_deciding_metric_first_then_validation_then_the_rest(ckpt, tmp_path):
    layout = layouts.saved_models("resnet50")
    with ckptcore.CheckpointManager(tmp_path / "work", layout, run_key="a1", total_epochs=1) as manager:
        metrics = {"clock": 1e9, "train_loss": 0.5, "val_loss": 0.4, "val_auc": 0.8, "a_rate": 0.1}
        manager.step({"model_state_dict": {"w": torch.ones(2)}}, epoch=0, metrics=metrics)
    ckptcore.publish(tmp_path / "work", tmp_path / "saved_models")
    head = ckpt("list", tmp_path / "saved_models").out.splitlines()[0].split()
    assert [name for name in head if name in metrics] == ["val_auc", "val_loss", "a_rate", "clock"]


def test_an_empty_folder_is_a_finding_and_says_where_checkpoints_are(ckpt, trained):
    ran = ckpt("list", trained.parent)
    assert ran.code == 1 and ran.out == "" and "below it, in run" in ran.err


def test_control_characters_in_names_do_not_reach_the_terminal(ckpt, trained):
    (trained / "evil\x1b[31m.pt").write_bytes(b"junk")
    ckptcore.save(trained / "text.pt", {"note": "\x1b]0;owned\x07"})
    for ran in (
        ckpt("list", trained),
        ckpt("verify", trained),
        ckpt("show", trained / "text.pt"),
        ckpt("plan", trained),
    ):
        assert "\x1b" not in ran.out + ran.err and "\x07" not in ran.out + ran.err


def test_row_5_4_latest_shows_what_resume_takes(ckpt, trained):
    ran = ckpt("latest", trained)
    assert ran.code == 0 and 'resume("auto") takes this file' in ran.out
    with ckptcore.CheckpointManager(
        trained, layouts.plain("val_auc", "max"), handle_signals=False
    ) as manager:
        taken = manager.resume("auto")
    assert taken is not None
    found = ckpt("latest", trained, "--json").json
    assert (
        found["name"] == taken.path.name
        and found["checkpoint"]["epochs_finished"] == taken.epochs_finished == 6
    )
    assert set(found["names"]) == {"latest.pt", "final.pt", "epoch_6.pt"}


@pytest.mark.parametrize("how", ["ckptcore", "zip", "legacy", "refused"])
def test_latest_names_what_resume_takes_whatever_program_wrote_it(ckpt, tmp_path, how):
    path = tmp_path / "latest.pt"
    state = {"epoch": 1, "model_state_dict": {"w": torch.ones(3)}}
    if how == "ckptcore":
        ckptcore.save(path, state)
    elif how == "refused":
        torch.save({**state, "asked": os.getcwd}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    found = ckpt("latest", tmp_path, "--json").json
    with ckptcore.CheckpointManager(tmp_path, layouts.plain(), handle_signals=False) as manager:
        taken = manager.resume("auto")
    assert (taken is None) == (how == "refused")
    assert found["name"] == (None if taken is None else taken.path.name)


def test_latest_passes_over_damage_inside_tensors_and_moves_nothing(ckpt, trained):
    for name in ("latest.pt", "final.pt", "epoch_6.pt"):
        flip_tensor(trained / name, 0.70)
    before = names(trained)
    ran = ckpt("latest", trained)
    assert ran.code == 0 and "passed over latest.pt: tensor model_state_dict/w" in ran.err
    assert "epoch_5.pt" in ran.out and names(trained) == before


@pytest.mark.parametrize(("value", "taken"), [(float("nan"), "best.pt"), (0.5, "latest.pt")])
def test_latest_takes_what_was_saved_at_a_loss_that_was_no_number_if_it_is_whole(
    ckpt, tmp_path, value, taken
):
    train(tmp_path, "a1", (0.5, 0.6))
    with ckptcore.CheckpointManager(
        tmp_path, layouts.plain("val_auc", "max", last=10), run_key="a1"
    ) as manager:
        manager.resume()
        state = {"model_state_dict": {"w": torch.full((2,), value)}}
        manager.step(state, epoch=2, global_step=9, epoch_end=False, reason="nonfinite")
    ran = ckpt("latest", tmp_path)
    assert ran.code == 0 and taken in ran.out.splitlines()[0], ran.out
    assert ("holds NaN or infinity" in ran.err) == (taken == "best.pt")


def test_latest_of_another_programs_folder_prefers_numbered_files_and_promises_nothing(ckpt, tmp_path):
    for name in ("checkpoint_5.pt", "checkpoint_10.pt", "best_model.pt"):
        torch.save({"epoch": 1, "w": torch.zeros(1)}, tmp_path / name)
        os.utime(tmp_path / name, (1e9 + len(name), 1e9 + len(name)))
    ran = ckpt("latest", tmp_path)
    assert ran.code == 0 and "checkpoint_10.pt" in ran.out and "resume(" not in ran.out


def test_latest_of_a_folder_without_checkpoints_is_a_finding(ckpt, tmp_path):
    ran = ckpt("latest", tmp_path)
    assert ran.code == 1 and "no checkpoint" in ran.err


def test_show_tells_everything_that_the_header_knows(ckpt, trained):
    header = ckptcore.read_header(trained / "best.pt")
    ran = ckpt("show", trained / "best.pt", "--tensors")
    assert ran.code == 0
    for told in (
        header.model_digest,
        header.run_key,
        "val_auc",
        "0.9000",
        "model_state_dict/w",
        "64 × 8",
        "520 elements",
    ):
        assert told in ran.out


def test_show_as_json_has_the_tensor_table(ckpt, trained):
    found = ckpt("show", trained / "best.pt", "--tensors", "--json").json
    assert found["parameters"] == 520 and found["tensor_bytes"] == 2080
    assert [t["shape"] for t in found["tensors"]] == [[64, 8], [8]]
    assert "model_state_dict" in found["keys"] and found["metadata"]["layout"] == "plain"


def test_show_of_a_child_names_its_parent(ckpt, trained, tmp_path):
    with ckptcore.CheckpointManager(tmp_path / "child", handle_signals=False) as manager:
        manager.resume(trained / "best.pt")
        manager.step({"w": torch.zeros(1)}, epoch=0)
    ran = ckpt("show", tmp_path / "child" / "latest.pt")
    assert "parent" in ran.out and "best.pt" in ran.out and "0123456789abcdef" in ran.out


@pytest.mark.parametrize("command", ["show", "latest", "list", "plan", "du", "verify", "versions", "compare"])
def test_what_is_not_there_is_wrong_usage_on_one_line(ckpt, tmp_path, command):
    ran = ckpt(command, tmp_path / "nowhere")
    assert ran.code == 2 and ran.out == "" and ran.err.startswith("ckpt: ") and len(ran.err.splitlines()) == 1


def test_show_of_a_damaged_file_is_a_finding_on_one_line(ckpt, trained):
    data = (trained / "best.pt").read_bytes()
    (trained / "cut.pt").write_bytes(data[:-100])
    ran = ckpt("show", trained / "cut.pt")
    assert ran.code == 1 and "damaged" in ran.err and len(ran.err.splitlines()) == 1
