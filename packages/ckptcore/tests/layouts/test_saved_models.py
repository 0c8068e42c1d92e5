"""The layout of a saved_models folder: its names, its keys, what stays. Test names give the requirement."""

import json
import math
from collections import OrderedDict

import pytest
import torch

import ckptcore
from ckptcore import layouts, rotation
from ckptcore.cards import list_versions
from ckptcore.cli.listing import list_folder
from ckptcore.errors import UsageError
from ckptcore.manager import CheckpointManager
from ckptcore.pruning import prune
from ckptcore.rules import Nothing

AUC = [0.50, 0.60, 0.55, 0.70, 0.65, 0.80, 0.75, 0.80, 0.71, 0.69]


def measured(epoch):
    return {
        "train_loss": 1 / (epoch + 1),
        "val_loss": 1.2 / (epoch + 1),
        "val_auc": AUC[epoch % 10] + epoch / 1000,
    }


def test_row_4_2_keys_as_plain_torch_load_reads_them(tmp_path, training):
    with CheckpointManager(tmp_path, layouts.saved_models("resnet50")) as manager:
        for epoch in range(3):
            state = {**training.state(), "hyperparameters": {"crop": 176, "weight_decay": 0.02}}
            manager.step(state, epoch=epoch, metrics=measured(epoch))
    found = torch.load(tmp_path / "resnet50_latest.pth", weights_only=True)
    assert found["epoch"] == 2
    assert isinstance(found["model_state_dict"], OrderedDict)
    assert set(found["optimizer_state_dict"]) == {"state", "param_groups"}
    assert found["scheduler_state_dict"]["last_epoch"] == 0
    assert found["train_loss"] == 1 / 3 and found["val_loss"] == 1.2 / 3
    assert found["val_auc"] == 0.55 + 0.002 and found["best_metric"] == 0.60 + 0.001
    assert found["hyperparameters"] == {"crop": 176, "weight_decay": 0.02}
    assert found["timestamp"].endswith("+00:00")


def test_row_4_2_what_the_loop_does_not_have_is_there_and_empty(tmp_path, training):
    with CheckpointManager(tmp_path, layouts.saved_models("unet", "val_dice")) as manager:
        manager.step({"model_state_dict": training.model.state_dict()}, epoch=0)
    found = torch.load(tmp_path / "unet_latest.pth")
    assert found["hyperparameters"] == {} and found["scheduler_state_dict"] == {}
    assert all(math.isnan(found[key]) for key in ("train_loss", "val_loss", "val_dice", "best_metric"))


def test_row_4_2_the_pages_way_of_going_on(tmp_path, training, new_training):
    training.run(tmp_path, layouts.saved_models("resnet50"), 15, measured)
    stored = torch.load(tmp_path / "resnet50_epoch_15.pth")
    other = new_training(4)
    other.model.load_state_dict(stored["model_state_dict"])
    other.optimizer.load_state_dict(stored["optimizer_state_dict"])
    other.scheduler.load_state_dict(stored["scheduler_state_dict"])
    assert stored["epoch"] + 1 == 15
    assert stored["best_metric"] == max(measured(epoch)["val_auc"] for epoch in range(15))
    assert all(map(torch.equal, other.weights(), training.weights()))


def test_row_4_7_best_on_better_auc_every_fifth_epoch_the_last_three(tmp_path, training, names_in):
    training.run(tmp_path, layouts.saved_models("resnet50"), 32, measured)
    assert names_in(tmp_path) == {
        *("resnet50_best.pth", "resnet50_latest.pth", "training_history.json"),
        *(f"resnet50_epoch_{n}.pth" for n in (20, 25, 30)),
    }
    best = torch.load(tmp_path / "resnet50_best.pth")
    assert best["epoch"] == max(range(32), key=lambda epoch: measured(epoch)["val_auc"])


