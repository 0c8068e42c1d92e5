"""The task of outlining regions."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from radfuse.engine.errors import SettingsError
from radfuse.engine.task_settings import SegmentationSettings
from radfuse.engine.training.tasks import SegmentationTask
from radfuse.engine.training.tasks.segmentation import UNKNOWN, DiceCE, cut_patch, dice_by_region

REGIONS = {"whole_tumour": (1, 2, 3), "tumour_core": (1, 3), "enhancing_tumour": (3,)}
CLASSES = ("background", "core", "oedema", "enhancing")


def settings(**given):
    return SegmentationSettings(stages=[{"name": "all", "epochs": 1, "learning_rate": 0.1}], **given)


def table(count, mask="0" * 64):
    spacing = {"spacing_mm_d": 2.0, "spacing_mm_h": 1.0, "spacing_mm_w": 0.5}
    rows = pd.DataFrame({"sample_id": [f"i{n}" for n in range(count)], "mask_sha256": mask})
    return rows.assign(**spacing)


def volumes(*places):
    """(B, 2, 2, 4) class indices from dicts of place to class."""
    made = torch.zeros(len(places), 2, 2, 4, dtype=torch.long)
    for volume, inside in zip(made, places, strict=True):
        for place, label in inside.items():
            volume.view(-1)[place] = label
    return made


def test_dice_by_region_follows_the_convention_of_brats():
    predicted = volumes({0: 1, 1: 2, 2: 3}, {}, {0: 3}, {})
    truth = volumes({0: 1, 1: 1, 3: 3}, {}, {}, {0: 2})
    found = dice_by_region(predicted, truth, REGIONS)
    # Whole: {0,1,2} and {0,1,3}; core: {0,2} and {0,1,3}; enhancing: {2} and {3}.
    assert found[0] == pytest.approx([4 / 6, 2 / 5, 0.0])
    assert found[1].tolist() == [1.0, 1.0, 1.0]
    assert found[2].tolist() == [0.0, 0.0, 0.0]
    assert found[3].tolist() == [0.0, 1.0, 1.0]


def test_volumes_are_in_cubic_millimetres_and_unknown_truth_stays_unknown():
    task = SegmentationTask(CLASSES, REGIONS)
    predicted = volumes({0: 1, 1: 2, 2: 3}, {0: 1})
    logits = nn.functional.one_hot(predicted, 4).movedim(-1, 1).float()
    truth = volumes({0: 1, 5: 2}, {})
    truth[1] = UNKNOWN
    found = task.answers(logits, truth, table(2))
    assert found["volume_mm3:whole_tumour"].tolist() == [3.0, 1.0]
    assert found["volume_mm3:tumour_core"].tolist() == [2.0, 1.0]
    assert found["true_volume_mm3:whole_tumour"][0] == 2.0 and np.isnan(
        found["true_volume_mm3:whole_tumour"][1]
    )
    assert found["dice:whole_tumour"][0] == pytest.approx(2 / 5) and np.isnan(found["dice:tumour_core"][1])


@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.integers(0, 99),
    st.booleans(),
)
def test_a_patch_has_its_size_and_its_mask_lies_on_it(shape, size, seed, foreground):
    random = np.random.default_rng(seed)
    mask = (random.random(shape) < 0.1).astype(np.uint8)
    array = np.stack([mask + 1.0, mask * 5.0]).astype(np.float16)
    patch, part = cut_patch(array, mask, size, float(foreground), np.random.default_rng(seed))
    assert patch.shape == (2, *size) and part.shape == tuple(size)
    assert np.array_equal(patch[1], part * 5)
    inside = patch[0] > 0
    assert inside.sum() == np.prod(np.minimum(shape, size))
    if foreground and mask.any():
        assert part.any()


def test_windows_give_what_the_whole_volume_gives():
    torch.manual_seed(0)
    network = nn.Conv3d(2, 4, 1)
    image = torch.randn(1, 2, 20, 17, 9)
    task = SegmentationTask(CLASSES, REGIONS)
    with torch.no_grad():
        for size in ((8, 8, 8), (16, 32, 8), (32, 32, 32)):
            found = task.infer(network, image, settings(patch_size=size, overlap=0.5))
            assert torch.allclose(found, network(image), atol=1e-5)


def test_a_perfect_answer_has_almost_no_loss_and_a_wrong_one_has():
    truth = volumes({0: 1, 1: 2, 2: 3}, {4: 1})
    right = 20.0 * nn.functional.one_hot(truth, 4).movedim(-1, 1).float()
    assert float(DiceCE()(right, truth)) < 0.01
    assert float(DiceCE()(right.flip(1), truth)) > 1


def test_class_weights_lift_rare_classes():
    class Prepared:
        def mask(self, name):
            return np.array([0] * 96 + [1] * 4, dtype=np.uint8).reshape(4, 5, 5)

    weights = SegmentationTask(("background", "a", "b"), {"a": (1,)}).class_weights(Prepared(), table(1))
    assert weights.mean() == pytest.approx(1.0) and weights[1] / weights[0] == pytest.approx(np.sqrt(24))
    assert weights[2] == weights[1]


def test_volumes_to_learn_from_need_a_segmentation():
    task = SegmentationTask(CLASSES, REGIONS)
    task.check(table(2), table(1))
    with pytest.raises(
        SettingsError, match=r"every volume of the split 'val', got none for 1 of 1, the first of them i0"
    ):
        task.check(table(2), table(1, mask=""))


@pytest.mark.parametrize("regions", [{}, {"all": (1, 4)}, {"none": (0,)}])
def test_regions_are_made_of_classes_that_there_are(regions):
    with pytest.raises(SettingsError):
        SegmentationTask(CLASSES, regions)


def test_a_picture_shows_truth_and_prediction_side_by_side(tmp_path):
    from matplotlib.image import imread

    truth = torch.zeros(1, 6, 12, 10, dtype=torch.long)
    truth[0, 2:5, 3:8, 3:8] = 2
    path = tmp_path / "epoch_000_batch_001.png"
    logits = nn.functional.one_hot(truth, 4).movedim(-1, 1).float()
    SegmentationTask(CLASSES, REGIONS).picture(
        path, torch.rand(1, 4, 6, 12, 10), truth, logits, table(1), "A title"
    )
    picture = imread(path)[..., :3]
    middle = picture[140:160]
    # Grey on the left, coloured where the class is in the other two.
    spread = [
        float((part.max(axis=-1) - part.min(axis=-1)).max()) for part in np.array_split(middle, 3, axis=1)
    ]
    assert spread[0] < 0.05 < 0.15 < min(spread[1:])
