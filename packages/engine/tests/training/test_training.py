"""A whole training: keys, names, log, pictures, work folders, errors."""

import errno
import json
import logging
import math
import os
import stat
import time

import pytest
import torch
from stopping import stop_at
from trainable import stages, toy_pipeline

import ckptcore
from ckptcore.errors import FolderBusy
from ckptcore.signals import TrainingInterrupted
from radfuse.engine import code, workfolder
from radfuse.engine.errors import MissingStage, NonFiniteLoss, SettingsError, StaleError
from radfuse.engine.modality import modality
from radfuse.engine.training.run import MOST_SKIPPED, Run

LABELS = ["bright", "striped"]


def test_row_4_2_published_checkpoints_have_the_keys_and_plain_torch_reads_them(toy):
    toy.train()
    best = toy.models / "tiny_best.pth"
    found = torch.load(best, weights_only=True)
    wanted = {
        *("epoch", "global_step", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict"),
        *(
            "scaler_state_dict",
            "ema_state_dict",
            "train_loss",
            "val_loss",
            "val_auc",
            "val_metrics",
            "best_metric",
        ),
        *("optimal_thresholds", "history", "hyperparameters", "stage", "rng_state", "loader_state"),
        *("provenance", "timestamp", "ckptcore_format"),
    }
    assert wanted <= found.keys()
    assert set(found["optimal_thresholds"]) == {"bright", "striped"}
    assert {"f1", "sensitivity", "specificity", "accuracy"} <= found["val_metrics"].keys()
    assert found["best_metric"] == found["val_auc"] == max(found["history"]["val_auc"])
    told = {"train_loss", "val_loss", "val_f1", "val_sensitivity", "val_specificity", "separation"}
    assert told <= found["history"].keys()
    assert (
        found["hyperparameters"]["batch_size"] == 4
        and found["provenance"]["task"]["kind"] == "classification"
    )
    assert stat.S_IMODE(best.stat().st_mode) == 0o444
    history = json.loads((toy.models / "training_history.json").read_text())
    assert len(history["val_auc"]) == 2


def test_row_1_4_one_label_has_one_threshold(tmp_path):
    from trainable import write_prepared

    pipeline = toy_pipeline(tmp_path)
    from radfuse.engine.prepared import Prepared

    rows = Prepared(pipeline.places, "toy").rows().drop(columns="label:striped")
    write_prepared(tmp_path, "toy", rows, {"kind": "radiograph", "size": [8, 8]}, ["bright"])
    pipeline.train()
    found = ckptcore.load(pipeline.models / "tiny_best.pth")
    assert 0 <= found["optimal_threshold"] <= 1 and "optimal_thresholds" not in found
    assert found["history"]["optimal_threshold"][found["epoch"]] == found["optimal_threshold"]


def test_row_5_7_a_json_log_and_pictures_by_epoch_and_batch(toy):
    toy.train()
    (work,) = toy.works()
    (log,) = work.glob("training_????????_??????.json")
    told = json.loads(log.read_text())
    assert [one["epoch"] for one in told["epochs"]] == [0, 1]
    assert told["sessions"][0]["outcome"] == "finished" and told["run_key"] == work.name
    assert told["epochs"][0]["seconds"] > 0 and told["epochs"][0]["stage"]["name"] == "all"
    names = {path.name for path in (work / "pictures").iterdir()}
    assert names == {"epoch_000_batch_001.png", "epoch_001_batch_001.png", "learning_curves.png"}


def test_a_finished_training_is_published_again_and_not_trained(toy):
    first = toy.train()
    (toy.models / "tiny_best.pth").unlink()
    second = toy.train()
    assert first.trained and not second.trained and second.epochs_finished == 2
    assert (toy.models / "tiny_best.pth").is_file()


def test_what_only_says_how_a_training_runs_does_not_change_its_key(toy):
    keys = {
        toy.train(*one).key
        for one in ((), ("train.toy.keep_last=5", "train.toy.save_every=7", "train.workers=1"))
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    "change",
    [
        *("seed=1", "train.toy.batch_size=6", "train.toy.dropout=0.1", "prepare.toy.size=9"),
        *("train.precision=bf16", "train.deterministic=true"),
    ],
)
def test_what_changes_numbers_changes_the_key(toy, change):
    def key(*overrides):
        params, found = toy.params(*overrides), modality("toy")
        return workfolder.key_of(workfolder.recipe_of(params, found, params.train_of(found), "digest"))

    assert key() == key() != key(change)


def test_the_code_of_the_key_is_there_and_the_modality_is_among_it():
    names = code.digests(*code.of_training(modality("toy")))
    assert {"toy_modality", "radfuse.engine.training.loop.py"} <= set(names)
    inside = code.digests(*code.of_training(modality("xray")))
    assert {"radfuse.xray.network.py", "radfuse.engine.training.tasks.task.py"} <= set(inside)


def test_on_a_miss_the_nearest_run_and_what_differs_is_told_with_a_command_that_works(toy, caplog):
    first = toy.train()
    longer = f"train.toy.stages={stages(3)}"
    with caplog.at_level(logging.INFO, "radfuse"):
        toy.train("train.toy.batch_size=6", "train.toy.dropout=0.1", longer)
        toy.train(f"train.toy.stages={stages(1)}")
    told = [record.getMessage() for record in caplog.records if "differs in" in record.getMessage()]
    assert f"nearest earlier one, {first.key}, differs in:" in told[0]
    assert "train.batch_size: 4 then, 6 now" in told[0] and "train.dropout: 0.3 then, 0.1 now" in told[0]
    assert "To go on from it instead" in told[0]
    setting = told[0].rsplit("--set ", 1)[1]
    assert setting == f"train.toy.continue_from=.work/toy/{first.key}/tiny_latest.pth"
    assert "train.stages.0.epochs: 2 then, 1 now" in told[1]
    caplog.clear()
    with caplog.at_level(logging.INFO, "radfuse"):
        assert toy.train(setting, longer).epochs_finished == 3
    assert "starts afresh" not in caplog.text


def test_of_a_nearest_run_that_has_all_its_epochs_the_weights_are_offered(toy, caplog):
    first = toy.train()
    slower = f"train.toy.stages={stages(2, rate=1e-3)}"
    with caplog.at_level(logging.INFO, "radfuse"):
        toy.train(slower)
    [told] = [record.getMessage() for record in caplog.records if "differs in" in record.getMessage()]
    assert "train.stages.0.learning_rate: 0.01 then, 0.001 now" in told
    assert "To begin with its weights instead" in told
    setting = told.rsplit("--set ", 1)[1]
    assert setting == f"train.toy.weights=.work/toy/{first.key}/tiny_latest.pth"
    assert toy.train(setting, slower).epochs_finished == 2


def make_old(folder):
    for path in folder.iterdir():
        os.utime(path, (time.time() - 90_000,) * 2)


def test_finished_trainings_of_yesterday_are_deleted_when_another_one_ends(toy):
    first, second = toy.train(), toy.train("seed=1")
    make_old(toy.places.work("toy") / first.key)
    third = toy.train("seed=2")
    assert {work.name for work in toy.works()} == {second.key, third.key}


@pytest.mark.parametrize("setting", ["weights", "continue_from"])
def test_a_training_that_another_one_began_with_stays_however_old_it_is(toy, setting):
    first = toy.train()
    make_old(toy.places.work("toy") / first.key)
    began = f"train.toy.{setting}=.work/toy/{first.key}/tiny_latest.pth"
    longer = f"train.toy.stages={stages(3)}"
    second = toy.train(began, longer)
    assert second.key != first.key and first.key in {work.name for work in toy.works()}
    assert not toy.train(began, longer).trained


def test_a_deletion_that_was_killed_leaves_no_half_of_a_training(toy, monkeypatch):
    first = toy.train()
    make_old(toy.places.work("toy") / first.key)

    def killed(folder, **_):
        next(folder.glob("*_best.pth")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workfolder.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            toy.train("seed=1")
    again = toy.train()
    assert again.trained and again.key == first.key and again.published
    assert not [one for one in toy.places.work("toy").iterdir() if one.name.endswith(".deleted")]


def test_a_training_that_cannot_be_deleted_is_not_told_as_deleted_and_goes_the_next_time(
    toy, monkeypatch, caplog
):
    first = toy.train()
    make_old(toy.places.work("toy") / first.key)

    def fails(folder, **_):
        raise OSError(errno.EIO, "Input/output error", str(folder / "run.json"))

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "radfuse"):
        patch.setattr(workfolder.shutil, "rmtree", fails)
        assert toy.train("seed=1").published
    assert f"the work folder {first.key} was not deleted, or not wholly: " in caplog.text
    assert "deleted work folders" not in caplog.text
    toy.train("seed=1")
    assert not list(toy.places.work("toy").glob("*.deleted"))


def test_a_training_whose_lock_cannot_be_had_is_not_told_as_deleted_and_stays_whole(toy, caplog):
    first = toy.train()
    folder = toy.places.work("toy") / first.key
    make_old(folder)
    lock = folder.with_name(f"{first.key}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    before = sorted(path.name for path in folder.iterdir())
    with caplog.at_level(logging.INFO, "radfuse"):
        assert toy.train("seed=1").published
    assert f"the work folder {first.key} was not deleted" in caplog.text and lock.name in caplog.text
    assert "deleted work folders" not in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_damaged_checkpoint_of_another_training_is_no_nearest_one(toy, caplog):
    first = toy.train()
    (toy.places.work("toy") / first.key / "tiny_latest.pth").write_bytes(b"")
    with caplog.at_level(logging.INFO, "radfuse"):
        assert toy.train("seed=1").trained
    assert "differs in" not in caplog.text


def test_a_stopped_training_and_what_was_set_aside_stay_however_old_they_are(toy, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, [3])
        with pytest.raises(TrainingInterrupted):
            toy.train()
    toy.train("seed=1")
    (stopped,) = [work for work in toy.works() if not workfolder.read_record(work).get("finished")]
    for work in toy.works():
        make_old(work)
    toy.train("seed=1", resume="none")
    aside = [work for work in toy.works() if "." in work.name]
    for work in toy.works():
        make_old(work)
    toy.train("seed=2")
    assert {stopped, *aside} <= set(toy.works()) and len(aside) == 1
    assert toy.train().epochs_finished == 2


def test_on_a_shared_scratch_disk_each_pipeline_deletes_its_own_folders_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("RADFUSE_WORK_ROOT", str(tmp_path / "scratch"))
    ours, theirs = (toy_pipeline(tmp_path / name) for name in ("ours", "theirs"))
    kept = theirs.train("seed=3").key
    first = ours.train().key
    for work in ours.works():
        make_old(work)
    last = ours.train("seed=1").key
    assert {work.name for work in ours.works()} == {kept, last} and first != last


def test_new_test_patients_and_corrected_test_labels_train_nothing_again(toy):
    from trainable import write_prepared

    from radfuse.engine.prepared import Prepared

    first = toy.train()
    rows = Prepared(toy.places, "toy").rows()
    held = rows.index[rows["split"] == "test"]
    rows.loc[held[0], "label:bright"] = 1.0 - (rows.loc[held[0], "label:bright"] or 0.0)
    write_prepared(toy.root, "toy", rows.drop(index=held[1]), {"kind": "radiograph", "size": [8, 8]}, LABELS)
    second = toy.train()
    assert not second.trained and second.key == first.key
    toy.predict()
    learnt = rows.index[rows["split"] == "val"]
    rows.loc[learnt[0], "label:bright"] = 1.0 - rows.loc[learnt, "label:bright"].fillna(0.0).iloc[0]
    write_prepared(toy.root, "toy", rows, {"kind": "radiograph", "size": [8, 8]}, LABELS)
    with pytest.raises(StaleError, match="run `radfuse train toy` again"):
        toy.predict()
    assert toy.train().trained
    toy.predict()


def test_a_split_whose_other_patients_changed_leaves_a_model_as_good_as_it_was(toy):
    toy.train()
    for file in (toy.places.manifest_stamp("toy"), toy.places.splits):
        said = json.loads(file.read_text())
        said["digest" if file == toy.places.splits else "split_digest"] = "e" * 64
        file.write_text(json.dumps(said))
    assert not toy.train().trained
    toy.predict()


def test_a_folder_that_is_trained_in_is_not_for_a_second_writer(toy):
    key = toy.train().key
    manager = ckptcore.CheckpointManager(toy.places.work("toy") / key, ckptcore.layouts.saved_models("tiny"))
    with pytest.raises(FolderBusy):
        toy.train(resume="tiny_latest.pth")
    manager.close()


def test_early_stopping_ends_a_training_that_gets_no_better(toy, caplog):
    outcome = toy.train("train.toy.early_stopping=2", f"train.toy.stages={stages(9, rate=1e-9)}")
    assert outcome.epochs_finished < 9
    found = ckptcore.load(toy.places.work("toy") / outcome.key / "tiny_latest.pth")
    values = found["history"]["val_auc"]
    assert len(values) - 1 - values.index(max(values)) == 2
    assert not toy.train("train.toy.early_stopping=2", f"train.toy.stages={stages(9, rate=1e-9)}").trained


def test_early_stopping_waits_for_the_last_stage(toy):
    outcome = toy.train("train.toy.early_stopping=1", f"train.toy.stages={stages(4, 3, rate=1e-9)}")
    assert 5 <= outcome.epochs_finished <= 7


def poisoned(monkeypatch, times, after=0):
    """Make the loss NaN at so many steps, the first ones after some good ones."""
    from radfuse.engine.training.tasks.classification import MaskedBCE

    forward, left, good = MaskedBCE.forward, [times], [after]

    def poison(self, logits, target):
        loss = forward(self, logits, target)
        if logits.requires_grad and good[0]:
            good[0] -= 1
        elif logits.requires_grad and left[0]:
            left[0] -= 1
            return loss * math.nan
        return loss

    monkeypatch.setattr(MaskedBCE, "forward", poison)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_samples(toy, monkeypatch):
    poisoned(monkeypatch, 1)
    with pytest.raises(
        NonFiniteLoss,
        match=r"the loss is nan at epoch 1, step 1, learning rate 0\.\d+, samples i0000.*on_nonfinite=skip",
    ):
        toy.train()


def test_the_state_before_a_loss_that_is_no_number_is_saved_with_the_reason_and_never_as_best(
    toy, monkeypatch
):
    poisoned(monkeypatch, 1, after=8)
    with pytest.raises(NonFiniteLoss, match="epoch 2, step 9"):
        toy.train()
    (folder,) = toy.works()
    header = ckptcore.read_header(folder / "tiny_latest.pth")
    assert (header.reason, header.global_step) == ("nonfinite", 8)
    steps, count = [], Run.count
    monkeypatch.setattr(Run, "count", lambda *all: (count(*all), steps.append(all[0].at.step)))
    assert ckptcore.read_header(folder / "tiny_best.pth").reason != "nonfinite"
    # The cause is gone: the same command goes on with that very step, and nobody can tell.
    assert toy.train().epochs_finished == 2
    assert steps == [9, 10, 11, 12]
    stopped = ckptcore.read_header(toy.models / "tiny_best.pth").model_digest
    toy.train(resume="none")
    assert ckptcore.read_header(toy.models / "tiny_best.pth").model_digest == stopped


def test_an_image_that_is_no_number_leaves_no_trace_in_the_batch_norms(toy, monkeypatch):
    from radfuse.engine.training.loaders import Examples

    read, spoilt = Examples.__getitem__, []

    def spoil(self, place):
        image, target, index = read(self, place)
        if self._seed is None or spoilt:
            return image, target, index
        spoilt.append(place)
        return image * math.nan, target, index

    monkeypatch.setattr(Examples, "__getitem__", spoil)
    toy.train("train.on_nonfinite=skip")
    assert spoilt
    weights = ckptcore.load(toy.models / "tiny_best.pth")["model_state_dict"]
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())


def test_single_steps_without_a_number_are_skipped_when_asked(toy, monkeypatch, caplog):
    poisoned(monkeypatch, 2)
    with caplog.at_level(logging.WARNING, "radfuse"):
        assert toy.train("train.on_nonfinite=skip").epochs_finished == 2
    assert sum("the step is skipped" in record.getMessage() for record in caplog.records) == 2
    assert json.loads((toy.models / "training_history.json").read_text())["skipped_steps"] == [2, 0]


def test_skipped_steps_are_counted_over_a_stop_within_the_epoch(toy, monkeypatch):
    poisoned(monkeypatch, 2)
    with monkeypatch.context() as patch:
        stop_at(patch, [4])
        with pytest.raises(TrainingInterrupted):
            toy.train("train.on_nonfinite=skip")
    toy.train("train.on_nonfinite=skip")
    assert json.loads((toy.models / "training_history.json").read_text())["skipped_steps"] == [2, 0]


def test_too_many_steps_without_a_number_stop_the_run_all_the_same(toy, monkeypatch):
    poisoned(monkeypatch, MOST_SKIPPED + 1)
    with pytest.raises(NonFiniteLoss):
        toy.train("train.on_nonfinite=skip")


def test_arrays_of_another_split_or_other_settings_are_refused(toy):
    with pytest.raises(
        StaleError, match=r"other settings than prepare\.toy; run `radfuse prepare toy` again"
    ):
        toy.train("prepare.toy.size=16")
    toy.places.splits.write_text(json.dumps({"digest": "f" * 64}))
    with pytest.raises(StaleError, match=r"belong to the split .* and the split at hand is ffffffffffff"):
        toy.train()


def test_what_is_not_prepared_is_told_with_the_command_that_makes_it(tmp_path):
    from trainable import Pipeline

    with pytest.raises(MissingStage, match="run `radfuse prepare toy` first"):
        Pipeline(tmp_path, "toy", {"size": 8}).train()


def test_splits_without_both_classes_are_refused(toy):
    from trainable import write_prepared

    from radfuse.engine.prepared import Prepared

    rows = Prepared(toy.places, "toy").rows()
    rows.loc[rows["split"] == "val", ["label:bright", "label:striped"]] = 0.0
    write_prepared(toy.root, "toy", rows, {"kind": "radiograph", "size": [8, 8]}, ["bright", "striped"])
    with pytest.raises(
        SettingsError, match="positives and negatives of at least one label in the split 'val'"
    ):
        toy.train()


@pytest.mark.parametrize("setting", ["weights", "continue_from"])
def test_files_that_are_not_there_are_told_by_their_setting(toy, setting):
    with pytest.raises(SettingsError, match=rf"train\.toy\.{setting}: expected a file, got nowhere\.pth"):
        toy.train(f"train.toy.{setting}=nowhere.pth")


def test_no_checkpoint_says_where_it_was_trained(toy):
    toy.train()
    for path in [*toy.works()[0].iterdir(), *toy.models.iterdir()]:
        if path.is_file():
            assert str(toy.root).encode() not in path.read_bytes(), path.name


def test_an_average_of_the_weights_is_kept_and_judged(tmp_path):
    pipeline = toy_pipeline(tmp_path, ema_decay=0.99)
    pipeline.train()
    found = ckptcore.load(pipeline.models / "tiny_best.pth")
    average, live = found["ema_state_dict"], found["model_state_dict"]
    assert not torch.equal(average["module.2.3.weight"], live["2.3.weight"])
    assert torch.equal(average["module.0.1.running_mean"], live["0.1.running_mean"])
    from radfuse.engine.predicting import load_trained

    trained = load_trained(pipeline.params(), pipeline.places, modality("toy"))
    assert torch.equal(trained.network.state_dict()["2.3.weight"], average["module.2.3.weight"])


def test_saves_within_epochs_follow_steps_and_minutes(toy, monkeypatch):
    seen, count = [], Run.count

    def watch(run, batch, loss):
        count(run, batch, loss)
        seen.append(run.manager.layout.save)

    monkeypatch.setattr(Run, "count", watch)
    toy.train("train.save_every_steps=2", "train.save_every_minutes=5")
    kinds = {type(rule).__name__ for rule in seen[0]}
    assert {"EverySteps", "EveryMinutes", "EveryEpochs", "Best", "OnSignal"} <= kinds
