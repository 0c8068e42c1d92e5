"""Volumes move between grids without losing their place in the patient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from radfuse.serving.images.volume import (
    Volume,
    crop_or_pad,
    index_of,
    on_grid,
    patch_at,
    reorient,
    resample,
    same_grid,
)

CANONICAL = np.array([[0, 0, 1.0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


@st.composite
def volumes(draw):
    """Any shape, spacing, axis order, direction and small tilt."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    spacing = draw(st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3))
    axes = np.eye(3)[:, draw(st.permutations([0, 1, 2]))] * draw(
        st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)
    )
    tilt = draw(st.sampled_from([0.0, 0.1, 0.3]))
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return Volume(np.arange(np.prod(shape)).reshape(shape), affine)


@given(volumes())
def test_reorienting_moves_no_voxel_in_the_patient(volume):
    turned = reorient(volume)
    for index in np.ndindex(volume.shape):
        point = (volume.affine @ [*index, 1])[:3]
        found = np.rint(index_of(turned, point)).astype(int)
        assert turned.voxels[tuple(found)] == volume.voxels[index]
        assert turned.affine @ [*found, 1] == pytest.approx([*point, 1])


@given(volumes())
def test_reoriented_axes_run_to_the_head_the_back_and_the_left(volume):
    turned = reorient(volume)
    for axis, patient in enumerate((2, 1, 0)):
        column = turned.affine[:3, axis]
        assert column[patient] > 0
        assert abs(column[patient]) == pytest.approx(np.abs(column).max())
    assert same_grid(reorient(turned), turned)


@given(volumes())
def test_a_volume_on_its_own_grid_is_itself(volume):
    for nearest in (True, False):
        assert on_grid(volume, volume.affine, volume.shape, fill=-1, nearest=nearest) == pytest.approx(
            volume.voxels
        )


@given(volumes())
def test_a_reoriented_volume_comes_back_by_its_affine(volume):
    turned = reorient(volume)
    assert (on_grid(turned, volume.affine, volume.shape, nearest=True) == volume.voxels).all()


@given(volumes(), st.tuples(*[st.integers(1, 9)] * 3))
def test_cropping_and_padding_keep_the_place_of_what_stays(volume, size):
    cropped = crop_or_pad(volume, size, fill=-7)
    assert cropped.shape == size
    for index in np.ndindex(cropped.shape):
        back = np.rint(index_of(volume, (cropped.affine @ [*index, 1])[:3])).astype(int)
        inside = (back >= 0).all() and (back < volume.shape).all()
        assert cropped.voxels[index] == (volume.voxels[tuple(back)] if inside else -7)


def test_resampling_keeps_the_middle_and_a_straight_ramp():
    ramp = np.broadcast_to(np.arange(12.0), (8, 10, 12)).copy()
    volume = Volume(ramp, CANONICAL)
    finer = resample(volume, (1, 1, 0.5))
    assert finer.shape == (8, 10, 24)
    assert finer.spacing_mm == pytest.approx((1, 1, 0.5))
    place = [(finer.affine @ [0, 0, w, 1])[0] for w in range(1, 23)]
    assert finer.voxels[3, 4, 1:23] == pytest.approx(place, abs=1e-5)
    middle = lambda each: each.affine @ [*((np.array(each.shape) - 1) / 2), 1]  # noqa: E731
    assert middle(finer) == pytest.approx(middle(volume))


def test_resampling_to_its_own_spacing_changes_nothing():
    volume = Volume(np.random.default_rng(0).normal(size=(5, 6, 7)), CANONICAL)
    assert np.array_equal(resample(volume, (1, 1, 1)).voxels, volume.voxels.astype(np.float32))


def test_coarser_grids_do_not_alias():
    stripes = np.zeros((4, 4, 64), np.float32)
    stripes[..., ::2] = 100  # finer than a spacing of 4 can show: it must become its mean
    coarse = resample(Volume(stripes, CANONICAL), (1, 1, 4))
    assert coarse.voxels[..., 1:-1] == pytest.approx(50, abs=5)
    unfiltered = ndimage.zoom(stripes, (1, 1, 0.25), order=1)
    assert np.abs(unfiltered - 50).max() > 20


