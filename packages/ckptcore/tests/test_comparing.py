"""Checkpoints side by side: the progression, and the best one, without being fooled by NaN or ties."""

import builtins
import subprocess
import sys

import pytest
import torch
from torch import nn

import ckptcore
from ckptcore.cli.listing import list_folder
from ckptcore.comparing import better_when, compare, plot
from ckptcore.errors import NothingThere, UsageError
from ckptcore.layouts import plain
from ckptcore.weights import model_digest

STAGES = [(4, "stage1", 262_657, 0.62), (11, "stage2", 7_340_033, 0.78), (31, "stage3", 19_456_001, 0.81)]


def weights(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2).state_dict()


@pytest.fixture
def staged(tmp_path):
    """The first layout: a checkpoint at each stage's end, and the best one between them."""
    epochs = [*STAGES, (23, "stage3", 19_456_001, 0.84)]
    for epoch, stage, learnable, f1 in epochs:
        state = {
            "epoch": epoch,
            "model_state_dict": weights(epoch),
            "val_metrics": {"f1": f1, "sensitivity": f1 + 0.05, "specificity": f1 - 0.1, "accuracy": f1},
            "optimal_threshold": 0.3 + epoch / 100,
            "stage": {"name": stage, "learnable_parameters": learnable},
            "history": {"val_f1": [f1]},
        }
        name = (
            f"checkpoint_epoch{epoch:02d}_{stage}_f1_{f1:.4f}.pth"
            if epoch != 23
            else "best_model_f1_0.8400.pth"
        )
        ckptcore.save(
            tmp_path / name,
            state,
            {"epoch_counts": "finished", "roles": ["best" if epoch == 23 else "stage"]},
        )
    return tmp_path


def test_row_1_7_the_progression_is_told_stage_by_stage(staged):
    found = compare([staged], "f1")
    assert [row.epochs_finished for row in found.rows] == [4, 11, 23, 31]
    assert [row.stage for row in found.rows] == ["stage1", "stage2", "stage3", "stage3"]
    assert [row.learnable_parameters for row in found.rows] == [262_657, 7_340_033, 19_456_001, 19_456_001]
    assert [row.threshold for row in found.rows] == pytest.approx([0.34, 0.41, 0.53, 0.61])
    assert found.rows[0].metrics == {"f1": 0.62, "sensitivity": 0.67, "specificity": 0.52, "accuracy": 0.62}
    assert (
        found.best is not None
        and found.best.name == "best_model_f1_0.8400.pth"
        and found.best.roles == ("best",)
    )
    assert found.mode == "max" and found.rows[0].parameters == 8
    assert len({row.model_digest for row in found.rows}) == 4


def test_row_1_7_native_files_are_compared_without_torch(staged):
    script = (
        "import sys; from ckptcore.comparing import compare; "
        "compare(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, staged], check=True, timeout=60)


@pytest.mark.parametrize("native", [True, False])
def test_row_2_6_compare_names_the_epoch_of_the_lowest_loss(tmp_path, native):
    losses = {5: 0.9, 10: 0.4, 15: 0.2, 20: 0.3}
    for epoch, loss in losses.items():
        state = {"epoch": epoch, "model_state_dict": weights(epoch), "loss": loss, "epoch_losses": [loss]}
        path = tmp_path / f"checkpoint_epoch_{epoch}.pt"
        if native:
            ckptcore.save(path, state, {"epoch_counts": "finished"})
        else:
            torch.save(state, path)
    found = compare(sorted(tmp_path.glob("checkpoint_epoch_*.pt")), "loss")
    assert [(row.epochs_finished, row.metrics["loss"]) for row in found.rows] == list(losses.items())
    assert found.mode == "min" and found.best is not None and found.best.epochs_finished == 15
    assert found.best.model_digest == model_digest(weights(15)) and found.best.parameters == 8


def series(folder, values, metric="val_auc"):
    for epoch, value in enumerate(values):
        ckptcore.save(folder / f"net_epoch_{epoch + 1}.pth", {"epoch": epoch, metric: value})
    return folder


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.1, float("nan"), 0.3, 0.2], None, 3),
        ([float("nan")] * 2, None, None),
        ([0.3, 0.3, 0.1], None, 1),
        ([0.3, 0.1, 0.1], "min", 2),
        ([float("-inf"), 0.1, float("inf")], None, 2),
        ([float("inf"), 0.1, float("-inf")], "min", 2),
        ([float("inf")], None, None),
    ],
)
def test_nan_and_infinities_are_never_the_best_and_ties_keep_the_earlier(tmp_path, values, mode, best):
    found = compare([series(tmp_path, values)], "val_auc", mode=mode)
    assert (found.best.epochs_finished if found.best else None) == best


