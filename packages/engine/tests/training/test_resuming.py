"""A run that was stopped anywhere ends bit-identical to one that never was."""

import json
import logging
import os
import re
import signal
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
import yaml
from outcomes import assert_same, assert_same_end, result
from stopping import steps_done, stop_at
from trainable import stages, toy_pipeline

import ckptcore
from ckptcore import layouts
from ckptcore.signals import TrainingInterrupted
from radfuse.engine import progress
from radfuse.engine.errors import CannotGoOn, SettingsError
from radfuse.engine.modality import modality
from radfuse.engine.training import loop, numerics
from radfuse.engine.training.numerics import OtherNumerics
from radfuse.engine.training.run import Run

VARIANTS = {
    "plain": {},
    "ema and cosine": {"ema_decay": 0.9, "schedule": "cosine"},
    "stages": {
        "stages": [
            {"name": "head", "epochs": 1, "layers": ["head"], "learning_rate": 0.01},
            {"name": "all", "epochs": 1, "learning_rate": 0.01},
        ]
    },
}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_row_4_8_a_run_stopped_twice_within_epochs_ends_as_one_that_never_was(
    tmp_path, monkeypatch, variant, workers
):
    whole = toy_pipeline(tmp_path / "whole", **VARIANTS[variant])
    whole.train()
    torn = toy_pipeline(tmp_path / "torn", block={"workers": workers}, **VARIANTS[variant])
    check_stopped_twice(whole, torn, monkeypatch)


def check_stopped_twice(whole, torn, monkeypatch):
    stop_at(monkeypatch, [2, 9])
    for _ in range(2):
        with pytest.raises(TrainingInterrupted):
            torn.train()
    assert torn.train().epochs_finished == 2
    assert_same(result(whole), result(torn))


def test_row_4_8_a_run_that_was_stopped_ends_as_early_as_one_that_never_was(tmp_path, monkeypatch):
    whole, torn = (
        toy_pipeline(
            tmp_path / name, early_stopping=2, stages=[{"name": "all", "epochs": 9, "learning_rate": 1e-9}]
        )
        for name in ("whole", "torn")
    )
    ended = whole.train().epochs_finished
    assert ended < 9
    stop_at(monkeypatch, [2, 9, 15])
    for _ in range(3):
        with pytest.raises(TrainingInterrupted):
            torn.train()
    assert torn.train().epochs_finished == ended
    assert_same(result(whole), result(torn))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: equality on a GPU not shown")
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_row_4_8_a_run_stopped_twice_on_a_gpu_ends_as_one_that_never_was(tmp_path, monkeypatch, variant):
    block = {"device": "cuda", "precision": "auto", "deterministic": True, "workers": 2}
    whole, torn = (toy_pipeline(tmp_path / name, block=block, **VARIANTS[variant]) for name in ("one", "two"))
    whole.train()
    check_stopped_twice(whole, torn, monkeypatch)