def test_row_4_7_epoch_5_goes_before_epoch_10_though_its_name_sorts_later(tmp_path, training):
    gone = []

    def watch(epoch, manager):
        gone.append({path.name for path in tmp_path.glob("resnet50_epoch_*.pth")})

    training.run(tmp_path, layouts.saved_models("resnet50"), 20, measured, after_save=watch)
    assert gone[14] == {f"resnet50_epoch_{n}.pth" for n in (5, 10, 15)}
    assert gone[19] == {f"resnet50_epoch_{n}.pth" for n in (10, 15, 20)}


def test_row_4_7_neither_versions_nor_strangers_files_rotate(tmp_path, training):
    training.run(tmp_path, layouts.saved_models("resnet50"), 5, measured)
    for name in ("resnet50_v1.0.0_best.pth", "resnet50_epoch_1.backup.pth"):
        (tmp_path / name).write_bytes((tmp_path / "resnet50_best.pth").read_bytes())
    torch.save({}, tmp_path / "vgg_epoch_1.pth")
    training.run(tmp_path, layouts.saved_models("resnet50"), 40, measured)
    kept = {path.name for path in tmp_path.glob("*.pth")}
    assert {"resnet50_v1.0.0_best.pth", "resnet50_epoch_1.backup.pth", "vgg_epoch_1.pth"} <= kept


def test_row_4_7_ties_and_nan_make_no_new_best(tmp_path, training):
    values = [0.6, 0.6, math.nan, math.inf, 0.59]
    training.run(tmp_path, layouts.saved_models("resnet50"), 5, lambda epoch: {"val_auc": values[epoch]})
    assert torch.load(tmp_path / "resnet50_best.pth")["epoch"] == 0


@pytest.mark.parametrize("name", ["resnet50_epoch_5.pth", "resnet50_epoch_10.pth", "resnet50_best.pth"])
def test_row_4_8_training_resumed_from_any_file_ends_bit_for_bit_as_if_never_stopped(
    tmp_path, new_training, name
):
    whole = new_training()
    whole.run(tmp_path / "whole", layouts.saved_models("resnet50"), 12, measured)
    resumed = new_training(99)
    manager = resumed.run(
        tmp_path / "resumed",
        layouts.saved_models("resnet50"),
        12,
        measured,
        resume=tmp_path / "whole" / name,
    )
    assert all(map(torch.equal, resumed.weights(), whole.weights()))
    assert resumed.scheduler.state_dict() == whole.scheduler.state_dict()
    assert manager.history == {
        name: [measured(epoch)[name] for epoch in range(12)] for name in ("train_loss", "val_loss", "val_auc")
    }


def test_row_4_8_the_best_is_not_forgotten(tmp_path, new_training):
    new_training().run(tmp_path, layouts.saved_models("resnet50"), 6, measured)
    new_training(1).run(tmp_path, layouts.saved_models("resnet50"), 7, measured)
    assert torch.load(tmp_path / "resnet50_best.pth")["epoch"] == 5
    assert torch.load(tmp_path / "resnet50_latest.pth")["best_metric"] == AUC[5] + 0.005


def test_row_4_13_every_file_of_ours_opens_on_the_cpu_by_plain_torch_load(tmp_path, training):
    training.run(tmp_path, layouts.saved_models("resnet50"), 1, measured)
    stored = torch.load(tmp_path / "resnet50_best.pth")
    assert {tensor.device.type for tensor in stored["model_state_dict"].values()} == {"cpu"}


def test_row_4_13_a_file_that_another_program_saved_on_a_gpu_opens_on_the_cpu(
    tmp_path, training, monkeypatch
):
    with monkeypatch.context() as pretended:
        # What torch writes into a file for tensors on a GPU; here is none.
        pretended.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"epoch": 3, "model_state_dict": training.model.state_dict()}, tmp_path / "gpu.pth")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "gpu.pth")
    found = ckptcore.load(tmp_path / "gpu.pth")
    assert torch.equal(found["model_state_dict"]["weight"], training.model.weight)
    ckptcore.load_weights(training.model, tmp_path / "gpu.pth")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="WITHOUT a GPU: saving from one is not shown here")
