"""A CT patch shows the nodule at the point, at the stated spacing, with air outside the scan."""

import nibabel
import numpy as np
import pytest

from radfuse.serving import preprocess
from radfuse.serving.errors import InputError, SpecError
from radfuse.serving.images import scans
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.scans import read_volume

SPEC = {"kind": "ct_patch", "size": [9, 9, 9], "spacing_mm": [1, 1, 1], "window_hu": [-1000, 400]}
BALL_AT = (12.0, 17.0, 25.0)


def ball(step=2.0, shape=(25, 60, 60), spacing=(0.5, 0.7)):
    """A series in which a soft ball of 4 mm lies in lung at `BALL_AT`."""
    d, h, w = np.mgrid[: shape[0], : shape[1], : shape[2]]
    x, y, z = w * spacing[1] - 10, h * spacing[0] - 5, d * step
    distance = np.sqrt((x - BALL_AT[0]) ** 2 + (y - BALL_AT[1]) ** 2 + (z - BALL_AT[2]) ** 2)
    return np.where(distance < 4, 50, -850).astype(np.int16)


def test_the_patch_is_about_the_point_whatever_the_scans_spacing(build):
    folder = build.series(ball(), origin=(-10.0, -5.0, 0.0))
    prepared = preprocess.prepare(SPEC, {"image": folder}, BALL_AT)
    assert prepared.array.dtype == np.int16
    assert prepared.array.shape == (9, 9, 9)
    bright = np.argwhere(prepared.array > -400).mean(0)
    assert bright == pytest.approx([4, 4, 4], abs=0.3)
    assert prepared.array[4, 4, 4] > 0
    assert prepared.geometry.affine @ [4, 4, 4, 1] == pytest.approx([*BALL_AT, 1])


def test_input_is_in_hounsfield_units_within_the_window(build):
    folder = build.series(np.full((5, 9, 9), 3000, np.int16))
    prepared = preprocess.prepare(SPEC, {"image": folder}, (-8, -18, 34))
    image = preprocess.to_input(SPEC, prepared.array)
    assert image.dtype == np.float32
    assert image.shape == preprocess.input_shape(SPEC) == (1, 9, 9, 9)
    assert image.max() == 400
    assert image.min() == -1000  # air beyond the scan's few voxels


def test_a_point_outside_the_scan_is_an_error(build):
    with pytest.raises(UnreadableImage, match="the point lies outside the scan"):
        preprocess.prepare(SPEC, {"image": build.series(ball())}, (500, 0, 0))


@pytest.mark.parametrize("point", [(1, 2), (1, 2, float("nan"))])
def test_a_point_must_be_three_finite_numbers(build, point):
    with pytest.raises(InputError, match="x, y, z in patient mm"):
        preprocess.prepare(SPEC, {"image": build.series(ball())}, point)


def test_a_scan_is_read_once_for_many_points_and_gives_the_same(build, monkeypatch):
    folder, other = (build.series(ball(), origin=(-10.0, -5.0, 0.0), name=name) for name in ("a", "b"))
    points = [BALL_AT, (0.0, 0.0, 20.0), (-5.0, 3.0, 9.0)]
    asked = [*((folder, point) for point in points), (other, BALL_AT), (folder, BALL_AT)]
    alone = [preprocess.prepare(SPEC, {"image": image}, point).array for image, point in asked]
    read = []
    monkeypatch.setattr(scans, "read_volume", lambda *given: read.append(given) or read_volume(*given))
    last = preprocess.LastScan()
    together = [preprocess.prepare(SPEC, {"image": image}, point, last).array for image, point in asked]
    assert [source for source, _ in read] == [folder, other, folder]
    assert all((one == two).all() for one, two in zip(alone, together, strict=True))


def test_a_whole_scan_needs_a_point(build):
    with pytest.raises(UnreadableImage, match="is a whole scan; give the nodule's position"):
        preprocess.prepare(SPEC, {"image": build.series(ball())})


def cube(tmp_path, shape, value=None):
    voxels = np.random.default_rng(0).integers(1, 256, shape).astype(np.uint8)
    nibabel.Nifti1Image(voxels if value is None else np.full(shape, value, np.int16), np.eye(4)).to_filename(
        tmp_path / "cube.nii"
    )
    return tmp_path / "cube.nii", voxels.transpose(2, 1, 0)[:, ::-1, ::-1]


