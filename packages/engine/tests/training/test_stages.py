"""Row 1.1: stages, and what does not learn in them."""

import json

import pytest
import torch
from torch import nn

import ckptcore
from radfuse.engine.errors import SettingsError
from radfuse.engine.training import stages

STAGES = [
    {"name": "head", "epochs": 1, "layers": ["head"], "learning_rate": 0.01},
    {"name": "top", "epochs": 1, "layers": ["body", "head"], "learning_rate": 0.01},
    {"name": "all", "epochs": 1, "learning_rate": 0.01},
]


def weights_after(pipeline, epoch):
    (work,) = pipeline.works()
    return ckptcore.load(work / f"tiny_epoch_{epoch}.pth")


@pytest.fixture
def staged(tmp_path):
    from trainable import toy_pipeline

    pipeline = toy_pipeline(tmp_path, stages=STAGES, save_every=1, keep_last=9)
    pipeline.train()
    return pipeline


def test_row_1_1_layers_outside_the_stage_do_not_change_by_a_bit(staged):
    first, second, third = (weights_after(staged, epoch)["model_state_dict"] for epoch in (1, 2, 3))
    fresh = fresh_network()
    for name, value in first.items():
        same = torch.equal(value, fresh[name])
        assert same == (not name.startswith("2.")), name
    for name, value in second.items():
        assert torch.equal(value, first[name]) == name.startswith("0."), name
    assert not any(torch.equal(third[name], second[name]) for name in third if "weight" in name)


def fresh_network():
    from toy_modality import MODALITY, ToyPrepareSettings, ToyTrainSettings

    from radfuse.engine.training.randomness import reseed

    reseed(0, "weights")
    return MODALITY.network(ToyPrepareSettings(), ToyTrainSettings(), 2).state_dict()


def test_row_1_1_learning_parameters_are_stored_by_stage_and_compared(staged, capsys):
    counts = [weights_after(staged, epoch)["stage"]["learnable_parameters"] for epoch in (1, 2, 3)]
    head, body, stem = 8 * 2 + 2, 4 * 8 * 9 + 8 + 16, 3 * 4 * 9 + 4 + 8
    assert counts == [head, head + body, head + body + stem]
    from ckptcore.cli import run

    capsys.readouterr()
    assert run(["compare", str(staged.works()[0]), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    told = {(row["stage"], row["learnable_parameters"]) for row in rows}
    assert told == {("head", counts[0]), ("top", counts[1]), ("all", counts[2])}


def network():
    return nn.ModuleDict(
        {"a": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout()), "b": nn.Linear(3, 1)}
    )


def test_row_1_1_frozen_layers_have_no_gradient_and_their_batch_norms_stay_in_evaluation():
    net = network()
    groups = {name: [net[name]] for name in net}
    plan = stages.Plan(
        (stages.Stage(name="b", epochs=1, layers=("b",), learning_rate=1.0),), tuple(groups), "constant", 1
    )
    net["a"][0].weight.grad = torch.ones(3, 2)
    assert stages.enter(plan.stages[0], plan, groups) == 4
    stages.training_mode(net, groups, ("b",))
    assert net["a"][0].weight.grad is None and not net["a"][0].weight.requires_grad
    assert not net["a"][1].training and net["a"][2].training and net["b"].training
    net["b"](net["a"](torch.randn(4, 2))).sum().backward()
    assert all(parameter.grad is None for parameter in net["a"].parameters())
    assert all(parameter.grad is not None for parameter in net["b"].parameters())


def test_norms_and_biases_do_not_decay():
    net = network()
    made, names = stages.parameter_groups({name: [net[name]] for name in net}, 0.1)
    assert names == ["a", "a", "b", "b"]
    decays = {id(p): group["weight_decay"] for group in made for p in group["params"]}
    assert [decays[id(p)] for p in net.parameters()] == [0.1, 0.0, 0.0, 0.0, 0.1, 0.0]


def test_groups_that_leave_out_or_share_a_parameter_are_refused():
    net = network()
    with pytest.raises(SettingsError, match=r"no layer group has the parameter 'b\.weight'"):
        stages.check_groups(net, {"a": [net["a"]]})
    with pytest.raises(SettingsError, match="'a' and 'b' share a parameter"):
        stages.check_groups(net, {"a": [net["a"]], "b": [net["b"], net["a"][0]]})