def test_progress_begins_again_at_the_step_where_it_was_stopped(toy, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    stop_at(monkeypatch, [3])
    with pytest.raises(TrainingInterrupted):
        toy.train("train.progress=lines")
    before = shown_steps(capsys.readouterr().err)
    toy.train("train.progress=lines")
    after = shown_steps(capsys.readouterr().err)
    # A finished epoch is told by a line of its own.
    assert before == ["train 1/2 1/6", "train 1/2 2/6"]
    assert after == ["train 1/2 4/6", "train 1/2 5/6", *(f"train 2/2 {step}/6" for step in range(1, 6))]


def shown_steps(told):
    return re.findall(r"train \d/\d \d+/\d+", told)


def test_a_run_stopped_after_its_last_step_validates_and_ends_the_same(tmp_path, monkeypatch):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train()
    stop_at(monkeypatch, [6, 12])
    for _ in range(2):
        with pytest.raises(TrainingInterrupted):
            torn.train()
    torn.train()
    assert_same(result(whole), result(torn))


def test_a_kill_between_the_last_checkpoint_and_its_history_publishes_the_whole_history(toy, monkeypatch):
    from ckptcore import manager

    write = manager.write_history

    def killed(file, history):
        if len(history["val_auc"]) == 2:
            raise KeyboardInterrupt
        return write(file, history)

    with monkeypatch.context() as patch:
        patch.setattr(manager, "write_history", killed)
        with pytest.raises(KeyboardInterrupt):
            toy.train()
    assert len(json.loads((toy.works()[0] / "training_history.json").read_text())["val_auc"]) == 1
    toy.train()
    assert len(json.loads((toy.models / "training_history.json").read_text())["val_auc"]) == 2


def test_a_crash_loses_what_came_after_the_last_save_alone(tmp_path, monkeypatch):
    whole = toy_pipeline(tmp_path / "whole")
    whole.train()
    torn = toy_pipeline(tmp_path / "torn", block={"save_every_steps": 2})
    steps, count = [], Run.count

    def counted(run, batch, loss):
        count(run, batch, loss)
        steps.append(run.at.step)
        if len(steps) == 9:
            raise RuntimeError("the power went")

    monkeypatch.setattr(Run, "count", counted)
    with pytest.raises(RuntimeError, match="the power went"):
        torn.train()
    torn.train()
    assert steps[:9] == list(range(1, 10)) and steps[9:] == [9, 10, 11, 12]
    assert_same(result(whole), result(torn))


def another_cpu(patch):
    patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ANOTHER")
    return "hardware '.*' then, 'ANOTHER' now"


def another_torch(patch):
    patch.setattr(numerics, "version", lambda name: {"torch": "1.0"}.get(name) or version(name))
    return r"torch '.*' then, '1\.0' now"


def another_device(patch):
    """As if the training had begun on a GPU, which tests cannot count on."""
    stamp = numerics.Numerics.stamp
    patch.setattr(numerics.Numerics, "stamp", lambda self: {**stamp(self), "device": "another"})
    return "device 'cpu' then, 'another' now"


@pytest.mark.parametrize("changed", [another_cpu, another_torch, another_device])
def test_conditions_that_change_bits_need_a_flag(toy, monkeypatch, changed):
    stop_at(monkeypatch, [3])
    with pytest.raises(TrainingInterrupted):
        toy.train()
    said = changed(monkeypatch)
    with pytest.raises(OtherNumerics, match=rf"{said}.*--accept-other-hardware"):
        toy.train()
    assert toy.train(accept_other_hardware=True).epochs_finished == 2


@pytest.mark.parametrize("change", ["train.precision=bf16", "train.deterministic=true"])
@pytest.mark.parametrize("stopped", [True, False])
def test_a_changed_precision_is_another_training_and_never_the_old_model(toy, monkeypatch, change, stopped):
    if stopped:
        stop_at(monkeypatch, [3])
        with pytest.raises(TrainingInterrupted):
            toy.train()
    else:
        toy.train()
    (before,) = toy.works()
    outcome = toy.train(change)
    assert outcome.trained and outcome.key != before.name
    setting, wanted = change.removeprefix("train.").split("=")
    found = ckptcore.load(toy.models / "tiny_best.pth")["provenance"]["numerics"]
    assert str(found[setting]).lower() == wanted


def test_a_training_that_stopped_early_and_goes_on_is_measured_by_its_own_epochs(toy, monkeypatch, caplog):
    told = iter([0.5, 0.9, 0.8, 0.7, 0.6, 0.65, 0.75, 0.7, 0.72, 0.1])
    validate = loop.validate

    def judged(run):
        found = validate(run)
        return replace(found, metrics={**found.metrics, "val_auc": next(told)})

    monkeypatch.setattr(loop, "validate", judged)
    patient = "train.toy.early_stopping=2"
    first = toy.train(patient, f"train.toy.stages={stages(9)}")
    assert first.epochs_finished == 4
    latest = toy.works()[0] / "tiny_latest.pth"
    with caplog.at_level(logging.WARNING, "radfuse"):
        second = toy.train(patient, f"train.toy.stages={stages(30)}", f"train.toy.continue_from={latest}")
    assert second.epochs_finished == 9
    best = ckptcore.load(toy.models / "tiny_best.pth")
    assert (best.epochs_finished, best["val_auc"]) == (7, 0.75)
    assert "val_auc was best in epoch 2 (0.9000)" in caplog.text and "epoch 7 (0.7500)" in caplog.text


def test_a_checkpoint_that_lacks_what_came_later_is_gone_on_from(toy, tmp_path):
    toy.train()
    found = ckptcore.load(toy.works()[0] / "tiny_latest.pth")
    del found["loader_state"]["began"]
    older = ckptcore.save(tmp_path / "older.pth", dict(found), {"epochs_finished": 2, "global_step": 12})
    outcome = toy.train(f"train.toy.continue_from={older}", f"train.toy.stages={stages(3)}")
    assert (outcome.trained, outcome.epochs_finished) == (True, 3)


def test_row_5_6_more_epochs_go_on_from_another_run_whose_parent_is_recorded(toy, monkeypatch):
    first = toy.train()
    latest = f".work/toy/{first.key}/tiny_latest.pth"
    stages = yaml.safe_dump(
        [{"name": "all", "epochs": 4, "learning_rate": 0.01}], default_flow_style=True
    ).strip()
    done = steps_done(monkeypatch)
    second = toy.train(f"train.toy.continue_from={latest}", f"train.toy.stages={stages}")
    assert done == list(range(13, 25))
    assert second.key != first.key and second.epochs_finished == 4
    checkpoint = ckptcore.load(toy.places.work("toy") / second.key / "tiny_latest.pth")
    assert len(checkpoint["history"]["train_loss"]) == 4 and checkpoint["global_step"] == 24
    assert checkpoint["provenance"]["goes_on_from"]["run_key"] == first.key
    assert checkpoint.header.metadata["parent"]["run_key"] == first.key
    # The schedule is that of a training which was asked for as many from the start.
    clean = toy.train(f"train.toy.stages={stages}")
    whole = ckptcore.load(toy.places.work("toy") / clean.key / "tiny_latest.pth")
    assert checkpoint["history"]["learning_rate"][2:] == whole["history"]["learning_rate"][2:]
    assert checkpoint["history"]["learning_rate"][:2] != whole["history"]["learning_rate"][:2]


@pytest.mark.parametrize("name", ["tiny_epoch_1.pth", "tiny_best.pth"])
def test_row_5_4_a_file_of_the_run_is_gone_on_from_when_named(tmp_path, name):
    pipeline = toy_pipeline(tmp_path, save_every=1)
    pipeline.train()
    before = result(pipeline)
    assert pipeline.train(resume=name).trained
    assert_same(before, result(pipeline))
    with pytest.raises(SettingsError, match=r"--resume: expected a file, got nowhere\.pth"):
        pipeline.train(resume="nowhere.pth")
    assert not pipeline.train().trained


def test_a_file_of_another_run_is_gone_on_from_in_a_folder_of_its_own(toy, tmp_path, monkeypatch):
    longer = f"train.toy.stages={stages(3)}"
    first, clean = toy.train(), toy.train(longer)
    before = result(toy, toy.places.work("toy") / clean.key)
    latest = toy.places.work("toy") / first.key / "tiny_latest.pth"
    with monkeypatch.context() as patch:
        stop_at(patch, [14])
        with pytest.raises(TrainingInterrupted):
            toy.train(longer, resume=str(latest))
    done = steps_done(monkeypatch)
    other = toy.train(longer, resume=str(latest))
    # The same command goes on where it was stopped, and not at the file again.
    assert done == [15, 16, 17, 18]
    assert other.key not in (first.key, clean.key)
    assert_same(before, result(toy, toy.places.work("toy") / clean.key))
    assert not toy.train(longer).trained


def test_a_finished_run_with_another_learning_rate_is_refused_with_what_to_type(toy):
    first = toy.train()
    latest = toy.places.work("toy") / first.key / "tiny_latest.pth"
    slower = f"train.toy.stages={stages(2, rate=1e-3)}"
    for _ in range(2):
        with pytest.raises(
            SettingsError, match=r"has 2 epochs already, and train\.toy\.stages asks for 2"
        ) as told:
            toy.train(slower, f"train.toy.continue_from={latest}")
    setting = str(told.value).rsplit("--set ", 1)[1]
    assert setting.startswith("train.toy.weights=")
    assert toy.train(slower, setting).trained
    assert not toy.train().trained


def test_published_checkpoints_are_not_gone_on_from_under_dvc_which_says_what_is(toy):
    file = toy.places.saved_models("toy") / "tiny_best.pth"
    with pytest.raises(SettingsError, match=r"which is not there\. DVC removes .* name the file in \.work"):
        toy.train(f"train.toy.continue_from={file}")


def test_an_epoch_that_was_saved_by_a_process_that_was_killed_then_is_in_the_log(toy, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_tell", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            toy.train()
    toy.train()
    [log] = toy.works()[0].glob("training_????????_??????.json")
    noted = json.loads(log.read_text())["epochs"]
    assert [one["epoch"] for one in noted] == [0, 1]
    assert noted[0]["val_auc"] == json.loads((toy.models / "training_history.json").read_text())["val_auc"][0]


def test_an_epoch_that_was_saved_when_the_signal_came_is_in_the_log(toy, monkeypatch):
    draw = Run.draw
    with monkeypatch.context() as patch:
        patch.setattr(
            Run, "draw", lambda run, *told: (draw(run, *told), os.kill(os.getpid(), signal.SIGTERM))
        )
        # The rules save at the end of the epoch: the validation has one batch, and its last look at the flag
        # is the one that ends the epoch.
        patch.setattr(Run, "checkpoint", lambda run: None)
        with pytest.raises(TrainingInterrupted):
            toy.train()
    toy.train()
    [log] = toy.works()[0].glob("training_????????_??????.json")
    assert [one["epoch"] for one in json.loads(log.read_text())["epochs"]] == [0, 1]


def test_none_begins_anew_and_sets_aside_what_was_there(toy, caplog):
    first = toy.train()
    before = result(toy)
    with caplog.at_level(logging.INFO, "radfuse"):
        second = toy.train(resume="none")
    assert second.trained and second.key == first.key
    assert not [one for one in caplog.records if "nearest" in one.getMessage()]
    anew, aside = toy.works()
    assert anew.name == first.key and aside.name.startswith(f"{first.key}.")
    assert_same(before, result(toy, anew))
    assert_same(before, result(toy, aside))


PRESETS = {
    "plain": layouts.plain("val_auc", "max"),
    "resumable": layouts.resumable("val_auc"),
    "run_folder": layouts.run_folder("val_auc"),
    "saved_models": layouts.saved_models("tiny"),
    "staged": layouts.staged("val_auc"),
    "trainer_node": layouts.trainer_node(metric="val_loss"),
}


def newest(folder):
    """The checkpoint that was saved last."""
    files = (path for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".ckpt"))
    return max(files, key=lambda path: ckptcore.read_header(path).global_step)


@pytest.mark.parametrize("way", ["resume", "continue_from"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_latest_file_of_every_preset_is_gone_on_from(tmp_path, monkeypatch, preset, way):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train()
    with monkeypatch.context() as patch:
        patch.setattr(layouts, "saved_models", lambda *_, **__: PRESETS[preset])
        stop_at(patch, [8])
        with pytest.raises(TrainingInterrupted):
            torn.train()
    (work,) = torn.works()
    latest = newest(work)
    moved = tmp_path / latest.name
    moved.write_bytes(latest.read_bytes())
    other = toy_pipeline(tmp_path / "other")
    if way == "resume":
        # The same training, by its key: on with the very next step.
        other.train(resume=str(moved))
        assert_same_end(result(whole), result(other), history=preset != "staged")
    else:
        # Another training, whose epoch under way begins anew.
        done = steps_done(monkeypatch)
        outcome = other.train(f"train.toy.continue_from={moved}")
        assert (outcome.trained, outcome.epochs_finished) == (True, 2)
        assert done == list(range(7, 13))


def test_a_checkpoint_of_another_loop_is_refused_with_what_is_missing_and_what_to_type(toy, tmp_path):
    found = modality("toy")
    network = found.network(found.prepare_settings(), found.train_settings(), outputs=2)
    file = ckptcore.save(tmp_path / "theirs.pth", {"epoch": 3, "model_state_dict": network.state_dict()})
    for refused in (
        lambda: toy.train(resume=str(file)),
        lambda: toy.train(f"train.toy.continue_from={file}"),
    ):
        with pytest.raises(CannotGoOn, match=r"theirs\.pth(.|\n)*optimizer(.|\n)*train\.toy\.weights"):
            refused()
    assert toy.train(f"train.toy.weights={file}").epochs_finished == 2


def test_another_learning_rate_and_number_of_workers_go_on_from_a_run(toy, monkeypatch):
    first = toy.train()
    latest = toy.works()[0] / "tiny_latest.pth"
    longer = "train.toy.stages=" + stages(2, 1, rate=1e-3)
    constant = "train.toy.schedule=constant"
    done = steps_done(monkeypatch)
    outcome = toy.train(longer, constant, "train.workers=1", f"train.toy.continue_from={latest}")
    assert done == list(range(13, 19)) and outcome.key != first.key and outcome.epochs_finished == 3
    rates = json.loads((toy.models / "training_history.json").read_text())["learning_rate"]
    assert rates[2] == pytest.approx(1e-3) and rates[0] > 5e-3