@pytest.mark.parametrize("shape", [(51, 51, 51), (64, 64, 1), (64, 64, 43)])
def test_an_eight_bit_patch_keeps_its_values_and_is_padded_with_0(tmp_path, shape):
    spec = {"kind": "ct_patch", "size": [64, 64, 64]}
    path, canonical = cube(tmp_path, shape)
    prepared = preprocess.prepare(spec, {"image": path})
    start = [-((length - 64) // 2) for length in canonical.shape]
    inside = tuple(slice(first, first + length) for first, length in zip(start, canonical.shape, strict=True))
    assert (prepared.array[inside] == canonical).all()
    assert prepared.array.astype(np.int64).sum() == canonical.astype(np.int64).sum()
    assert preprocess.to_input(spec, prepared.array).max() == canonical.max()


def test_a_larger_patch_is_cut_about_its_middle(tmp_path):
    path, canonical = cube(tmp_path, (12, 12, 12))
    spec = {"kind": "ct_patch", "size": [8, 8, 8]}
    assert (preprocess.prepare(spec, {"image": path}).array == canonical[2:10, 2:10, 2:10]).all()


def test_a_patch_of_hounsfield_units_is_padded_with_air(tmp_path):
    path, _ = cube(tmp_path, (4, 4, 4), value=30)
    array = preprocess.prepare(SPEC, {"image": path}).array
    assert array[4, 4, 4] == 30
    assert array[0, 0, 0] == -1000
    narrow = {**SPEC, "window_hu": [-200, 300]}
    assert preprocess.prepare(narrow, {"image": path}).array[0, 0, 0] == -200


def test_files_of_a_series_can_be_named_one_by_one(build):
    folder = build.series(ball(), origin=(-10.0, -5.0, 0.0))
    whole = preprocess.prepare(SPEC, {"image": folder}, BALL_AT).array
    files = list(folder.iterdir())
    assert (preprocess.prepare(SPEC, {"image": files}, BALL_AT).array == whole).all()


def test_a_picture_is_no_scan(real_data):
    file = next((real_data / "nih_chestxray14_original_1024").rglob("*.png"))
    with pytest.raises(UnreadableImage, match="expected a volume"):
        preprocess.prepare(SPEC, {"image": file})


@pytest.mark.parametrize(
    "change",
    [
        {"size": [9, 9]},
        {"spacing_mm": [1, 1]},
        {"spacing_mm": [1, 0, 1]},
        {"window_hu": [400, -1000]},
        {"window_hu": [1, 2, 3]},
        {"window_hu": "lung"},
        {"window": None},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change):
    with pytest.raises(SpecError):
        preprocess.input_shape({**SPEC, **change})


def test_there_are_no_label_maps_of_patches(build, tmp_path):
    folder = build.series(ball(), origin=(-10.0, -5.0, 0.0))
    prepared = preprocess.prepare(SPEC, {"image": folder}, BALL_AT)
    with pytest.raises(UnreadableImage, match="no label maps"):
        preprocess.prepare_mask(SPEC, tmp_path / "mask.nii", prepared.geometry)


def test_real_cubes_and_stacks_become_patches(real_data):
    spec = {"kind": "ct_patch", "size": [64, 64, 64], "spacing_mm": None, "window_hu": None}
    for folder in ("lidc_nodule_cubes", "lidc_nodule_stacks"):
        for file in sorted((real_data / folder / "volumes").glob("*.nii.gz"))[:5]:
            array = preprocess.prepare(spec, {"image": file}).array
            assert array.shape == (64, 64, 64)
            assert 0 <= array.min() < array.max() <= 255
            assert array[28:36, 24:40, 24:40].any()


def test_the_real_series_gives_a_patch_about_any_point_in_it(real_data):
    spec = {"kind": "ct_patch", "size": [64, 64, 64], "spacing_mm": [1, 1, 1], "window_hu": [-1000, 400]}
    array = preprocess.prepare(spec, {"image": real_data / "ct_chest_dicom_series"}, (0, -150, -150)).array
    assert array.shape == (64, 64, 64)
    assert array.min() == -1000
    assert array.max() > 100
