"""A radiograph comes out as a viewer shows it, dense bone bright, whatever convention its file follows."""

import zlib

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from radfuse.serving.images import dicom, limits
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.intensity import spread, window
from radfuse.serving.images.radiograph import read_radiograph

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def reason(path):
    with pytest.raises(UnreadableImage) as caught:
        read_radiograph(path)
    assert caught.value.path == path
    return caught.value.reason


def test_a_window_maps_its_edges_to_black_and_white(build):
    shown = read_radiograph(build.dicom(RAMP, WindowCenter=2048, WindowWidth=1024)).pixels
    assert shown.dtype == np.float32
    assert shown[RAMP <= 1536].max() == 0
    assert shown[RAMP >= 2560].min() == 1
    assert 0.49 < shown[RAMP == 2048][0] < 0.51


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 1024), (100.5, 37), (0, 1)])
def test_windows_agree_with_pydicom(build, function, centre, width):
    path = build.dicom(
        RAMP, BitsStored=12, HighBit=11, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function
    )
    dataset = dcmread(path)
    reference = apply_windowing(dataset.pixel_array, dataset) / 4095
    assert window(RAMP, centre, width, function) == pytest.approx(reference, abs=2e-6)


def test_a_window_applies_to_rescaled_values(build):
    tags = {"RescaleSlope": "0.5", "RescaleIntercept": "-100", "WindowCenter": 200, "WindowWidth": 400}
    path = build.dicom(RAMP, BitsStored=12, HighBit=11, **tags)
    dataset = dcmread(path)
    values = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    reference = (values + 100) / (4095 * 0.5)
    assert read_radiograph(path).pixels == pytest.approx(reference, abs=1e-5)


def test_the_first_of_several_windows_is_taken(build):
    one = read_radiograph(build.dicom(RAMP, WindowCenter=500, WindowWidth=100)).pixels
    several = read_radiograph(build.dicom(RAMP, "b.dcm", WindowCenter=[500, 9], WindowWidth=[100, 9])).pixels
    assert (one == several).all()


def test_monochrome1_is_the_inverse_of_monochrome2(build):
    tags = {"WindowCenter": 2048, "WindowWidth": 4096}
    bright = read_radiograph(build.dicom(RAMP, **tags)).pixels
    dark = read_radiograph(build.dicom(RAMP, "b.dcm", PhotometricInterpretation="MONOCHROME1", **tags)).pixels
    assert dark == pytest.approx(1 - bright)


def test_without_window_values_are_spread_between_percentiles(build):
    shown = read_radiograph(build.dicom(RAMP)).pixels
    assert shown == pytest.approx(spread(RAMP))
    assert (shown.min(), shown.max()) == (0, 1)


def test_a_window_that_shows_one_flat_grey_is_not_believed(build):
    shown = read_radiograph(build.dicom(RAMP, WindowCenter=-30000, WindowWidth=10)).pixels
    assert shown == pytest.approx(spread(RAMP))


def test_eight_bit_values_without_window_are_taken_as_shown(build):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert read_radiograph(build.dicom(grey)).pixels == pytest.approx(grey / 255)


def test_one_flat_grey_is_black(build):
    assert not read_radiograph(build.dicom(np.full((4, 4), 900, np.uint16))).pixels.any()


def test_signed_pixels_keep_their_sign(build):
    signed = RAMP.astype(np.int16) - 2048
    shown = read_radiograph(build.dicom(signed, WindowCenter=0, WindowWidth=4096)).pixels
    assert shown == pytest.approx(window(signed, 0, 4096))


def test_bits_above_the_stored_ones_are_taken_out(build):
    overlay = RAMP | 0xF000
    tags = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    assert (
        read_radiograph(build.dicom(overlay, **tags)).pixels
        == read_radiograph(build.dicom(RAMP, "b.dcm", **tags)).pixels
    ).all()


def test_signed_pixels_of_twelve_bits_are_sign_extended(build):
    signed = RAMP.astype(np.int16) - 2048
    tags = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 0, "WindowWidth": 4096}
    masked = (signed & 0x0FFF).astype(np.int16)
    assert read_radiograph(build.dicom(masked, **tags)).pixels == pytest.approx(window(signed, 0, 4096))


def test_padding_is_black_and_does_not_count(build):
    padded = RAMP.copy()
    padded[:4] = 65535
    shown = read_radiograph(build.dicom(padded, PixelPaddingValue=65535)).pixels
    assert not shown[:4].any()
    assert shown[4:] == pytest.approx(spread(RAMP[4:]))


