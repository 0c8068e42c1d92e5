from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from said_and_true import RECIPE, patients

import ckptcore
from ckptcore.signals import TrainingInterrupted
from radfuse.ensemble import fitting, training
from radfuse.ensemble.features import Outputs
from radfuse.ensemble.fitting import Ensemble
from radfuse.ensemble.material import Material
from radfuse.ensemble.settings import Recipe


def material(outputs: Outputs, truth: Any, tested: int = 0) -> Material:
    """Patients of `calibration`, the last so many of `test`."""
    split = np.array(["calibration"] * (len(truth) - tested) + ["test"] * tested)
    return Material(outputs, split, ["first", "second"], truth, ("calibration",), {})


def fit(folder: Path, made: Material, recipe: Recipe = RECIPE) -> Ensemble:
    return fitting.fit(made, recipe, folder, "0" * 16)


@pytest.mark.parametrize("patient", [17, 41])
def test_flipping_own_label_changes_no_own_answer(tmp_path: Path, patient: int) -> None:
    """Heads, average and meta-learner alike: everything that is said of a patient was fitted on others."""
    outputs, truth = patients(60)
    turned = truth.copy()
    turned[patient] = 1 - turned[patient]
    before = fit(tmp_path / "before", material(outputs, truth)).crossed
    after = fit(tmp_path / "after", material(outputs, turned)).crossed
    for name in ("heads", "average", "meta"):
        own = getattr(before, name)[patient], getattr(after, name)[patient]
        assert np.array_equal(*own, equal_nan=True), name
        assert not np.array_equal(getattr(before, name), getattr(after, name), equal_nan=True)


def test_test_patients_change_nothing(tmp_path: Path) -> None:
    outputs, truth = patients(90)
    fewer = fit(tmp_path / "a", material(outputs.rows(np.arange(60)), truth[:60]))
    turned = truth.copy()
    turned[60:] = 1 - turned[60:]
    more = fit(tmp_path / "b", material(outputs, turned, tested=30))
    assert np.array_equal(fewer.crossed.meta, more.crossed.meta)
    assert np.array_equal(fewer.stack.weights, more.stack.weights)
    same = zip(fewer.trained.meta.parameters(), more.trained.meta.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)


def test_the_same_patients_give_the_same_bits(tmp_path: Path) -> None:
    made = material(*patients(60))
    first, second = fit(tmp_path / "a", made), fit(tmp_path / "b", made)
    assert np.array_equal(first.crossed.meta, second.crossed.meta)
    assert first.scores == second.scores
    assert first.trained.history["val_loss"] == second.trained.history["val_loss"]


def test_the_threads_of_torch_change_no_bit(tmp_path: Path) -> None:
    made, before = material(*patients(60)), torch.get_num_threads()
    single = fit(tmp_path / "a", made)
    torch.set_num_threads(2)
    try:
        double = fit(tmp_path / "b", made)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(single.crossed.meta, double.crossed.meta)


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = material(*patients(60))
    whole = fit(tmp_path / "whole", made)
    monkeypatch.setattr(training, "_SAVE_EVERY", 2)
    step, seen = training._Run.step, []

    def stopping(self: Any, epoch: int) -> dict[str, float]:
        seen.append(epoch)
        if len(seen) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, epoch)

    monkeypatch.setattr(training._Run, "step", stopping)
    with pytest.raises(TrainingInterrupted):
        fit(tmp_path / "stopped", made)
    again = fit(tmp_path / "stopped", made)
    assert seen == [0, 1, 2, 3, 4, 5, 6, 7], "it went on after the epoch in which the signal came"
    assert np.array_equal(again.crossed.meta, whole.crossed.meta)
    for name, tensor in whole.trained.meta.state_dict().items():
        assert torch.equal(again.trained.meta.state_dict()[name], tensor), name
    assert again.trained.history["val_auc"] == whole.trained.history["val_auc"]
    assert len(again.trained.history["train_loss"]) == RECIPE.epochs


def test_a_finished_training_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = material(*patients(60))
    first = fit(tmp_path / "a", made)
    monkeypatch.setattr(training._Run, "step", lambda *_: pytest.fail("trained again"))
    assert np.array_equal(fit(tmp_path / "a", made).crossed.meta, first.crossed.meta)
    assert ckptcore.verify(tmp_path / "a" / "latest.pth").ok


def test_modalities_are_hidden_in_training_but_never_all(tmp_path: Path) -> None:
    outputs, truth = patients(80)
    run = training._Run(_courses(outputs, truth), truth, outputs.owner, RECIPE)
    mask = torch.as_tensor(outputs.mask, dtype=torch.float32)
    kept = torch.stack([run._kept(mask, 0, epoch) * mask for epoch in range(50)])
    assert (kept.sum(dim=2) >= 1).all()
    share = 1 - kept.sum() / (50 * mask.sum())
    assert 0.1 < float(share) < RECIPE.modality_dropout + 0.02


def _courses(outputs: Outputs, truth: Any) -> list[training.Course]:
    fitted = fitting.stacking.fit(outputs, truth, RECIPE)
    said = training.Said.of(fitted.stack, outputs, fitted.evidence)
    return [training.Course(fitted.stack, said, truth, None, np.zeros(0, dtype=np.int64))]


def test_the_average_is_reported_where_the_meta_learner_adds_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, material(*patients(150))).reported == "weighted_average"


def test_the_meta_learner_is_reported_where_the_modalities_interact(tmp_path: Path) -> None:
    """The disease is there when the two say the opposite of each other, which no average can see."""
    outputs, truth = patients(400, lacking=0.0)
    random = np.random.default_rng(0)
    signs = random.choice([-2.0, 2.0], (400, 2))
    values = outputs.values.copy()
    values[:, 0], values[:, 1] = (signs + 0.3 * random.normal(size=(400, 2))).T
    truth[:, 0] = signs[:, 0] != signs[:, 1]
    made = Outputs(outputs.patients, values, outputs.mask, outputs.features, outputs.modalities)
    free = RECIPE.model_copy(
        update={"residual_decay": 0.01, "epochs": 150, "parameters": 3000, "learning_rate": 0.01}
    )
    found = fit(tmp_path, material(made, truth), free)
    assert found.reported == "meta"
    assert found.scores["meta"]["log_loss"] < found.scores["weighted_average"]["log_loss"] - 0.05


def test_the_best_single_modality_is_chosen_by_cross_fitted_answers(tmp_path: Path) -> None:
    found = fit(tmp_path, material(*patients(200)))
    assert found.best_single == "xray", "the one that shows both diseases"
    best = max(found.scores[name]["mean_auroc"] for name in ("ct", "mri", "xray"))
    assert found.scores["xray"]["mean_auroc"] == best
