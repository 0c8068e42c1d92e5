"""The ResNet-50: its size, its weights, its place in a pipeline."""

import logging

import pytest
import torch
from torch.nn import functional

import ckptcore
from radfuse.engine.errors import SettingsError
from radfuse.engine.training.resnets import layer_groups
from radfuse.engine.training.stages import Plan, check_groups, enter
from radfuse.engine.training.weights import load_pretrained
from radfuse.engine.validation import validated
from radfuse.xray import MODALITY
from radfuse.xray.network import Normalise, resnet50
from radfuse.xray.settings import XrayPrepareSettings, XrayTrainSettings

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet50(14, 0.4).eval()


def test_row_1_9_one_output_has_24_557_633_parameters_1_049_601_in_the_head():
    one = resnet50(1, 0.4)
    assert count(one) == 24_557_633 and count(one.fc) == 1_049_601
    kinds = [type(layer).__name__ for layer in one.fc]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear"] and one.fc[2].p == 0.4


def test_row_4_3_fourteen_labels_have_24_564_302_parameters_and_take_224_by_224_by_3(network):
    assert count(network) == 24_564_302
    prepare, train = XrayPrepareSettings(), XrayTrainSettings()
    assert MODALITY.preprocessing(prepare) == {"kind": "radiograph", "size": [224, 224]}
    task = MODALITY.task(prepare, FINDINGS)
    assert task.outputs == 14 and train.dropout == 0.4
    with torch.no_grad():
        assert network(torch.rand(1, 3, 224, 224)).shape == (1, 14)


def test_row_4_3_a_checkpoint_of_the_weights_takes_about_100_mb(network, tmp_path):
    path = tmp_path / "resnet50_best.pth"
    ckptcore.save(path, {"model_state_dict": network.state_dict()})
    assert 95e6 < path.stat().st_size < 105e6


def test_row_1_1_layers_by_stage_are_counted_and_not_copied(network):
    groups = layer_groups(network)
    check_groups(network, groups)
    stages = [
        {"name": "head", "epochs": 5, "layers": ["head"], "learning_rate": 1e-3},
        {"name": "layer4", "epochs": 7, "layers": ["layer4", "head"], "learning_rate": 1e-4},
        {"name": "layer3", "epochs": 28, "layers": ["layer3", "layer4", "head"], "learning_rate": 1e-5},
    ]
    plan = Plan.of(XrayTrainSettings(stages=stages), tuple(groups), 10)
    counts = [enter(stage, plan, groups) for stage in plan.stages]
    assert counts == [1_056_270, 1_056_270 + 14_964_736, 1_056_270 + 14_964_736 + 7_098_368]
    assert {
        name for name, p in network.named_parameters() if p.requires_grad and name.startswith("layer2")
    } == set()


def torchvision_features(weights, image):
    """(B, 2048) as torchvision's ResNet-50 computes them, by the names of its weights.

    Written out from the network's description, so that no other library is needed: v1.5, with the stride in
    the 3x3.
    """

    def norm(x, name):
        stats = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *stats)

    def block(x, name, stride):
        y = torch.relu(norm(functional.conv2d(x, weights[f"{name}.conv1.weight"]), f"{name}.bn1"))
        y = torch.relu(
            norm(
                functional.conv2d(y, weights[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2"
            )
        )
        y = norm(functional.conv2d(y, weights[f"{name}.conv3.weight"]), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in weights:
            x = norm(
                functional.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=stride),
                f"{name}.downsample.1",
            )
        return torch.relu(x + y)

    x = torch.relu(norm(functional.conv2d(image, weights["conv1.weight"], stride=2, padding=3), "bn1"))
    x = functional.max_pool2d(x, 3, 2, 1)
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for index in range(blocks):
            x = block(x, f"layer{layer}.{index}", 2 if layer > 1 and index == 0 else 1)
    return x.mean(dim=(2, 3))


def imagenet_like(prefix=""):
    """A state dict as torchvision and timm write it, with other weights than a fresh network's."""
    torch.manual_seed(1)
    trunk = {
        name: value for name, value in resnet50(14, 0.4).state_dict().items() if not name.startswith("fc.")
    }
    for name, value in trunk.items():
        if value.is_floating_point():
            trunk[name] = (
                value.abs() * 0.5 + 0.1 if "running_var" in name else value + 0.02 * torch.randn_like(value)
            )
    trunk |= {"fc.weight": torch.randn(1000, 2048), "fc.bias": torch.randn(1000)}
    return {prefix + name: value for name, value in trunk.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_weights_of_imagenet_give_the_features_that_torchvision_gives(tmp_path, caplog, prefix):
    path = tmp_path / "resnet50.pth"
    torch.save(imagenet_like(prefix), path)
    network = resnet50(14, 0.4)
    head = network.fc[0].weight.clone()
    with caplog.at_level(logging.INFO, "radfuse"):
        report = load_pretrained(network, MODALITY, path, "train.xray.weights")
    assert set(report["missing"]) == {"fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"}
    assert set(report["unexpected"]) == {"fc.weight", "fc.bias"} and not report["other_shape"]
    assert torch.equal(network.fc[0].weight, head)
    assert "resnet50.pth: 4 weights missing: fc.0.weight" in caplog.text
    image, features = torch.rand(2, 3, 64, 64), []
    network.fc.register_forward_hook(lambda module, given, made: features.append(given[0]))
    with torch.no_grad():
        network.eval()(image)
        expected = torchvision_features(imagenet_like(), image)
    assert torch.allclose(features[0], expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"features.weight": torch.zeros(3)}, path)
    with pytest.raises(
        SettingsError, match=r"train\.xray\.weights: other\.pth has none of the network's weights"
    ):
        load_pretrained(resnet50(1, 0.0), MODALITY, path, "train.xray.weights")


def test_a_file_that_asks_for_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    path = tmp_path / "evil.pth"
    torch.save({"conv1.weight": Evil()}, path)
    with pytest.raises(SettingsError, match=r"evil\.pth cannot be used"):
        load_pretrained(resnet50(1, 0.0), MODALITY, path, "train.xray.weights")


def test_the_graph_normalises_as_imagenet_networks_expect():
    grey = torch.full((1, 3, 4, 4), 0.5)
    found = Normalise()(grey)
    assert torch.allclose(found[0, :, 0, 0], torch.tensor([0.0655, 0.1964, 0.4178]), atol=1e-4)
    assert not list(Normalise().parameters())


def test_a_batch_of_one_is_refused_by_its_setting():
    with pytest.raises(SettingsError, match=r"train\.xray\.batch_size: expected at least 2.*got 1"):
        validated(XrayTrainSettings, {"batch_size": 1}, "params.yaml", ("train", "xray"))
    assert XrayTrainSettings(batch_size=2).batch_size == 2
