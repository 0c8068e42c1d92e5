"""NIfTI is read by its affine and written so that other programs find the same voxels at the same places."""

import gzip
import struct

import nibabel
import numpy as np
import pytest

from radfuse.serving.images import limits
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.nifti import read_nifti, write_nifti
from radfuse.serving.images.volume import Volume, reorient

VOXELS = np.random.default_rng(1).integers(-500, 500, (3, 4, 5)).astype(np.int16)
RAS = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 4, -30], [0, 0, 0, 1]])


def reason(path):
    with pytest.raises(UnreadableImage) as caught:
        read_nifti(path)
    return caught.value.reason


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_axes_and_affine_are_turned_to_lps(tmp_path, name, kind):
    kind(VOXELS, RAS).to_filename(tmp_path / name)
    volume = read_nifti(tmp_path / name)
    assert (volume.voxels == VOXELS.transpose(2, 1, 0)).all()
    assert volume.spacing_mm == pytest.approx((4, 3, 2))
    i, j, k = 2, 1, 3
    x, y, z = (RAS @ [i, j, k, 1])[:3]
    assert volume.affine @ [k, j, i, 1] == pytest.approx([-x, -y, z, 1])


def test_a_pair_of_files_is_read_by_its_header(tmp_path):
    nibabel.Nifti1Pair(VOXELS, RAS).to_filename(tmp_path / "a.hdr")
    assert (read_nifti(tmp_path / "a.hdr").voxels == VOXELS.transpose(2, 1, 0)).all()
    (tmp_path / "a.img").unlink()
    assert ".img with its voxels is not beside it" in reason(tmp_path / "a.hdr")


def test_every_orientation_of_one_picture_becomes_the_same_volume(tmp_path):
    image = nibabel.Nifti1Image(VOXELS, RAS)
    expected = reorient(Volume(VOXELS.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ RAS[:, [2, 1, 0, 3]]))
    for codes in ("RAS", "LPS", "PIR", "SAL", "ILA", "ARS"):
        turned = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(RAS), nibabel.orientations.axcodes2ornt(codes)
        )
        image.as_reoriented(turned).to_filename(tmp_path / f"{codes}.nii")
        volume = reorient(read_nifti(tmp_path / f"{codes}.nii"))
        assert (volume.voxels == expected.voxels).all()
        assert volume.affine == pytest.approx(expected.affine)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(VOXELS, RAS)
    image.header.set_slope_inter(0.5, 10)
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = struct.pack("<2f", 0.5, 10)
    (tmp_path / "a.nii").write_bytes(raw)
    volume = read_nifti(tmp_path / "a.nii")
    reference = nibabel.load(tmp_path / "a.nii").get_fdata()
    assert volume.voxels.dtype == np.float32
    assert volume.voxels == pytest.approx(reference.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ["u1", "i2", ">i2", "f4", ">f8", "u2", "i4"])
def test_every_number_type_is_read_in_this_machines_order(tmp_path, kind):
    header = nibabel.Nifti1Header(endianness=">" if kind.startswith(">") else "<")
    header.set_data_dtype(kind)
    nibabel.Nifti1Image(np.abs(VOXELS) % 200, RAS, header).to_filename(tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.voxels.dtype.isnative
    assert (volume.voxels == (np.abs(VOXELS) % 200).transpose(2, 1, 0)).all()


def test_what_is_not_finite_is_background(tmp_path):
    voxels = VOXELS.astype(np.float32)
    voxels[0] = np.nan
    voxels[1, 0, 0] = np.inf
    nibabel.Nifti1Image(voxels, RAS).to_filename(tmp_path / "a.nii")
    read = read_nifti(tmp_path / "a.nii").voxels
    assert not read[..., 0].any()
    assert read[0, 0, 1] == 0
    assert np.isfinite(read).all()
    nibabel.Nifti1Image(np.full_like(voxels, np.nan), RAS).to_filename(tmp_path / "b.nii")
    assert "none of its voxels is a finite number" in reason(tmp_path / "b.nii")


def test_a_last_axis_of_one_is_dropped_and_a_longer_one_refused(tmp_path):
    nibabel.Nifti1Image(VOXELS[..., None], RAS).to_filename(tmp_path / "one.nii")
    assert read_nifti(tmp_path / "one.nii").shape == (5, 4, 3)
    nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), RAS).to_filename(tmp_path / "two.nii")
    assert "got 3 x 4 x 5 x 2; split" in reason(tmp_path / "two.nii")
    nibabel.Nifti1Image(np.zeros((3, 4), np.int16), RAS).to_filename(tmp_path / "flat.nii")
    assert "three axes, got 3 x 4" in reason(tmp_path / "flat.nii")


