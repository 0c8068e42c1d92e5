"""The 3D ResNet-18 and its input."""

import numpy as np
import pytest
import torch

from radfuse.ct import MODALITY
from radfuse.ct.augmentation import augmented
from radfuse.ct.network import resnet18
from radfuse.ct.settings import CtPrepareSettings, CtTrainSettings
from radfuse.engine.errors import SettingsError
from radfuse.engine.training.resnets import layer_groups
from radfuse.engine.training.stages import check_groups
from radfuse.engine.validation import validated


def test_row_4_4_a_patch_of_64_voxels_and_about_33_million_parameters():
    prepare, train = CtPrepareSettings(), CtTrainSettings()
    assert MODALITY.preprocessing(prepare)["size"] == [64, 64, 64]
    task = MODALITY.task(prepare, ["malignant"])
    network = MODALITY.network(prepare, train, task.outputs).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 33_161_409
    assert network.conv1.stride == (1, 1, 1)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 64, 64, 64)).shape == (1, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stride_and_dropout_are_settings_and_every_parameter_has_a_layer_group(dropout):
    network = resnet18(1, first_stride=2, dropout=dropout)
    assert network.conv1.stride == (2, 2, 2)
    check_groups(network, layer_groups(network))
    assert list(layer_groups(network)) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]


@pytest.mark.parametrize(("window", "low", "high"), [((-1000.0, 400.0), -1000.0, 400.0), (None, 0.0, 255.0)])
def test_the_window_becomes_minus_one_to_one(window, low, high):
    scale = MODALITY.normalisation(CtPrepareSettings(window_hu=window, spacing_mm=None))
    found = scale(torch.tensor([low, (low + high) / 2, high]).view(1, 1, 1, 1, 3))
    assert found.flatten().tolist() == [-1.0, 0.0, 1.0]
    assert scale.half().training is True  # nn.Module's own `half` is what it was


def test_a_patch_is_mirrored_turned_and_moved_by_at_most_so_many_voxels():
    patch = torch.full((1, 9, 12, 12), -500.0)
    patch[0, 4, 6, 6] = 100.0
    places = set()
    for seed in range(60):
        found = augmented(patch, np.random.default_rng(seed), shift_voxels=2)
        assert found.shape == patch.shape and set(found.unique().tolist()) == {-500.0, 100.0}
        depth, row, column = (int(i) for i in np.argwhere(found[0].numpy() == 100.0)[0])
        assert abs(depth - 4) <= 2 and 3 <= row <= 8 and 3 <= column <= 8
        places.add((depth, row, column))
    assert len(places) > 20
    assert torch.equal(
        augmented(patch, np.random.default_rng(3), 2), augmented(patch, np.random.default_rng(3), 2)
    )


def test_patches_that_are_not_square_are_not_turned():
    patch = torch.rand(1, 4, 6, 8)
    for seed in range(10):
        assert augmented(patch, np.random.default_rng(seed), 0).shape == (1, 4, 6, 8)


def test_a_batch_of_one_is_refused_by_its_setting():
    with pytest.raises(SettingsError, match=r"train\.ct\.batch_size: expected at least 2.*got 1"):
        validated(CtTrainSettings, {"batch_size": 1}, "params.yaml", ("train", "ct"))
    assert CtTrainSettings(batch_size=2).batch_size == 2