def test_padding_is_black_in_monochrome1_too(build):
    padded = RAMP.copy()
    padded[:4] = 0
    path = build.dicom(padded, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1")
    assert not read_radiograph(path).pixels[:4].any()


def test_a_voi_lut_goes_before_a_window(build, sequence_of):
    table = (np.linspace(0, 1, 4096) ** 2 * 1023).astype(np.uint16)
    lut = sequence_of({"LUTDescriptor": [4096, 0, 10], "LUTData": table.astype("<u2").tobytes()})
    path = build.dicom(RAMP, VOILUTSequence=lut, WindowCenter=1, WindowWidth=2)
    assert read_radiograph(path).pixels == pytest.approx(table[RAMP] / 1023)


def test_a_voi_lut_of_signed_values_begins_below_zero(build, sequence_of):
    signed = RAMP.astype(np.int16) - 2048
    table = np.arange(4096) * 16
    lut = sequence_of({"LUTDescriptor": [4096, -2048, 16], "LUTData": table.astype("<u2").tobytes()})
    assert read_radiograph(build.dicom(signed, VOILUTSequence=lut)).pixels == pytest.approx(RAMP * 16 / 65535)


def test_a_modality_lut_comes_before_the_window(build, sequence_of):
    table = (4095 - np.arange(4096)).astype(np.uint16)
    lut = sequence_of(
        {"LUTDescriptor": [4096, 0, 12], "ModalityLUTType": "US", "LUTData": table.astype("<u2").tobytes()}
    )
    path = build.dicom(RAMP, ModalityLUTSequence=lut, WindowCenter=2048, WindowWidth=1000)
    assert read_radiograph(path).pixels == pytest.approx(window(table[RAMP], 2048, 1000))


def test_colour_becomes_its_luminance(build):
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[0] = np.eye(3) * 255
    colour[1] = 255
    shown = read_radiograph(build.dicom(colour)).pixels
    assert shown == pytest.approx(np.array([[0.299, 0.587, 0.114], [1, 1, 1]]), abs=1e-6)


def test_a_palette_becomes_the_luminance_of_its_colours(build):
    index = np.arange(4, dtype=np.uint8).reshape(2, 2)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, shift in (("Red", 0), ("Green", 1), ("Blue", 2)):
        table = np.zeros(4, np.uint16)
        table[shift] = 65535
        table[3] = 65535
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    shown = read_radiograph(build.dicom(index, **tags)).pixels
    assert shown == pytest.approx(np.array([[0.299, 0.587], [0.114, 1]]), abs=1e-5)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, ImplicitVRLittleEndian])
def test_lossless_transfer_syntaxes_give_the_same_array(build, syntax):
    tags = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12, "HighBit": 11}
    plain = build.dicom(RAMP, **tags)
    packed = plain.with_name("packed.dcm")
    dataset = dcmread(plain)
    if syntax.is_compressed:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(packed, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    assert (read_radiograph(packed).pixels == read_radiograph(plain).pixels).all()


def deflated(path, content):
    """The file with its data set replaced by deflated content."""
    raw = path.read_bytes()
    start = 144 + int.from_bytes(raw[140:144], "little")
    path.write_bytes(raw[:start] + content)
    return path


def deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def test_deflated_files_are_read(build):
    plain = build.dicom(RAMP)
    packed = build.dicom(RAMP, "packed.dcm", DeflatedExplicitVRLittleEndian)
    assert (read_radiograph(packed).pixels == read_radiograph(plain).pixels).all()


def test_a_deflated_file_that_inflates_without_end_is_refused(build, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_FILE_BYTES", 4 << 20)
    path = build.dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian)
    assert "inflates to more than the limit" in reason(deflated(path, deflate(bytes(2 << 20))))


def test_a_deflated_file_that_breaks_off_is_refused(build):
    path = build.dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[:-40])
    assert "breaks off" in reason(path)


def test_a_file_without_preamble_is_read(build):
    path = build.dicom(RAMP)
    dataset = dcmread(path)
    bare = path.with_name("bare.dcm")
    FileDataset(str(bare), dict(dataset), preamble=None, file_meta=None).save_as(
        bare, implicit_vr=True, little_endian=True, enforce_file_format=False
    )
    assert bare.read_bytes()[128:132] != b"DICM"
    assert (read_radiograph(bare).pixels == read_radiograph(path).pixels).all()