def test_colours_are_refused(tmp_path):
    colour = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(colour, RAS).to_filename(tmp_path / "a.nii")
    assert "expected whole or floating-point numbers" in reason(tmp_path / "a.nii")


def test_a_file_that_breaks_off_says_how_much_is_there(tmp_path):
    path = tmp_path / "a.nii"
    nibabel.Nifti1Image(VOXELS, RAS).to_filename(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert f"{len(whole) - 30} of {len(whole)} bytes" in reason(path)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(whole)[:-10])
    assert "breaks off" in reason(packed)


def test_a_damaged_packed_file_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(VOXELS, RAS).to_bytes(), compresslevel=0))
    raw = bytearray(path.read_bytes())
    raw[-60] ^= 1
    path.write_bytes(raw)
    assert "damaged" in reason(path)


def test_a_header_that_asks_for_too_much_is_refused_before_reading(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    nibabel.Nifti1Image(VOXELS, RAS).to_filename(path)
    raw = bytearray(path.read_bytes())
    raw[42:48] = struct.pack("<3h", 30_000, 30_000, 30_000)
    path.write_bytes(raw)
    assert f"limit is {limits.MAX_VOXELS}" in reason(path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((np.nan, 0, 0, 0), "not finite"),
        ((0, 0, 0, 0), "voxel sizes"),
        ((2, 3, 0, 0), "do not span a volume"),
    ],
)
def test_an_affine_that_makes_no_sense_is_refused(tmp_path, row, expected):
    path = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(VOXELS, RAS)
    image.to_filename(path)
    raw = bytearray(path.read_bytes())
    raw[252:256] = struct.pack("<2h", 0, 1)
    raw[280:312] = struct.pack("<8f", *row, *row)
    path.write_bytes(raw)
    assert expected in reason(path)


def test_what_is_written_is_read_again_and_agrees_with_nibabel(tmp_path):
    affine = np.array([[0, 0.2, 1.9, 7], [0.1, 1.5, -0.2, 8], [2.5, 0, 0, 9], [0, 0, 0, 1]])
    volume = Volume(VOXELS.astype(np.uint8), affine)
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(volume, tmp_path / name)
        again = read_nifti(tmp_path / name)
        assert (again.voxels == volume.voxels).all()
        assert again.affine == pytest.approx(affine, abs=1e-5)
        other = nibabel.load(tmp_path / name)
        assert other.affine @ [1, 2, 0, 1] == pytest.approx(
            np.diag([-1, -1, 1, 1]) @ affine @ [0, 2, 1, 1], abs=1e-5
        )


def test_real_files_agree_with_nibabel(real_data):
    files = [
        next((real_data / "msd_hippocampus" / "imagesTr").glob("*.nii.gz")),
        real_data / "brats18_2mm" / "Brats18_2013_11_1" / "Brats18_2013_11_1_t1ce.nii.gz",
        next((real_data / "lidc_nodule_stacks" / "volumes").glob("*.nii.gz")),
    ]
    for file in files:
        reference = nibabel.load(file)
        volume = read_nifti(file)
        assert np.array_equal(volume.voxels, reference.get_fdata(dtype=np.float32).transpose(2, 1, 0))
        assert np.diag([-1, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]] == pytest.approx(reference.affine)
