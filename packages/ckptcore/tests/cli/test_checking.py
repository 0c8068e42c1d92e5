import shutil

import pytest
import torch
from safetensors.torch import save_file
from trained_folders import flip_tensor, train
from unreadable import make_unreadable

import ckptcore


def test_row_5_8_verify_of_a_whole_folder_is_fine(ckpt, trained):
    ran = ckpt("verify", trained)
    assert ran.code == 0 and "6 files checked, 0 damaged" in ran.out and ran.err == ""


def test_row_5_8_verify_names_the_damaged_tensor(ckpt, trained):
    flip_tensor(trained / "epoch_4.pt", 0.80)
    ran = ckpt("verify", trained)
    assert ran.code == 1 and "tensor model_state_dict/w" in ran.out and "1 damaged" in ran.out
    found = ckpt("verify", trained, "--json").json
    assert [f["path"].endswith("epoch_4.pt") for f in found["files"] if not f["ok"]] == [True]
    assert found["ok"] is False and found["other_runs"] == []


def test_verify_finds_files_of_several_runs_in_one_folder(ckpt, trained, tmp_path):
    other = train(tmp_path / "other", "fedcba9876543210", (0.1,))
    shutil.copy(trained / "epoch_2.pt", other / "epoch_9.pt")
    ran = ckpt("verify", other)
    assert (
        ran.code == 1
        and "0 damaged" in ran.out
        and "of another run (0123456789abcdef): epoch_9.pt" in ran.out
    )
    assert ckpt("verify", trained, other / "best.pt").code == 0  # Each run is alone in its folder.


def test_verify_walks_into_folders_but_not_hidden_ones_and_lets_moved_runs_lie(ckpt, trained, tmp_path):
    train(trained / "archived" / "20260101T000000Z", "other", (0.1,))
    shutil.copy(trained / "epoch_2.pt", trained / "archived" / "20260101T000000Z" / "epoch_9.pt")
    (trained / ".ckptcore" / "junk.pt").write_bytes(b"junk")
    ran = ckpt("verify", trained.parent)
    assert ran.code == 0 and "8 files checked" in ran.out


def test_verify_checks_files_of_other_programs_as_far_as_they_allow(ckpt, tmp_path):
    torch.save({"w": torch.arange(1000)}, tmp_path / "a.pth")
    save_file({"w": torch.arange(10)}, str(tmp_path / "b.safetensors"))
    ran = ckpt("verify", tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert ran.code == 0 and "CRC-32" in ran.out and "structure" in ran.out
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[data.index(torch.arange(500, 510).numpy().tobytes())] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-8])
    found = ckpt("verify", tmp_path, "--json").json
    assert [f["ok"] for f in found["files"]] == [False, False] and all(f["findings"] for f in found["files"])


def test_verify_compares_a_version_with_its_card(ckpt, trained):
    card = ckptcore.promote(trained / "best.pt", version="1.0.0")
    assert ckpt("verify", trained).code == 0
    card.path.unlink()
    shutil.copy(trained / "epoch_1.pt", card.path)
    ran = ckpt("verify", card.path)
    assert ran.code == 1 and "DAMAGED" in ran.out and "is not the file that was promoted" in ran.out


def test_compare_of_a_folder_of_runs_finds_none_and_says_where_they_are(ckpt, trained):
    ran = ckpt("compare", trained.parent)
    assert ran.code == 1 and ran.out == ""
    assert ran.err == f"ckpt: no checkpoints in {trained.parent}; there are some below, in {trained}\n"


@pytest.mark.parametrize("command", ["verify", "compare", "du"])
def test_a_folder_below_that_cannot_be_read_is_a_finding_and_named(ckpt, trained, monkeypatch, command):
    train(trained / "below", "other", (0.1,))
    make_unreadable(monkeypatch, trained / "below")
    ran = ckpt(command, trained.parent)
    assert ran.code == 1 and "below" in ran.err and "Permission denied" in ran.err


@pytest.mark.parametrize("command", ["verify", "compare"])
def test_nothing_to_look_at_is_a_finding(ckpt, tmp_path, command):
    ran = ckpt(command, tmp_path)
    assert ran.code == 1 and "no checkpoints" in ran.err


def test_diff_names_what_changed_and_differences_are_no_finding(ckpt, trained):
    ran = ckpt("diff", trained / "epoch_1.pt", trained / "best.pt")
    assert ran.code == 0 and "~ model_state_dict/w" in ran.out and "the models differ" in ran.out
    found = ckpt("diff", trained / "epoch_1.pt", trained / "best.pt", "--json").json
    assert found["changed"] == ["model_state_dict/w"] and found["same"] == ["model_state_dict/b"]
    assert not found["same_model"] and {"field": "epoch", "a": 0, "b": 2} in found["metadata"]


def test_diff_of_one_file_finds_it_identical(ckpt, trained):
    found = ckpt("diff", trained / "epoch_3.pt", trained / "best.pt", "--json").json
    assert found["identical"] and found["same_model"] and found["metadata"] == []


