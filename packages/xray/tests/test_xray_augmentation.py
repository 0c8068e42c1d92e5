"""Random changes of radiographs."""

import numpy as np
import torch

from radfuse.xray.augmentation import augmented


def picture():
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(40), indexing="ij")
    grey = ((columns / 40 + rows / 96) % 1.0).float()
    return grey.expand(3, 48, 40)


def test_the_same_generator_changes_a_picture_in_the_same_way():
    first, second, other = (augmented(picture(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_picture_keeps_its_shape_its_range_and_its_three_equal_channels():
    for seed in range(20):
        found = augmented(picture(), np.random.default_rng(seed))
        assert found.shape == (3, 48, 40) and found.min() >= 0 and found.max() <= 1
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_changes_are_small_and_never_mirror():
    # A mark on the left stays on the left.
    image = torch.zeros(3, 48, 48)
    image[:, 20:28, 8:14] = 1.0
    for seed in range(30):
        found = augmented(image, np.random.default_rng(seed))[0]
        centre = (found * (found > 0.5)).sum(dim=0) @ torch.arange(48.0) / (found * (found > 0.5)).sum()
        assert abs(float(centre) - 10.5) < 6
