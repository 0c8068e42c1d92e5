"""A run that was stopped anywhere ends bit-identical to one that never was."""

import pytest
import yaml
from outcomes import assert_same, result
from stopping import stop_at
from trainable import toy_pipeline

import ckptcore
from ckptcore.signals import TrainingInterrupted
from radfuse.engine.errors import SettingsError
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
def test_a_run_stopped_twice_within_epochs_ends_as_one_that_never_was(
    tmp_path, monkeypatch, variant, workers
):
    whole = toy_pipeline(tmp_path / "whole", **VARIANTS[variant])
    whole.train()
    torn = toy_pipeline(tmp_path / "torn", block={"workers": workers}, **VARIANTS[variant])
    stop_at(monkeypatch, [2, 9])
    for _ in range(2):
        with pytest.raises(TrainingInterrupted):
            torn.train()
    assert torn.train().epochs_finished == 2
    assert_same(result(whole), result(torn))


def test_a_run_stopped_after_its_last_step_validates_and_ends_the_same(tmp_path, monkeypatch):
    whole, torn = (toy_pipeline(tmp_path / name) for name in ("whole", "torn"))
    whole.train()
    stop_at(monkeypatch, [6, 12])
    for _ in range(2):
        with pytest.raises(TrainingInterrupted):
            torn.train()
    torn.train()
    assert_same(result(whole), result(torn))


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


def test_conditions_that_change_bits_need_a_flag(toy, monkeypatch):
    stop_at(monkeypatch, [3])
    with pytest.raises(TrainingInterrupted):
        toy.train()
    with pytest.raises(OtherNumerics, match=r"precision '32' then, 'bf16' now.*--accept-other-hardware"):
        toy.train("train.precision=bf16")
    assert toy.train("train.precision=bf16", accept_other_hardware=True).epochs_finished == 2


def test_more_epochs_go_on_from_another_run_whose_parent_is_recorded(toy):
    first = toy.train()
    latest = f".work/toy/{first.key}/tiny_latest.pth"
    stages = yaml.safe_dump(
        [{"name": "all", "epochs": 4, "learning_rate": 0.01}], default_flow_style=True
    ).strip()
    second = toy.train(f"train.toy.continue_from={latest}", f"train.toy.stages={stages}")
    assert second.key != first.key and second.epochs_finished == 4
    checkpoint = ckptcore.load(toy.places.work("toy") / second.key / "tiny_latest.pth")
    assert len(checkpoint["history"]["train_loss"]) == 4 and checkpoint["global_step"] == 24
    assert checkpoint["provenance"]["goes_on_from"]["run_key"] == first.key
    assert checkpoint.header.metadata["parent"]["run_key"] == first.key


def test_a_file_of_the_run_is_gone_on_from_when_named(tmp_path):
    pipeline = toy_pipeline(tmp_path, save_every=1)
    pipeline.train()
    before = result(pipeline)
    assert pipeline.train(resume="tiny_epoch_1.pth").trained
    assert_same(before, result(pipeline))
    with pytest.raises(SettingsError, match=r"--resume: expected a file, got nowhere\.pth"):
        pipeline.train(resume="nowhere.pth")


def test_none_begins_anew_and_sets_aside_what_was_there(toy):
    first = toy.train()
    before = result(toy)
    second = toy.train(resume="none")
    assert second.trained and second.key == first.key
    assert_same(before, result(toy)[:3]) if toy.works()[-1].name == first.key else None
    assert len(toy.works()) == 2 and all(work.name.startswith(first.key) for work in toy.works())
