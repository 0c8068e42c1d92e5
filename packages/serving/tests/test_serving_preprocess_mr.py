"""MR sequences share a grid, are z-scored in the head, and label maps find their way back to the file."""

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfuse.serving import preprocess
from radfuse.serving.errors import InputError, SpecError
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.nifti import read_nifti, write_nifti
from radfuse.serving.images.volume import Volume

NAMES = ["t1", "t1ce", "t2", "flair"]
SPEC = {"kind": "mr_volume", "sequences": NAMES}
LPS = np.diag([-1.0, -1, 1, 1])


def write(path, voxels, affine=LPS):
    nibabel.Nifti1Image(voxels, affine).to_filename(path)
    return path


def head(tmp_path, affine=LPS, shape=(12, 10, 8)):
    """Four sequences of a head in the middle of an empty field, and its segmentation."""
    random = np.random.default_rng(0)
    inside = np.zeros(shape, bool)
    inside[3:9, 2:8, 1:7] = True
    images = {}
    for number, name in enumerate(NAMES):
        voxels = np.where(inside, random.integers(100, 1000, shape) * (number + 1), 0).astype(np.int16)
        images[name] = write(tmp_path / f"case_{name}.nii.gz", voxels, affine)
    mask = np.where(inside, random.choice([0, 1, 2, 4], shape), 0).astype(np.uint8)
    return images, write(tmp_path / "case_seg.nii.gz", mask, affine), mask


def test_each_sequence_is_z_scored_over_its_nonzero_voxels(tmp_path):
    images, _, _ = head(tmp_path)
    prepared = preprocess.prepare(SPEC, images)
    assert prepared.array.dtype == np.float16
    assert prepared.array.shape == (4, 8, 10, 12)
    for channel, name in zip(prepared.array.astype(np.float64), NAMES, strict=True):
        original = read_nifti(images[name]).voxels
        assert ((channel != 0) <= (original != 0)).all()
        assert channel[original != 0].mean() == pytest.approx(0, abs=1e-3)
        assert channel[original != 0].std() == pytest.approx(1, abs=1e-3)
    image = preprocess.to_input(SPEC, prepared.array)
    assert image.dtype == np.float32
    assert (image == prepared.array).all()
    assert preprocess.input_shape(SPEC) == (4, None, None, None)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_every_orientation_of_one_head_gives_the_same_array(tmp_path, codes):
    images, mask_path, _ = head(tmp_path)
    expected = preprocess.prepare(SPEC, images)
    expected_mask = preprocess.prepare_mask(SPEC, mask_path, expected.geometry)
    turned = {}
    for name, path in {**images, "seg": mask_path}.items():
        image = nibabel.load(path)
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
        )
        image.as_reoriented(turn).to_filename(tmp_path / f"turned_{name}.nii")
        turned[name] = tmp_path / f"turned_{name}.nii"
    mask = turned.pop("seg")
    prepared = preprocess.prepare(SPEC, turned)
    assert (prepared.array == expected.array).all()
    assert (preprocess.prepare_mask(SPEC, mask, prepared.geometry) == expected_mask).all()


def test_the_box_about_the_brain_is_kept(tmp_path):
    images, mask_path, mask = head(tmp_path)
    prepared = preprocess.prepare({**SPEC, "crop_to_brain": True}, images)
    assert prepared.array.shape == (4, 6, 6, 6)
    cropped = preprocess.prepare_mask(SPEC, mask_path, prepared.geometry, {4: 3})
    assert (cropped == np.where(mask == 4, 3, mask)[3:9, 2:8, 1:7].transpose(2, 1, 0)).all()


def test_size_crops_and_pads_about_the_middle(tmp_path):
    images, _, _ = head(tmp_path)
    spec = {**SPEC, "size": [16, 8, 12]}
    prepared = preprocess.prepare(spec, images)
    assert prepared.array.shape == preprocess.input_shape(spec) == (4, 16, 8, 12)
    whole = preprocess.prepare(SPEC, images).array
    assert (prepared.array[:, 4:12] == whole[:, :, 1:9]).all()
    assert not prepared.array[:, :4].any()


