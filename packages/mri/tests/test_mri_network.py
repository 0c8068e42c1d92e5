"""The 3D U-Net and what it outlines."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from radfuse.engine.errors import SettingsError
from radfuse.engine.training.stages import check_groups
from radfuse.engine.validation import validated
from radfuse.mri import MODALITY
from radfuse.mri.augmentation import augmented
from radfuse.mri.network import layer_groups, unet
from radfuse.mri.settings import MriPrepareSettings, MriTrainSettings

BRATS = ["background", "core", "oedema", "enhancing"]


def test_row_4_5_four_sequences_four_classes_and_about_19_million_parameters():
    prepare, train = MriPrepareSettings(), MriTrainSettings()
    task = MODALITY.task(prepare, BRATS)
    network = MODALITY.network(prepare, train, task.outputs).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 19_225_897
    with torch.no_grad():
        assert network(torch.zeros(1, 4, 32, 16, 48)).shape == (1, 4, 32, 16, 48)


def test_layer_groups_go_from_input_to_output_and_leave_nothing_out():
    network = unet(1, 3, 0.1)
    groups = layer_groups(network)
    check_groups(network, groups)
    assert list(groups) == [
        *("encoder1", "encoder2", "encoder3", "encoder4", "bottom"),
        *("decoder4", "decoder3", "decoder2", "decoder1"),
    ]
    (first,), (last,) = groups["encoder1"], groups["decoder1"]
    assert next(first.parameters()).shape[:2] == (32, 1) and list(last.parameters())[-1].shape == (3,)


def test_classes_of_brats_are_reported_as_its_nested_regions():
    task = MODALITY.task(MriPrepareSettings(), BRATS)
    assert task.regions == {"whole_tumour": (1, 2, 3), "tumour_core": (1, 3), "enhancing_tumour": (3,)}


def test_other_classes_are_regions_by_themselves_unless_told_otherwise():
    prepare = MriPrepareSettings(sequences=("mr",))
    assert MODALITY.task(prepare, ["background", "anterior", "posterior"]).regions == {
        "anterior": (1,),
        "posterior": (2,),
    }
    prepare = MriPrepareSettings(sequences=("mr",), regions={"hippocampus": (1, 2)})
    assert MODALITY.task(prepare, ["background", "anterior", "posterior"]).regions == {"hippocampus": (1, 2)}


def test_a_volume_and_its_mask_are_mirrored_together_and_zero_stays_zero():
    image = torch.randn(2, 4, 6, 8)
    image[:, :, :, :2] = 0
    mask = (image[0] > 0.5).long()
    for seed in range(16):
        changed, outlined = augmented(image, mask, np.random.default_rng(seed))
        assert outlined.sum() == mask.sum() and (changed == 0).sum() == (image == 0).sum()
        # The brightest voxels stay the outlined ones.
        assert changed[0][outlined == 1].min() > changed[0][outlined == 0].max()
    assert augmented(image, None, np.random.default_rng(0))[1] is None


@pytest.mark.slow
def test_row_4_5_a_whole_volume_of_240_by_240_by_155_is_segmented_in_6_gb(real_data):
    import nibabel

    case = next(path for path in (real_data / "brats18_full").iterdir() if path.is_dir())
    volumes = [
        nibabel.load(next(case.glob(f"*_{name}.nii*"))).get_fdata(dtype=np.float32)
        for name in MriPrepareSettings().sequences
    ]
    image = torch.from_numpy(np.stack([np.transpose(volume, (2, 1, 0)) for volume in volumes]))[None]
    assert image.shape == (1, 4, 155, 240, 240)
    network = unet(4, 4, 0.0).eval()
    Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
    with torch.inference_mode():
        logits = MODALITY.task(MriPrepareSettings(), BRATS).infer(network, image, MriTrainSettings())
    assert logits.shape == (1, 4, 155, 240, 240)
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert int(peak[1]) * 1024 < 6e9


@pytest.mark.parametrize("size", [(16, 16, 16), (32, 32, 16), (96, 100, 96)])
def test_a_patch_that_cannot_be_halved_four_times_is_refused_by_its_setting(size):
    data = {"patch_size": list(size)}
    with pytest.raises(SettingsError, match=r"train\.mri\.patch_size: expected multiples of 16, at least 32"):
        validated(MriTrainSettings, data, "params.yaml", ("train", "mri"))


def test_the_smallest_patch_that_is_allowed_can_be_learnt_from():
    settings = MriTrainSettings(patch_size=(32, 32, 32))
    assert unet(1, 2, 0.0).train()(torch.rand(1, 1, *settings.patch_size)).shape == (1, 2, 32, 32, 32)
