"""Damaged files, whatever the damage: an array, or `UnreadableImage`; nothing else, and not for long."""

import gzip
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radfuse.serving.images.codestream import size_of
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.radiograph import read_radiograph
from radfuse.serving.images.scans import read_volume
from radfuse.serving.images.series import read_series

SEEDS = [
    "pydicom_wheel/MR_small_RLE.dcm",
    "pydicom_wheel/MR_small_bigendian.dcm",
    "pydicom_wheel/MR_small_jpeg_ls_lossless.dcm",
    "pydicom_wheel/JPEG2000.dcm",
    "pydicom_wheel/JPEGLSNearLossless_16.dcm",
    "pydicom_wheel/SC_rgb_jpeg.dcm",
    "pydicom_wheel/SC_rgb_rle_32bit_2frame.dcm",
    "pydicom_wheel/GDCMJ2K_TextGBR.dcm",
    "pydicom_wheel/image_dfl.dcm",
    "pydicom_wheel/liver_1frame.dcm",
    "pydicom_wheel/dicomdirtests/77654033/CT2/17136",
    "pydicom_wheel/dicomdirtests/77654033/CR2/6247",
    "pydicom_data_wheel/emri_small_jpeg_ls_lossless.dcm",
    "dicom_wg04_robyoung/J2KI/CT2_J2KI",
    "dicom_wg04_robyoung/JPLL/CT2_JPLL",
    "fo-dicom/Tests/FO-DICOM.Tests/Test Data/GH1301.dcm",
    "fo-dicom/Tests/FO-DICOM.Tests/Test Data/GH184.dcm",
    "cornerstone/packages/dicomImageLoader/testImages/no-pixel-spacing.dcm",
    "torchio/tests/image_data/dicom/IMG0002.dcm",
    "monai/tests/testing_data/anatomical_label.nii.gz",
    "monai/tests/testing_data/reoriented_anat_moved.nii",
    "monai/tests/testing_data/matshow3d_test.png",
    "nibabel/nibabel/tests/data/example_nifti2.nii.gz",
    "nibabel/nibabel/tests/data/nifti1.hdr",
]
SECONDS = 20
"""Far more than any small file takes, on a machine with other work."""


@st.composite
def damage(draw):
    """Bytes changed, taken out or put in, mostly near the beginning, where headers are; and a new end."""
    place = st.one_of(st.integers(0, 400), st.integers(0, 2000), st.integers(0, 1 << 17))
    change = st.tuples(st.sampled_from("scp"), place, st.binary(min_size=1, max_size=8))
    return draw(st.lists(change, min_size=1, max_size=12)), draw(st.none() | st.floats(0, 1))


def damaged(content, changes, end):
    content = bytearray(content)
    for kind, place, data in changes:
        place %= len(content) or 1
        if kind == "s":
            content[place : place + len(data)] = data
        elif kind == "c":
            del content[place : place + len(data)]
        else:
            content[place:place] = data
    return bytes(content if end is None else content[: int(len(content) * end)])


@pytest.fixture(scope="module")
def originals(real_data):
    return {name: (real_data / "odd_files" / name).read_bytes() for name in SEEDS}


@given(name=st.sampled_from(SEEDS), how=damage(), packed=st.booleans())
@settings(max_examples=150)
def test_any_damage_gives_an_array_or_a_reason(originals, tmp_path_factory, name, how, packed):
    check_damage(originals[name], tmp_path_factory.mktemp("damaged"), how, packed)


@pytest.mark.slow
@given(name=st.sampled_from(SEEDS), how=damage(), packed=st.booleans())
@settings(max_examples=10_000)
def test_much_damage_gives_an_array_or_a_reason(originals, tmp_path_factory, name, how, packed):
    check_damage(originals[name], tmp_path_factory.mktemp("damaged"), how, packed)


def check_damage(content, folder, how, packed):
    """A file that is packed with gzip is mostly damaged inside, where the checksum does not find it."""
    path = folder / "file"
    if packed and content.startswith(b"\x1f\x8b"):
        path.write_bytes(gzip.compress(damaged(gzip.decompress(content), *how)))
    else:
        path.write_bytes(damaged(content, *how))
    for read in (read_radiograph, lambda file: read_series([file], modality=None), read_volume):
        began = time.monotonic()
        try:
            image = read(path)
        except UnreadableImage as error:
            assert error.reason
            assert str(folder) not in str(error)
        else:
            values = image.pixels if hasattr(image, "pixels") else image.voxels
            assert np.isfinite(values).all()
        assert time.monotonic() - began < SECONDS
    path.unlink()


@given(st.binary(max_size=200))
def test_any_bytes_have_a_size_or_none(data):
    for start in (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n", b""):
        size_of(start + data)


def test_a_box_without_length_does_not_go_on_for_ever():
    assert size_of(b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100)) is None