def test_spacing_is_what_was_asked_for(tmp_path):
    images, mask_path, _ = head(tmp_path, np.diag([-2.0, -1, 1.5, 1]))
    spec = {**SPEC, "spacing_mm": [1, 1, 1]}
    prepared = preprocess.prepare(spec, images)
    assert prepared.array.shape == (4, 12, 10, 24)
    assert prepared.geometry.voxel_mm3 == pytest.approx(1)
    mask = preprocess.prepare_mask(spec, mask_path, prepared.geometry)
    assert mask.shape == (12, 10, 24)
    assert set(np.unique(mask)) == {0, 1, 2, 4}


@given(
    turn=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    spacing=st.tuples(*[st.sampled_from([1.0, 2.0, 0.9375])] * 3),
    crop=st.booleans(),
)
def test_a_label_map_comes_back_to_the_files_grid_unchanged(tmp_path_factory, turn, signs, spacing, crop):
    folder = tmp_path_factory.mktemp("case")
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3)[:, list(turn)] * signs) * spacing
    affine[:3, 3] = (3.5, -7.25, 11)
    images, mask_path, mask = head(folder, affine)
    prepared = preprocess.prepare({**SPEC, "crop_to_brain": crop}, images)
    labels = preprocess.prepare_mask(SPEC, mask_path, prepared.geometry)
    restored = preprocess.restore(labels, prepared.geometry)
    write_nifti(restored, folder / "out.nii.gz")
    written = nibabel.load(folder / "out.nii.gz")
    assert (np.asanyarray(written.dataobj) == mask).all()
    assert written.affine == pytest.approx(affine, abs=1e-5)


def test_a_label_map_comes_back_from_another_spacing(tmp_path):
    images, _, _ = head(tmp_path)
    prepared = preprocess.prepare({**SPEC, "spacing_mm": [0.5, 0.5, 0.5]}, images)
    labels = np.zeros(prepared.geometry.shape, np.uint8)
    labels[4:12, 6:14, 8:16] = 2
    restored = preprocess.restore(labels, prepared.geometry).voxels
    assert restored.shape == (8, 10, 12)
    expected = np.zeros_like(restored)
    expected[2:6, 7 - 4 : 7, 4:8] = 2
    assert (restored == expected).all()
    with pytest.raises(ValueError, match="expected a label map of shape"):
        preprocess.restore(labels[1:], prepared.geometry)


def test_geometry_goes_through_json(tmp_path):
    images, _, _ = head(tmp_path)
    geometry = preprocess.prepare(SPEC, images).geometry
    again = preprocess.Geometry.from_json(geometry.as_json())
    assert again.shape == geometry.shape
    assert again.original_shape == geometry.original_shape
    assert (again.affine == geometry.affine).all()
    assert (again.original_affine == geometry.original_affine).all()


def test_a_sequence_on_another_grid_is_named(tmp_path):
    images, _, _ = head(tmp_path)
    write(images["t2"], np.ones((12, 10, 9), np.int16))
    with pytest.raises(UnreadableImage, match=r"t2 .* lies on another grid than t1 ") as caught:
        preprocess.prepare(SPEC, images)
    assert caught.value.path == images["t2"]
    moved = LPS.copy()
    moved[0, 3] = 5
    write(images["t2"], np.ones((12, 10, 8), np.int16), moved)
    with pytest.raises(UnreadableImage, match=r"t2 .* lies on another grid"):
        preprocess.prepare(SPEC, images)


def test_a_segmentation_on_another_grid_is_refused(tmp_path):
    images, mask_path, mask = head(tmp_path)
    geometry = preprocess.prepare(SPEC, images).geometry
    moved = LPS.copy()
    moved[2, 3] = 1
    for voxels, affine in ((mask[1:], LPS), (mask, moved), (mask, LPS * [2, 2, 2, 1])):
        write(mask_path, voxels, affine)
        with pytest.raises(UnreadableImage, match="another grid than its image"):
            preprocess.prepare_mask(SPEC, mask_path, geometry)


def test_what_is_no_label_map_is_refused(tmp_path):
    images, mask_path, mask = head(tmp_path)
    geometry = preprocess.prepare(SPEC, images).geometry
    for voxels in (mask + 0.5, mask.astype(np.int16) - 1, mask.astype(np.int16) * 100):
        write(mask_path, voxels)
        with pytest.raises(UnreadableImage, match="whole numbers from 0 to 255"):
            preprocess.prepare_mask(SPEC, mask_path, geometry)