def test_row_4_13_what_was_saved_on_a_gpu_opens_on_the_cpu(tmp_path):
    ckptcore.save(tmp_path / "gpu.pth", {"model_state_dict": {"weight": torch.arange(5.0, device="cuda")}})
    assert torch.load(tmp_path / "gpu.pth")["model_state_dict"]["weight"].device.type == "cpu"
    assert ckptcore.load(tmp_path / "gpu.pth", "cuda")["model_state_dict"]["weight"].device.type == "cuda"


def test_the_history_beside_is_strict_json_and_follows_every_save(tmp_path, training):
    def sometimes(epoch):
        return {"train_loss": 0.5, **({"val_auc": math.nan if epoch == 1 else 0.6} if epoch < 2 else {})}

    training.run(tmp_path, layouts.saved_models("resnet50"), 3, sometimes)
    told = json.loads((tmp_path / "training_history.json").read_text(), parse_constant=pytest.fail)
    assert told == {"train_loss": [0.5, 0.5, 0.5], "val_auc": [0.6, None, None]}


def test_the_history_of_an_old_run_goes_where_its_files_go(tmp_path, new_training):
    new_training().run(tmp_path, layouts.saved_models("resnet50"), 2, measured)
    new_training(1).run(tmp_path, layouts.saved_models("resnet50"), 1, measured, resume="none")
    (archived,) = (tmp_path / "archived").iterdir()
    assert len(json.loads((archived / "training_history.json").read_text())["val_auc"]) == 2
    assert len(json.loads((tmp_path / "training_history.json").read_text())["val_auc"]) == 1


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 200])
def test_a_name_that_is_no_part_of_a_file_name_is_refused(name):
    with pytest.raises(UsageError, match="the model's name"):
        layouts.saved_models(name)


def test_braces_in_a_name_are_meant_as_written(tmp_path, training, names_in):
    training.run(tmp_path, layouts.saved_models("a{epoch}"), 1, measured)
    assert "a{epoch}_best.pth" in names_in(tmp_path)


@pytest.mark.parametrize("name", ["net_v1.0.0", "yolo_v8.0.1"])
def test_a_models_name_that_would_pass_for_a_version_is_refused(name):
    with pytest.raises(UsageError, match=rf"version number at its end.*Try '{name.replace('.', '-')}'"):
        layouts.saved_models(name)
    assert layouts.saved_models(name.replace(".", "-")).templates["best"].endswith("_best.pth")


@pytest.mark.parametrize("name", ["yolo_v8.0.1x", "yolo_v8.0.1_large", "yolo-8.0.1", "{net}_v01.0.0"])
def test_a_version_number_in_a_models_name_keeps_nothing_from_rotating(tmp_path, training, names_in, name):
    layout = layouts.saved_models(name, every=1, last=2, latest=False, history_file=None)
    training.run(tmp_path, layout, 5, measured)
    assert names_in(tmp_path) == {f"{name}_best.pth", f"{name}_epoch_4.pth", f"{name}_epoch_5.pth"}
    version = ckptcore.promote(tmp_path / f"{name}_best.pth", version="1.0.0").file_name
    assert [card.file_name for card in list_versions(tmp_path)] == [version]
    listed = {item.names: item.roles for item in list_folder(tmp_path).items}
    assert [names for names, roles in listed.items() if "version" in roles] == [(version,)]
    assert rotation.plan_folder(tmp_path, layout, None, Nothing()).doomed == [
        f"{name}_epoch_4.pth",
        f"{name}_epoch_5.pth",
    ]
    (tmp_path / ".ckptcore" / "policy.json").unlink()
    assert prune(tmp_path, 1).removed == (f"{name}_epoch_4.pth",)
    assert names_in(tmp_path) >= {version, f"{name}_best.pth", f"{name}_epoch_5.pth"}


def test_without_a_latest_there_are_only_the_files_that_the_folder_always_had(tmp_path, training, names_in):
    training.run(tmp_path, layouts.saved_models("3dcnn", latest=False, history_file=None), 5, measured)
    assert names_in(tmp_path) == {"3dcnn_best.pth", "3dcnn_epoch_5.pth"}
    assert rotation.plan_folder(tmp_path, layouts.saved_models("3dcnn"), None).doomed == []