def test_diff_shows_added_removed_and_reshaped_tensors_and_counts_the_rest(ckpt, tmp_path):
    ckptcore.save(tmp_path / "a.pt", {"model_state_dict": {"x": torch.zeros(2), "gone": torch.zeros(1)}})
    many = {f"new{i}": torch.zeros(1) for i in range(40)}
    ckptcore.save(tmp_path / "b.pt", {"model_state_dict": {"x": torch.zeros(3), **many}})
    ran = ckpt("diff", tmp_path / "a.pt", tmp_path / "b.pt")
    assert "float32 (2,) -> float32 (3,)" in ran.out and "- model_state_dict/gone" in ran.out
    assert "22 tensors more; --all names them" in ran.out
    assert "model_state_dict/new39" in ckpt("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--all").out


def test_row_1_7_compare_shows_the_progression_of_stages(ckpt, tmp_path):
    for epoch, stage, f1, learnable in (
        (4, 1, 0.61, 262_657),
        (11, 2, 0.73, 7_340_033),
        (31, 3, 0.79, 19_456_001),
    ):
        metrics = {"f1": f1, "sensitivity": f1 + 0.1, "specificity": f1 + 0.05, "accuracy": f1}
        state = {
            "epoch": epoch,
            "model_state_dict": {"w": torch.full((4,), f1)},
            "val_metrics": metrics,
            "optimal_threshold": 0.4 + stage / 100,
        }
        metadata = {"epochs_finished": epoch, "stage": f"stage{stage}", "learnable_parameters": learnable}
        ckptcore.save(tmp_path / f"checkpoint_epoch{epoch:02d}_stage{stage}_f1_{f1}.pth", state, metadata)
    ran = ckpt("compare", *sorted(tmp_path.iterdir()))
    lines = [line for line in ran.out.splitlines() if ".pth" in line and not line.startswith("Best")]
    assert ran.code == 0
    for line, told in zip(
        lines, ("4 stage1 0.6100 0.4100 262,657", "11 stage2 0.7300", "31 stage3 0.7900"), strict=True
    ):
        assert all(part in line.split() for part in told.split()), line
    assert lines[-1].startswith("* ") and "sensitivity" in ran.out and "specificity" in ran.out
    assert "Best: epoch 31" in ran.out


def test_row_2_6_compare_names_the_best_epoch(ckpt, tmp_path):
    for epoch, loss in ((5, 0.9), (10, 0.4), (15, 0.6), (20, float("nan"))):
        state = {"epoch": epoch, "loss": loss, "model_state_dict": {"w": torch.zeros(1)}}
        ckptcore.save(tmp_path / f"checkpoint_epoch_{epoch}.pt", state, {"epoch_counts": "finished"})
    ran = ckpt("compare", tmp_path)
    assert ran.code == 0 and "Best: epoch 10, checkpoint_epoch_10.pt, with the lowest loss: 0.4000" in ran.out
    found = ckpt("compare", tmp_path, "--json").json
    assert found["best"]["epochs_finished"] == 10 and found["mode"] == "min"
    assert [row["best"] for row in found["rows"]] == [False, True, False, False]
    assert found["rows"][-1]["metrics"]["loss"] is None


def test_compare_takes_metric_and_mode(ckpt, trained):
    assert "Best: epoch 1," in ckpt("compare", trained, "--metric", "val_auc", "--mode", "min").out
    unknown = ckpt("compare", trained, "--metric", "dice")
    assert unknown.code == 2 and "val_auc" in unknown.err


def test_compare_with_a_damaged_file_is_a_finding(ckpt, trained):
    (trained / "epoch_2.pt").write_bytes((trained / "epoch_2.pt").read_bytes()[:500])
    ran = ckpt("compare", trained)
    assert ran.code == 1 and "! epoch_2.pt" in ran.out and "Best: epoch 3" in ran.out


def test_compare_shows_names_of_one_file_together(ckpt, trained):
    assert "best.pt = epoch_3.pt" in ckpt("compare", trained).out


def test_compare_draws_a_picture(ckpt, trained, tmp_path):
    pytest.importorskip("matplotlib")
    ran = ckpt("compare", trained, "--plot", tmp_path / "progress.png")
    assert ran.code == 0 and (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_rotated_away_meanwhile_is_passed_over_and_what_was_named_is_not(ckpt, trained, monkeypatch):
    from ckptcore import comparing
    from ckptcore.cli import verification

    def vanishing(real):
        def call(path, *rest):
            (trained / "epoch_1.pt").unlink(missing_ok=True)
            return real(path, *rest)

        return call

    saved = (trained / "epoch_1.pt").read_bytes()
    monkeypatch.setattr(verification, "verify", vanishing(verification.verify))
    monkeypatch.setattr(comparing, "read_header", vanishing(comparing.read_header))
    for command in ("verify", "compare"):
        (trained / "epoch_1.pt").write_bytes(saved)
        ran = ckpt(command, trained)
        assert ran.code == 0 and "epoch_1.pt is gone" in ran.err, command
        assert "epoch_1.pt" not in ran.out and "epoch_2.pt" in ran.out
        (trained / "epoch_1.pt").write_bytes(saved)
        ran = ckpt(command, trained / "epoch_1.pt")
        assert ran.code == 2 and "epoch_1.pt" in ran.err, command