def test_an_empty_head_is_refused_and_a_flat_sequence_is_0(tmp_path):
    images, _, _ = head(tmp_path)
    write(images["t2"], np.full((12, 10, 8), 7, np.int16))
    assert not preprocess.prepare(SPEC, images).array[2].any()
    for path in images.values():
        write(path, np.zeros((12, 10, 8), np.int16))
    with pytest.raises(UnreadableImage, match="every voxel is 0"):
        preprocess.prepare(SPEC, images)


def test_huge_values_do_not_overflow(tmp_path):
    voxels = np.zeros((40, 40, 40), np.float32)
    voxels[:] = 1e-3
    voxels[0, 0, 0] = 1e30
    path = write(tmp_path / "a.nii", voxels)
    array = preprocess.prepare({"kind": "mr_volume", "sequences": ["t1"]}, {"t1": path}).array
    assert np.isfinite(array).all()


def test_missing_and_surplus_sequences_are_refused(tmp_path):
    images, _, _ = head(tmp_path)
    del images["t2"]
    with pytest.raises(InputError, match="expected images for t1, t1ce, t2, flair"):
        preprocess.prepare(SPEC, images)
    with pytest.raises(InputError, match="leave the point out"):
        preprocess.prepare({"kind": "mr_volume", "sequences": ["t1"]}, {"t1": images["t1"]}, (0, 0, 0))


@pytest.mark.parametrize(
    "change",
    [
        {"sequences": []},
        {"sequences": "t1"},
        {"sequences": ["t1", "t1"]},
        {"sequences": [1]},
        {"size": [8, 8]},
        {"crop_to_brain": 1},
        {"spacing_mm": ["1", 1, 1]},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change):
    with pytest.raises(SpecError):
        preprocess.input_shape({**SPEC, **change})


def test_a_dicom_series_is_a_sequence_too(build):
    folder = build.series(np.full((4, 5, 6), 100, np.int16) + np.arange(6, dtype=np.int16), Modality="MR")
    spec = {"kind": "mr_volume", "sequences": ["t1"]}
    assert preprocess.prepare(spec, {"t1": folder}).array.shape == (1, 4, 5, 6)


def test_real_cases_are_prepared_and_their_labels_come_back(real_data):
    case = real_data / "brats18_2mm" / "Brats18_2013_11_1"
    images = {name: case / f"{case.name}_{name}.nii.gz" for name in NAMES}
    prepared = preprocess.prepare({**SPEC, "crop_to_brain": True}, images)
    assert prepared.array.shape[0] == 4
    assert prepared.array.shape[1] < 77
    mask = case / f"{case.name}_seg.nii.gz"
    labels = preprocess.prepare_mask(SPEC, mask, prepared.geometry)
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    assert (preprocess.restore(labels, prepared.geometry).voxels == read_nifti(mask).voxels).all()


def test_a_real_single_sequence_case_is_prepared(real_data):
    folder = real_data / "msd_hippocampus"
    image = sorted((folder / "imagesTr").glob("*.nii.gz"))[0]
    spec = {"kind": "mr_volume", "sequences": ["mri"], "size": [48, 64, 48]}
    prepared = preprocess.prepare(spec, {"mri": image})
    mask = preprocess.prepare_mask(spec, folder / "labelsTr" / image.name, prepared.geometry)
    assert prepared.array.shape == (1, 48, 64, 48)
    assert set(np.unique(mask)) == {0, 1, 2}


def test_volumes_are_measured_in_the_patient():
    volume = Volume(np.zeros((2, 2, 2)), np.diag([2.0, 3, 4, 1]))
    assert preprocess.Geometry(
        volume.shape, volume.affine, volume.shape, volume.affine
    ).voxel_mm3 == pytest.approx(24)


def test_a_spacing_or_size_beyond_the_limit_is_refused(tmp_path):
    images, _, _ = head(tmp_path)
    with pytest.raises(UnreadableImage, match="the limit is"):
        preprocess.prepare({**SPEC, "spacing_mm": [0.001, 0.001, 0.001]}, images)
    with pytest.raises(SpecError, match="the limit is"):
        preprocess.input_shape({**SPEC, "size": [4096, 4096, 4096]})
