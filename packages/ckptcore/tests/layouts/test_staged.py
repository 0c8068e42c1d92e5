"""The layout of the staged fine-tuning, file for file and key for key. Test names give the requirement."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

import ckptcore
from ckptcore import layouts, rotation
from ckptcore.catalogue import Catalogue
from ckptcore.manager import CheckpointManager
from ckptcore.rotation import plan_folder

STAGES = {5: "head", 12: "layer4", 40: "layer3"}
F1 = [round(0.5 + 0.4 * math.sin(epoch / 9), 4) + epoch * 1e-4 for epoch in range(40)]
READERS_HISTORY = (
    *("train_loss", "val_loss", "val_f1", "val_sensitivity", "val_specificity"),
    *("optimal_threshold", "separation"),
)


def measured(epoch):
    return {
        "train_loss": 1 / (epoch + 1),
        "val_loss": 1.1 / (epoch + 1),
        "f1": F1[epoch],
        "sensitivity": 0.8,
        "specificity": 0.7,
        "accuracy": 0.75,
        "optimal_threshold": 0.4 + epoch / 100,
        "separation": epoch / 40,
    }


@pytest.fixture(scope="module")
def forty_epochs(tmp_path_factory):
    """A whole run of 40 epochs in three stages, its model, and the best files that there were after each."""
    folder = tmp_path_factory.mktemp("staged")
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters())
    bests = []
    with CheckpointManager(folder, layouts.staged(), total_epochs=40) as manager:
        for epoch in range(40):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            stage = next(name for last, name in STAGES.items() if epoch < last)
            manager.step(
                ckptcore.capture(model=model, optimizer=optimizer, rng=False),
                epoch=epoch,
                metrics=measured(epoch),
                stage=stage,
                stage_end=epoch + 1 in STAGES,
            )
            manager.wait()
            bests.append([path.name for path in folder.glob("best_model_f1_*.pth")])
    return folder, model, bests


def test_row_1_2_best_is_named_by_its_score_and_there_is_never_none(forty_epochs):
    folder, _, bests = forty_epochs
    highest = 0.0
    for epoch, names in enumerate(bests):
        highest = max(highest, F1[epoch])
        assert names == [f"best_model_f1_{highest:.4f}.pth"], epoch
    assert torch.load(folder / bests[-1][0])["val_metrics"]["f1"] == max(F1)


def test_row_1_2_the_former_best_goes_only_after_the_new_one_is_durable(tmp_path, training, monkeypatch):
    remaining = []
    remove = rotation.durable.remove

    def watched(path):
        remaining.append(sorted(other.name for other in tmp_path.glob("best_model_f1_*.pth")))
        assert all(ckptcore.verify(other).ok for other in tmp_path.glob("best_model_f1_*.pth"))
        remove(path)

    monkeypatch.setattr(rotation.durable, "remove", watched)
    training.run(tmp_path, layouts.staged(), 2, lambda epoch: {"f1": (0.5, 0.6)[epoch]})
    assert ["best_model_f1_0.5000.pth", "best_model_f1_0.6000.pth"] in remaining


def test_row_1_2_a_best_that_a_kill_left_beside_the_new_one_goes_at_the_next_open(
    tmp_path, training, monkeypatch
):
    # A process that dies between commit and rotation has done everything but rotate.
    with monkeypatch.context() as killed:
        killed.setattr(rotation, "rotate", lambda *args, **kwargs: [])
        training.run(tmp_path, layouts.staged(), 3, lambda epoch: {"f1": (0.5, 0.7, 0.6)[epoch]})
    assert len(list(tmp_path.glob("best_model_*"))) == 2
    CheckpointManager(tmp_path, layouts.staged()).close()
    assert [path.name for path in tmp_path.glob("best_model_*")] == ["best_model_f1_0.7000.pth"]


def test_row_1_2_the_former_best_stays_while_the_new_one_is_damaged(tmp_path, training, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(rotation, "rotate", lambda *args, **kwargs: [])
        training.run(tmp_path, layouts.staged(), 3, lambda epoch: {"f1": (0.5, 0.7, 0.6)[epoch]})
    newest = tmp_path / "best_model_f1_0.7000.pth"
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 1
    newest.write_bytes(data)
    CheckpointManager(tmp_path, layouts.staged()).close()
    assert (tmp_path / "best_model_f1_0.5000.pth").exists()


def test_row_1_3_forty_epochs_in_three_stages_leave_one_file_for_each(forty_epochs, names_in):
    folder, _, _ = forty_epochs
    assert names_in(folder) == {
        f"best_model_f1_{max(F1):.4f}.pth",
        f"checkpoint_epoch05_stage1_f1_{F1[4]:.4f}.pth",
        f"checkpoint_epoch12_stage2_f1_{F1[11]:.4f}.pth",
        f"checkpoint_epoch40_stage3_f1_{F1[39]:.4f}.pth",
        "latest_model.pth",
    }
    assert 4 <= len(names_in(folder)) <= 6


def test_row_1_3_without_a_latest_there_are_the_four_files_of_the_page(tmp_path, training, names_in):
    training.run(tmp_path, layouts.staged(latest=False), 40, measured, stages=STAGES)
    assert len(names_in(tmp_path)) == 4


def test_row_1_3_a_run_that_stops_early_has_its_last_file_under_the_stage_it_reached(tmp_path, training):
    with CheckpointManager(tmp_path, layouts.staged(), total_epochs=40) as manager:
        for epoch in range(7):
            done = epoch == 6
            manager.step(
                training.state,
                epoch=epoch,
                metrics=measured(epoch),
                stage="head" if epoch < 5 else "layer4",
                stage_end=epoch == 4,
                final=done,
            )
    assert (tmp_path / f"checkpoint_epoch07_stage2_f1_{F1[6]:.4f}.pth").exists()


def test_row_1_3_stages_are_counted_on_after_a_resume(tmp_path, new_training):
    new_training().run(tmp_path, layouts.staged(), 8, measured, stages=STAGES, total_epochs=40)
    new_training(1).run(tmp_path, layouts.staged(), 40, measured, stages=STAGES)
    assert (tmp_path / f"checkpoint_epoch12_stage2_f1_{F1[11]:.4f}.pth").exists()
    assert (tmp_path / f"checkpoint_epoch40_stage3_f1_{F1[39]:.4f}.pth").exists()


def test_row_1_4_every_file_has_the_keys_of_the_page(forty_epochs):
    folder, _, _ = forty_epochs
    for path in folder.glob("*.pth"):
        found = torch.load(path, weights_only=True)
        assert type(found["epoch"]) is int
        assert isinstance(found["model_state_dict"], OrderedDict)
        assert set(found["optimizer_state_dict"]) == {"state", "param_groups"}
        assert set(found["val_metrics"]) == {"f1", "sensitivity", "specificity", "accuracy"}
        assert all(type(value) is float for value in found["val_metrics"].values())
        assert type(found["optimal_threshold"]) is float
        assert tuple(found["history"]) == READERS_HISTORY
        assert {len(values) for values in found["history"].values()} == {found["epoch"]}


def test_row_1_4_epoch_counts_finished_epochs_and_the_header_says_so(forty_epochs):
    folder, _, _ = forty_epochs
    path = next(folder.glob("checkpoint_epoch12_*"))
    found = ckptcore.load(path)
    assert found["epoch"] == found.epochs_finished == 12
    assert found.header.metadata["epoch_counts"] == "finished"
    assert found["history"]["val_f1"] == F1[:12]
    assert found["stage"] == "layer4"


@pytest.mark.parametrize("prefix", ["", "val_"])
def test_row_1_4_metrics_are_found_under_both_of_their_names(tmp_path, training, prefix):
    def named(epoch):
        return {f"{prefix}{name}": value for name, value in (("f1", 0.5 + epoch / 10), ("sensitivity", 0.9))}

    training.run(tmp_path, layouts.staged(f"{prefix}f1"), 2, named)
    found = torch.load(tmp_path / "best_model_f1_0.6000.pth")
    assert found["val_metrics"]["f1"] == 0.6 and found["val_metrics"]["sensitivity"] == 0.9
    assert math.isnan(found["val_metrics"]["accuracy"])
    assert found["history"]["val_f1"] == [0.5, 0.6]


def test_row_1_4_history_goes_on_after_a_resume_without_a_gap(tmp_path, new_training):
    new_training().run(tmp_path, layouts.staged(), 3, measured)
    new_training(1).run(tmp_path, layouts.staged(), 5, measured)
    found = torch.load(tmp_path / "latest_model.pth")
    assert found["history"]["val_f1"] == F1[:5]
    assert found["history"]["separation"] == [epoch / 40 for epoch in range(5)]


def test_row_1_4_what_the_loop_stores_itself_stands(tmp_path, training):
    with CheckpointManager(tmp_path, layouts.staged()) as manager:
        state = {**training.state(), "optimal_threshold": 0.31, "history": {"val_f1": [0.5]}}
        manager.step(state, epoch=0, metrics=measured(0))
    found = torch.load(tmp_path / "latest_model.pth")
    assert found["optimal_threshold"] == 0.31 and found["history"] == {"val_f1": [0.5]}


def test_row_1_7_the_best_model_loads_for_inference_as_the_page_shows(forty_epochs):
    folder, _, _ = forty_epochs
    path = next(folder.glob("best_model_f1_*.pth"))
    stored = torch.load(path, map_location="cpu")
    model = nn.Linear(4, 1)
    model.load_state_dict(stored["model_state_dict"])
    model.eval()
    assert f"{stored['optimal_threshold']:.3f} {stored['val_metrics']['f1']:.4f}"
    fresh = nn.Linear(4, 1)
    report = ckptcore.load_weights(fresh, path)
    assert not report.missing and torch.equal(fresh.weight, model.weight)


def test_row_1_7_training_goes_on_from_the_file_of_a_stage(tmp_path, new_training, forty_epochs):
    folder, _, _ = forty_epochs
    stage_file = next(folder.glob("checkpoint_epoch12_stage2_*.pth"))
    stored = torch.load(stage_file)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model.load_state_dict(stored["model_state_dict"])
    optimizer.load_state_dict(stored["optimizer_state_dict"])
    assert stored["epoch"] == 12 and stored["history"]["val_f1"] == F1[:12]
    with CheckpointManager(tmp_path, layouts.staged(), total_epochs=40) as manager:
        found = manager.resume(stage_file)
        assert found is not None and found.epochs_finished == 12
        manager.step({"model_state_dict": model.state_dict()}, epoch=12, metrics=measured(12), stage="layer3")
    latest = ckptcore.load(tmp_path / "latest_model.pth")
    assert latest["epoch"] == 13 and latest["history"]["val_f1"] == F1[:13]
    assert latest.header.metadata["parent"]["file"] == stage_file.name


def test_row_1_7_the_progression_over_all_files_can_be_told(forty_epochs):
    folder, _, _ = forty_epochs
    told = []
    for path in folder.glob("checkpoint_*.pth"):
        stored = torch.load(path, map_location="cpu")
        told.append((stored["epoch"], stored["val_metrics"]["f1"], stored["optimal_threshold"]))
    assert sorted(told) == [(last, F1[last - 1], 0.4 + (last - 1) / 100) for last in STAGES]
    by_header = {f.header.epochs_finished: f.header.metrics["f1"] for f in Catalogue.scan(folder) if f.header}
    assert {last: by_header[last] for last in STAGES} == {last: F1[last - 1] for last in STAGES}


def test_row_1_8_it_is_said_of_every_file_what_must_stay_what_may_go_and_what_is_safe_to_delete(
    tmp_path, training
):
    training.run(tmp_path, layouts.staged(), 12, measured, stages=STAGES, total_epochs=40)
    run_key = Catalogue.scan(tmp_path).run_keys()[0]
    state = {**training.state(), "epoch": 3}
    ckptcore.save(tmp_path / "best_model_f1_0.1000.pth", state, {"run_key": run_key, "metrics": {"f1": 0.1}})
    ckptcore.save(tmp_path / "checkpoint_epoch09_stage9_f1_0.1.pth", state, {"run_key": "another"})
    torch.save(training.model.state_dict(), tmp_path / "pretrained.pth")
    ckptcore.save(tmp_path / "effnet_v1.0.0_best.pth", state, {"run_key": "a third"})
    (tmp_path / "broken.pth").write_bytes((tmp_path / "latest_model.pth").read_bytes()[:-7])
    plan = plan_folder(tmp_path, layouts.staged(), run_key)
    assert plan.verdicts == {
        f"best_model_f1_{max(F1[:12]):.4f}.pth": "must stay",
        "latest_model.pth": "must stay",
        f"checkpoint_epoch05_stage1_f1_{F1[4]:.4f}.pth": "may go",
        f"checkpoint_epoch12_stage2_f1_{F1[11]:.4f}.pth": "may go",
        "best_model_f1_0.1000.pth": "safe to delete",
        "checkpoint_epoch09_stage9_f1_0.1.pth": "may go",
        "broken.pth": "may go",
        "pretrained.pth": "yours to decide",
        "effnet_v1.0.0_best.pth": "must stay",
    }
    reasons = {d.name: d.reason for d in plan.decisions} | dict(plan.untouched)
    assert set(reasons) == set(plan.verdicts) and all(reasons.values())
    assert "no longer the best" in reasons["best_model_f1_0.1000.pth"]
    assert "another" in reasons["checkpoint_epoch09_stage9_f1_0.1.pth"]


def test_row_1_8_the_files_of_an_old_run_are_set_aside_whole_when_a_new_one_starts(tmp_path, new_training):
    new_training().run(tmp_path, layouts.staged(), 5, measured, stages=STAGES)
    old = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    new_training(1).run(tmp_path, layouts.staged(), 2, lambda epoch: {"f1": 0.2 + epoch / 10}, resume="none")
    (archived,) = (tmp_path / "archived").iterdir()
    assert {path.name: path.read_bytes() for path in archived.iterdir()} == old
    assert len(Catalogue.scan(tmp_path).run_keys()) == 1


def test_a_layout_for_a_loss_names_the_lowest(tmp_path, training, names_in):
    layout = layouts.staged("val_loss", "min")
    training.run(tmp_path, layout, 3, lambda epoch: {"val_loss": (0.9, 0.2, math.nan)[epoch]})
    assert "best_model_loss_0.2000.pth" in names_in(tmp_path)
