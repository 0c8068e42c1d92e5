"""Windows cover a volume, whatever its size, and their answers join without seams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfuse.serving.sliding_window import gaussian, label_map, rounded_up, windows

sizes = st.tuples(*[st.integers(1, 30)] * 3)
extents = st.tuples(*[st.integers(1, 12)] * 3)


@given(sizes, extents, st.floats(0, 0.99))
def test_windows_cover_every_voxel_and_stay_inside(size, window, overlap):
    size = tuple(map(max, size, window))
    covered = np.zeros(size, int)
    for box in windows(size, window, overlap):
        assert covered[box].shape == window
        covered[box] += 1
    assert covered.min() >= 1


def nearest_class(batch):
    """Three classes: 0, 1, 2 by the voxel's own value."""
    scores = -np.abs(batch[:, :1] - np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1, 1))
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


@given(sizes, st.floats(0, 0.9))
def test_a_network_that_looks_at_single_voxels_is_not_disturbed_by_windows(size, overlap):
    classes = np.random.default_rng(0).integers(0, 3, size)
    found = label_map(classes[None].astype(np.float16), nearest_class, (8, 8, 8), overlap)
    assert found.dtype == np.uint8
    assert (found == classes).all()


def test_a_smaller_volume_lies_in_the_middle_of_its_window():
    seen = []

    def network(batch):
        seen.append(batch)
        return nearest_class(batch)

    label_map(np.ones((1, 3, 8, 5), np.float32), network, (8, 8, 8), 0.5)
    assert len(seen) == 1
    assert seen[0].shape == (1, 1, 8, 8, 8)
    assert seen[0].dtype == np.float32
    assert seen[0][0, 0, 2:5, :, 1:6].all()
    assert seen[0].sum() == 3 * 8 * 5


def test_certainty_in_the_middle_of_a_window_counts_more_than_at_its_edge():
    def network(batch):
        """Sure of class 1 except near the window's edge, where it is as sure of class 0."""
        answer = np.zeros((1, 2, *batch.shape[2:]), np.float32)
        edge = np.minimum(np.arange(8), np.arange(8)[::-1]) < 2
        answer[:, 0, ..., edge], answer[:, 1, ..., edge] = 0.9, 0.1
        answer[:, 0, ..., ~edge], answer[:, 1, ..., ~edge] = 0.1, 0.9
        return answer

    found = label_map(np.zeros((1, 8, 8, 16), np.float32), network, (8, 8, 8), 0.5)
    assert (found[4, 4, 2:14] == 1).all()


def test_no_probability_of_0_spoils_the_sum():
    def network(batch):
        answer = np.zeros((1, 2, *batch.shape[2:]), np.float32)
        answer[:, 1] = 1
        return answer

    assert (label_map(np.zeros((1, 9, 9, 9), np.float32), network, (8, 8, 8), 0.5) == 1).all()


def test_weights_are_highest_in_the_middle_and_nowhere_0():
    weights = gaussian((9, 8, 7))
    assert weights.shape == (9, 8, 7)
    assert weights.min() > 0
    assert weights[4, 3:5, 3] == pytest.approx(weights.max())


def test_lengths_are_rounded_up_to_steps():
    assert rounded_up((1, 16, 17, 155)) == (16, 16, 32, 160)


def test_label_maps_equal_those_of_monai_over_logits():
    monai = pytest.importorskip("monai.inferers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(2, 4, 5, padding=2)

    def probabilities(batch):
        return convolution(torch.from_numpy(batch)).softmax(1).numpy()

    for size in ((20, 33, 18), (7, 40, 16), (16, 16, 16)):
        for overlap in (0.25, 0.5):
            volume = torch.randn(1, 2, *size)
            with torch.inference_mode():
                logits = monai.sliding_window_inference(
                    volume, (16, 16, 16), 1, convolution, overlap, mode="gaussian"
                )
                found = label_map(volume[0].numpy(), probabilities, (16, 16, 16), overlap)
            assert (found == logits[0].argmax(0).numpy()).mean() > 0.9999
