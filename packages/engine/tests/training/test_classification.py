"""The task of telling labels."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from radfuse.engine.errors import SettingsError
from radfuse.engine.task_settings import ClassificationSettings
from radfuse.engine.training.tasks import ClassificationTask
from radfuse.engine.training.tasks.classification import HEAVIEST, MaskedBCE
from radfuse.engine.training.thresholds import best_threshold

NAN = math.nan


def rows(patients):
    return pd.DataFrame({"patient_id": patients, "sample_id": [f"i{n}" for n in range(len(patients))]})


def settings(**given):
    stages = [{"name": "all", "epochs": 1, "learning_rate": 0.1}]
    return ClassificationSettings(stages=stages, **given)


def test_labels_that_are_not_known_weigh_nothing():
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]], requires_grad=True)
    loss = MaskedBCE()(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]]))
    expected = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(0.5))) / 2
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert logits.grad[0, 1] == 0 and logits.grad[1, 0] == 0 and torch.isfinite(logits.grad).all()


def test_a_batch_without_any_known_label_has_loss_0_and_no_gradient():
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = MaskedBCE()(logits, torch.full((2, 2), NAN))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(logits.grad, torch.zeros(2, 2))


def test_class_weights_are_negatives_by_positives_within_bounds():
    table = pd.DataFrame({"label:a": [1, 0, 0, 0, NAN], "label:b": [1.0] + [0.0] * 4, "label:c": [0.0] * 5})
    table = pd.concat([table] * 20, ignore_index=True)
    table.loc[table.index > 4, "label:b"] = 0.0
    weights = ClassificationTask(["a", "b", "c"]).class_weights(None, table)
    assert weights.tolist() == [3.0, HEAVIEST, 1.0]


def test_the_auc_is_over_images_and_decisions_are_over_patients():
    patients = ["p", "p", "q", "q", "r", "s"]
    truth = np.array([1, 1, 0, 0, 1, 0], float)
    logits = np.array([2.0, -2.0, -1.0, 0.5, 0.2, -3.0])
    gathered = ClassificationTask(["a"]).validation(settings(pooling="max"))
    gathered.add(torch.tensor(logits[:4, None]), torch.tensor(truth[:4, None]), rows(patients[:4]), 0.5)
    gathered.add(torch.tensor(logits[4:, None]), torch.tensor(truth[4:, None]), rows(patients[4:]), 2.0)
    found = gathered.result()
    assert found.metrics["val_auc"] == pytest.approx(roc_auc_score(truth, logits))
    assert found.metrics["val_loss"] == pytest.approx((0.5 * 4 + 2.0 * 2) / 6)
    pooled, known = 1 / (1 + np.exp(-np.array([2.0, 0.5, 0.2, -3.0]))), np.array([1.0, 0, 1, 0])
    assert found.thresholds["a"] == pytest.approx(best_threshold(pooled, known))
    assert found.metrics["val_sensitivity"] == 1.0 and found.metrics["val_specificity"] == 0.5
    separation = pooled[[0, 2]].mean() - pooled[[1, 3]].mean()
    assert found.metrics["separation"] == pytest.approx(separation)
    assert found.details["f1"] == found.metrics["val_f1"] == pytest.approx(0.8)


def test_labels_with_one_class_alone_do_not_count_for_the_means():
    gathered = ClassificationTask(["a", "b"]).validation(settings())
    logits = torch.tensor([[2.0, 1.0], [-2.0, 1.0]])
    gathered.add(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), rows(["p", "q"]), 1.0)
    found = gathered.result()
    assert found.metrics["val_auc"] == 1.0 and set(found.details["labels"]) == {"a"}
    assert found.thresholds["b"] == 0.5


def test_a_cohort_without_labels_is_refused():
    with pytest.raises(SettingsError, match="at least one label"):
        ClassificationTask([])


def test_a_picture_shows_images_of_any_size_with_what_was_predicted(tmp_path):
    from matplotlib.image import imread

    task = ClassificationTask(["a", "b", "c", "$x"])
    truth, logits = torch.tensor([[1.0, 0, NAN, 1.0]] * 3), torch.randn(3, 4)
    for name, shape in (("flat", (3, 3, 20, 30)), ("deep", (3, 1, 6, 300, 20))):
        path = tmp_path / f"{name}.png"
        task.picture(path, torch.rand(shape), truth, logits, rows(["p", "q", "r"]), "A title")
        assert imread(path).shape[0] > 250 and imread(path).std() > 0.1