def test_the_best_is_the_one_that_the_manager_keeps(tmp_path):
    with ckptcore.CheckpointManager(tmp_path, plain("val_auc", "max", last=9)) as manager:
        for epoch, value in enumerate((0.2, float("inf"), 0.7, 0.7, float("nan"), 0.6)):
            manager.step({"model_state_dict": weights(epoch)}, epoch=epoch, metrics={"val_auc": value})
    kept = ckptcore.read_header(tmp_path / "best.pt")
    found = compare([tmp_path / f"epoch_{number}.pt" for number in range(1, 7)], "val_auc")
    assert found.best is not None and found.best.epochs_finished == kept.epochs_finished == 3
    assert [item.names for item in list_folder(tmp_path).items if item.best] == [("epoch_3.pt", "best.pt")]


def test_without_a_metric_a_usual_one_that_all_have_is_taken(tmp_path):
    for epoch in range(3):
        state = {"epoch": epoch, "train_loss": 1.0, "val_loss": 0.5, "val_auc": 0.8 + epoch / 100}
        ckptcore.save(tmp_path / f"net_epoch_{epoch + 1}.pth", state)
    found = compare([tmp_path])
    assert found.metric == "val_auc" and found.mode == "max" and found.best is found.rows[-1]
    ckptcore.save(tmp_path / "bare" / "a.pth", {"epoch": 1})
    assert compare([tmp_path / "bare"]).metric is None


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("loss", "min"), ("val_loss", "min"), ("val/loss", "min"), ("trainloss", "min"), ("val_hd95", "min"),
        ("rmse", "min"), ("val_auc", "max"), ("f1", "max"), ("val_dice", "max"), ("closeness", "max"),
    ],
)  # fmt: skip
def test_the_direction_is_told_from_the_name(name, mode):
    assert better_when(name) == mode


def test_a_damaged_file_is_a_row_with_its_problem(staged):
    path = staged / "best_model_f1_0.8400.pth"
    path.write_bytes(path.read_bytes()[:-10])
    found = compare([staged], "f1")
    [bad] = [row for row in found.rows if row.problem]
    assert bad.name == path.name and "is damaged" in (bad.problem or "")
    assert found.rows[-1] is bad and found.best is not None and found.best.epochs_finished == 31


def test_what_makes_no_sense_is_said(staged, tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint has the metric 'auc'; there are: accuracy, f1"):
        compare([staged], "auc")
    with pytest.raises(UsageError, match="min or max"):
        compare([staged], "f1", mode="up")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingThere, match="got none"):
        compare([tmp_path / "empty"])
    with pytest.raises(UsageError, match="no file"):
        compare([tmp_path / "absent.pth"])


def test_a_plot_is_a_picture_of_the_progression(staged):
    pytest.importorskip("matplotlib")
    found = compare([staged], "f1")
    picture = plot(found, staged / "plots" / "progress.png")
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000
    plot(found, picture)
    assert picture.read_bytes() == data


def test_a_plot_without_anything_to_draw_is_refused(tmp_path):
    ckptcore.save(tmp_path / "a.pth", {"epoch": 1})
    with pytest.raises(UsageError, match="nothing to draw"):
        plot(compare([tmp_path]), tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"\.png"):
        plot(compare([series(tmp_path / "b", [0.5])]), tmp_path / "a.pdf")


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    found = compare([series(tmp_path, [0.5, 0.6])])
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UsageError, match=r"pip install"):
        plot(found, tmp_path / "a.png")