def test_labels_stay_labels_when_they_are_resampled():
    labels = np.random.default_rng(0).integers(0, 4, (6, 6, 6)).astype(np.uint8)
    finer = resample(Volume(labels, CANONICAL), (0.5, 0.7, 1.3), nearest=True)
    assert finer.voxels.dtype == np.uint8
    assert set(np.unique(finer.voxels)) <= {0, 1, 2, 3}


@given(volumes(), st.tuples(*[st.floats(-0.4, 0.4)] * 3))
def test_a_patch_has_its_point_in_the_middle(volume, shift):
    middle = (np.array(volume.shape) - 1) / 2 + np.array(shift) * (np.array(volume.shape) - 1)
    point = (volume.affine @ [*middle, 1])[:3]
    patch = patch_at(volume, point, (5, 4, 3), (1.0, 2.0, 0.5), fill=-1000)
    assert patch.affine @ [2, 1.5, 1, 1] == pytest.approx([*point, 1])
    assert patch.affine[:3, :3] == pytest.approx(CANONICAL[:3, :3] * (1.0, 2.0, 0.5))


def test_a_patch_shows_the_same_place_whatever_the_scans_orientation():
    place = np.mgrid[:20, :24, :28].astype(np.float32)
    field = 3 * place[0] - 2 * place[1] + place[2]
    straight = Volume(field, CANONICAL)
    turned = Volume(
        np.ascontiguousarray(field.transpose(2, 0, 1)[::-1]),
        np.array([[-1.0, 0, 0, 27], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
    )
    point = (14.3, 11.2, 9.7)
    first = patch_at(straight, point, (6, 6, 6), (1.5, 0.8, 1.0), 0)
    second = patch_at(turned, point, (6, 6, 6), (1.5, 0.8, 1.0), 0)
    assert first.voxels == pytest.approx(second.voxels, abs=1e-3)
    z, y, x = 2, 3, 4
    at = first.affine @ [z, y, x, 1]
    assert first.voxels[z, y, x] == pytest.approx(3 * at[2] - 2 * at[1] + at[0], abs=1e-3)


def test_what_lies_outside_the_scan_is_filled():
    volume = Volume(np.full((4, 4, 4), 50, np.int16), CANONICAL)
    patch = patch_at(volume, (0, 0, 0), (9, 9, 9), (1, 1, 1), fill=-1000)
    assert patch.voxels[4, 4, 4] == 50
    assert patch.voxels[:4].max() == -1000
    assert patch.voxels[8, 8, 8] == -1000
    own = patch_at(volume, (0, 0, 0), (9, 9, 9), None, fill=-1000)
    assert own.voxels.dtype == np.int16
    assert (own.voxels == patch.voxels).all()


@pytest.mark.parametrize("point", [(-1, 0, 0), (0, 4, 0), (0, 0, 1e6)])
def test_a_point_outside_the_scan_is_an_error(point):
    with pytest.raises(ValueError, match="outside the volume"):
        patch_at(Volume(np.zeros((4, 4, 4)), CANONICAL), point, (3, 3, 3), None, 0)


def test_a_patch_works_on_no_more_of_the_scan_than_it_needs():
    huge = np.broadcast_to(np.int16(7), (4000, 4000, 4000))  # 128 GB if it were copied
    patch = patch_at(Volume(huge, CANONICAL), (2000, 2000, 2000), (8, 8, 8), (2, 2, 2), 0)
    assert patch.voxels == pytest.approx(7)


def test_grids_that_differ_are_told_apart():
    volume = Volume(np.zeros((4, 5, 6)), CANONICAL)
    moved = CANONICAL.copy()
    moved[0, 3] = 0.5
    nearly = CANONICAL.copy()
    nearly[0, 3] = 0.001
    assert not same_grid(volume, Volume(np.zeros((4, 5, 6)), moved))
    assert same_grid(volume, Volume(np.zeros((4, 5, 6)), nearly))
    assert not same_grid(volume, Volume(np.zeros((4, 5, 7)), CANONICAL))
    assert not same_grid(volume, Volume(np.zeros((4, 5, 6)), CANONICAL * [1.1, 1, 1, 1]))


def test_a_volume_must_have_three_axes_and_an_affine():
    with pytest.raises(ValueError, match="expected"):
        Volume(np.zeros((4, 5)), CANONICAL)