def test_a_truncated_file_says_how_much_is_missing(build):
    path = build.dicom(RAMP)
    path.write_bytes(path.read_bytes()[:-100])
    found = reason(path)
    assert "copy" in found
    assert "cannot be parsed" in found or "breaks off" in found


def test_a_truncated_codestream_is_refused(build):
    dataset = dcmread(build.dicom(np.random.default_rng(0).integers(0, 4096, (64, 64), np.uint16)))
    dataset.compress(JPEG2000Lossless)
    from pydicom.encaps import encapsulate, get_frame

    whole = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([whole[: len(whole) // 2]])
    path = build.folder / "cut.dcm"
    dataset.save_as(path)
    assert "breaks off" in reason(path)


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(build, monkeypatch):
    dataset = dcmread(build.dicom(RAMP))
    dataset.compress(JPEG2000Lossless)
    dataset.PixelData = dataset.PixelData.replace(
        (64).to_bytes(4, "big") * 2, (60_000).to_bytes(4, "big") * 2, 1
    )
    path = build.folder / "lying.dcm"
    dataset.save_as(path)
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda *_, **__: pytest.fail("it was decoded"))
    assert "the compressed picture inside 60000 x 60000" in reason(path)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"Modality": "CT"}, "its Modality (0008,0060) is CT"),
        ({"NumberOfFrames": 3}, "holds 3 frames"),
        ({"Rows": 60000, "Columns": 60000}, "limit is 64000000"),
        ({"Rows": 0}, "it has none"),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": None}, "Rows is missing"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"RescaleSlope": "1e300", "RescaleIntercept": 0}, "some pixels are not finite"),
        ({"RescaleSlope": "1e999", "RescaleIntercept": 0}, "RescaleSlope is not finite"),
        ({"SamplesPerPixel": 2}, "expected 1 or 3 SamplesPerPixel"),
    ],
)
def test_what_is_no_radiograph_is_refused_with_its_reason(build, tags, expected, identity):
    path = build.dicom(RAMP, **tags)
    found = reason(path)
    assert expected in found
    assert not any(text in found for text in identity)


def test_a_name_in_the_place_of_a_code_is_not_repeated(build, identity):
    path = build.dicom(RAMP, Modality="XX")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"CS\x02\x00XX", b"CS\x10\x00" + identity[0].encode()))
    with pytest.raises(UnreadableImage) as caught:
        read_radiograph(path)
    assert identity[1] not in str(caught.value)


@pytest.mark.parametrize("value", ["ZWIEBELFISCH", "JANE DOE", "19610203"])
def test_a_modality_that_dicom_does_not_define_is_not_repeated(build, value):
    found = reason(build.dicom(RAMP, Modality=value))
    assert found == "expected a radiograph (CR, DX, ...), its Modality (0008,0060) is another modality"


@pytest.mark.parametrize("value", ["SR", "MG", "SEG", "RTSTRUCT"])
def test_a_modality_that_dicom_defines_is_named(build, value):
    assert reason(build.dicom(RAMP, Modality=value)).endswith(f"is {value}")


def test_attributes_identify_nobody(build, identity):
    tags = {"ViewPosition": "PA", "PatientSex": "F", "PatientAge": "018M", "Manufacturer": "Acme"}
    attributes = read_radiograph(build.dicom(RAMP, **tags)).attributes
    assert attributes == {
        "Modality": "DX",
        "ViewPosition": "PA",
        "PatientSex": "F",
        "Manufacturer": "Acme",
        "PatientAge": 1.5,
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"NRRD0004\ntype: short\n" + bytes(200), "an NRRD file; convert it to NIfTI"),
        (b"PK\x03\x04" + bytes(200), "a ZIP archive"),
        (b"hello, this is text\n" * 20, "a text file"),
        (b"\x1f\x8b not gzip at all", "cannot be opened"),
        (bytes(range(1, 250)), "unknown format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "cannot be decoded"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "cannot be decoded"),
        (bytes(128) + b"DICM", "nothing after the DICOM header"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(tmp_path, content, expected):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert expected in reason(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "no such file" in reason(tmp_path / "absent.dcm")
    assert "got a folder" in reason(tmp_path)
    assert "no possible name" in reason(tmp_path / "a\0b")


def test_a_file_beyond_the_limit_is_refused(build, monkeypatch):
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 100)
    assert "more than the limit" in reason(build.dicom(RAMP))


def test_errors_cross_between_processes(tmp_path):
    import pickle

    error = UnreadableImage(tmp_path / "a.dcm", "the reason")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason, str(again)) == (error.path, error.reason, "a.dcm: the reason")
