"""A series becomes a volume in the patient, in whatever order its files are; what is wrong is said."""

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import EnhancedCTImageStorage

from radfuse.serving.images import limits
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.series import read_series

HU = np.random.default_rng(0).integers(-1000, 2000, (5, 6, 7)).astype(np.int16)


def reason(source, **how):
    with pytest.raises(UnreadableImage) as caught:
        read_series(source, **how)
    return caught.value.reason


def test_slices_are_sorted_by_position_and_not_by_name(build):
    volume = read_series(build.series(HU, order=[3, 0, 4, 1, 2]))
    assert volume.voxels.dtype == np.int16
    assert (volume.voxels == HU).all()
    assert volume.spacing_mm == pytest.approx((2.0, 0.5, 0.7))


def test_the_affine_leads_to_the_patient(build):
    affine = read_series(build.series(HU)).affine
    assert affine @ [0, 0, 0, 1] == pytest.approx([-10, -20, 30, 1])
    assert affine @ [1, 2, 3, 1] == pytest.approx([-10 + 3 * 0.7, -20 + 2 * 0.5, 32, 1])


def test_an_oblique_series_is_sorted_along_its_normal(build):
    turn = np.radians(30)
    columns, rows = np.array([1, 0, 0]), np.array([0, np.cos(turn), np.sin(turn)])
    normal = np.cross(columns, rows)
    folder = build.folder / "oblique"
    for number, index in enumerate([2, 0, 1]):
        build.slice(folder / f"{number}.dcm", HU[index], index * 3 * normal, (*columns, *rows))
    volume = read_series(folder)
    assert (volume.voxels == HU[:3]).all()
    assert volume.affine[:3, 0] == pytest.approx(3 * normal)


def test_a_tilted_gantry_shears_the_grid(build):
    folder = build.folder / "tilted"
    for index in range(4):
        build.slice(folder / f"{index}.dcm", HU[index], (0, 0.4 * index, 2 * index))
    assert read_series(folder).affine[:3, 0] == pytest.approx([0, 0.4, 2])


def test_each_slice_is_rescaled_by_its_own_tags(build):
    folder = build.folder / "rescaled"
    for index in range(3):
        tags = {"RescaleSlope": index + 1, "RescaleIntercept": -1024 * (index + 1)}
        build.slice(folder / f"{index}.dcm", HU[index] // 8, (0, 0, index), **tags)
    expected = np.stack([(HU[index] // 8) * (index + 1) for index in range(3)])
    assert (read_series(folder).voxels == expected).all()


def test_fractional_slopes_give_floating_point_values(build):
    volume = read_series(build.series(HU, RescaleSlope="0.5", RescaleIntercept="0"))
    assert volume.voxels.dtype == np.float32
    assert volume.voxels == pytest.approx((HU + 1024) * 0.5)


def test_files_can_be_named_one_by_one(build):
    files = sorted(build.series(HU).iterdir())
    assert (read_series(files).voxels == HU).all()
    assert (read_series([str(file) for file in files]).voxels == HU).all()


def test_other_files_in_the_folder_are_passed_over(build):
    folder = build.series(HU)
    (folder / "readme.txt").write_text("exported on a Monday")
    (folder / "empty").touch()
    (folder / ".hidden").write_bytes(b"\0" * 200)
    (folder / "below").mkdir()
    report = dcmread(folder / "000.dcm")
    del report.PixelData, report.Rows, report.Columns
    report.SeriesInstanceUID = "1.2.3"
    report.save_as(folder / "report.dcm")
    assert "its Modality" not in str(read_series(folder).shape)
    assert (read_series(folder).voxels == HU).all()


def test_localizers_are_passed_over(build):
    folder = build.series(HU)
    tags = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    build.slice(folder / "scout.dcm", HU[0], (0, 0, 0), (0, 1, 0, 0, 0, -1), **tags)
    assert (read_series(folder).voxels == HU).all()


def test_a_missing_slice_is_an_error_that_says_where(build):
    folder = build.series(HU)
    (folder / "001.dcm").unlink()  # the slice at 36 mm
    found = reason(folder)
    assert "1 slice(s) are missing between 34.00 and 38.00 mm" in found
    assert "the others are 2.00 mm apart" in found


def test_several_missing_slices_are_counted(build):
    volume = np.zeros((9, 4, 4), np.int16)
    folder = build.series(volume, order=[0, 1, 2, 5, 6, 8])
    assert "2 slice(s) are missing between 34.00 and 40.00 mm" in reason(folder)
    assert "(2 such gaps)" in reason(folder)


def test_two_slices_at_one_place_are_an_error(build):
    folder = build.series(HU)
    (folder / "copy.dcm").write_bytes((folder / "002.dcm").read_bytes())
    assert "two slices lie at the same place, 34.00 mm" in reason(folder)


def test_unevenly_spaced_slices_are_an_error(build):
    folder = build.folder / "uneven"
    for index, z in enumerate([0, 2, 4, 6.5, 8.5]):
        build.slice(folder / f"{index}.dcm", HU[index], (0, 0, z))
    assert "slices are 2.50 mm apart at 4.00 mm" in reason(folder)


def test_rounded_positions_are_even_enough(build):
    folder = build.folder / "rounded"
    for index in range(5):
        build.slice(folder / f"{index}.dcm", HU[index], (0, 0, round(index * 0.6667, 2)))
    assert read_series(folder).shape == HU.shape


def test_a_slice_beside_the_others_is_an_error(build):
    folder = build.series(HU)
    build.slice(folder / "004.dcm", HU[0], (40, -20, 30))
    assert "off the line of the others" in reason(folder)


def test_several_series_are_listed_by_their_counts_alone(build, identity):
    folder = build.series(HU)
    for index in range(2):
        tags = {"SeriesInstanceUID": "1.2.9", "SeriesDescription": identity[0]}
        build.slice(folder / f"other{index}.dcm", HU[index], (0, 0, index), **tags)
    found = reason(folder)
    assert found == "it holds 2 series, of 5, 2 images; put each in a folder of its own"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"orientation": (0, 1, 0, 0, 0, -1)}, "differ in orientation"),
        ({"spacing": (0.5, 0.8)}, "differ in PixelSpacing"),
        ({"Modality": "MR"}, "expected images of Modality (0008,0060) CT, it is MR"),
        ({"Modality": "ZWIEBELFISCH"}, "Modality (0008,0060) CT, it is another modality"),
        ({"ImagePositionPatient": None}, "expected 3 numbers in ImagePositionPatient, got none"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two unit vectors at a right angle"),
        ({"PixelSpacing": [0, 0]}, "PixelSpacing (0028,0030) is not between"),
        ({"PixelData": None}, "there is no pixel data"),
        ({"NumberOfFrames": 4}, "holds 4 frames without their positions"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    ],
)
def test_a_slice_that_does_not_belong_is_an_error(build, tags, expected, identity):
    folder = build.series(HU)
    build.slice(folder / "odd.dcm", HU[0], (-10, -20, 40), **tags)
    found = reason(folder)
    assert expected in found
    assert not any(text in found for text in identity)


def test_images_of_another_size_are_an_error(build):
    folder = build.series(HU)
    build.slice(folder / "odd.dcm", np.zeros((9, 9)), (-10, -20, 40))
    assert "7 x 6 and 9 x 9 pixels" in reason(folder)


def test_a_truncated_slice_is_an_error_that_names_its_file(build):
    folder = build.series(HU)
    file = folder / "002.dcm"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UnreadableImage) as caught:
        read_series(folder)
    assert caught.value.path == file
    assert "002.dcm" in str(caught.value)
    assert "002" not in caught.value.reason


def test_a_single_slice_is_as_thick_as_it_says(build):
    path = build.slice(build.folder / "one.dcm", HU[0], (0, 0, 0), SliceThickness=2.5)
    assert read_series([path]).spacing_mm == pytest.approx((2.5, 0.5, 0.7))
    path = build.slice(build.folder / "two.dcm", HU[0], (0, 0, 0), SliceThickness=None)
    assert "single slice without SliceThickness" in reason([path])


def test_an_empty_folder_and_no_files_are_errors(build):
    assert "no DICOM image" in reason(build.folder)
    assert "no file is named" in reason([])


def test_too_many_files_are_refused(build, monkeypatch):
    monkeypatch.setattr("radfuse.serving.images.series.MAX_FILES", 3)
    assert "5 files; the limit is 3" in reason(build.series(HU))


def test_too_many_voxels_are_refused(build, monkeypatch):
    monkeypatch.setattr(limits, "MAX_VOXELS", 100)
    assert "limit is 100" in reason(build.series(HU))


def enhanced(build, sequence_of, order, **tags):
    """A multi-frame CT whose frames are stored in an order."""
    groups = [
        {
            "PlanePositionSequence": sequence_of({"ImagePositionPatient": [0.0, 0.0, 3.0 * index]}),
            "PixelValueTransformationSequence": sequence_of(
                {"RescaleSlope": 1, "RescaleIntercept": -1024 - index, "RescaleType": "HU"}
            ),
        }
        for index in order
    ]
    shared = {
        "PlaneOrientationSequence": sequence_of({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
        "PixelMeasuresSequence": sequence_of({"PixelSpacing": [0.5, 0.7], "SliceThickness": 3}),
    }
    stored = np.stack([HU[index] + 1024 + index for index in order]).astype(np.int16)
    fields = {
        "Modality": "CT",
        "SOPClassUID": EnhancedCTImageStorage,
        "NumberOfFrames": len(order),
        "SharedFunctionalGroupsSequence": sequence_of(shared),
        "PerFrameFunctionalGroupsSequence": sequence_of(*groups),
        "PixelData": stored.tobytes(),
    }
    return build.dicom(stored[0], "enhanced.dcm", **{**fields, **tags})


def test_a_multi_frame_ct_is_read_as_a_volume(build, sequence_of):
    volume = read_series(enhanced(build, sequence_of, [3, 1, 0, 2]))
    assert (volume.voxels == HU[:4]).all()
    assert volume.spacing_mm == pytest.approx((3, 0.5, 0.7))


def test_a_multi_frame_ct_with_a_missing_frame_is_an_error(build, sequence_of):
    assert "1 slice(s) are missing" in reason(enhanced(build, sequence_of, [0, 1, 3, 4]))


def test_frames_and_their_descriptions_must_agree_in_number(build, sequence_of):
    assert "says 9 frames and describes 3" in reason(
        enhanced(build, sequence_of, [0, 1, 2], NumberOfFrames=9)
    )


def test_the_real_series_is_whole_and_in_order(real_data):
    folder = real_data / "ct_chest_dicom_series"
    volume = read_series(folder)
    assert volume.shape == (45, 512, 512)
    assert volume.spacing_mm[0] == pytest.approx(3)
    headers = [(dcmread(file, stop_before_pixels=True), file) for file in folder.glob("*.dcm")]
    headers.sort(key=lambda pair: float(pair[0].ImagePositionPatient[2]))
    for index in (0, 20, 44):
        dataset = dcmread(headers[index][1])
        reference = dataset.pixel_array * dataset.RescaleSlope + dataset.RescaleIntercept
        assert (volume.voxels[index] == reference).all()
        assert volume.affine @ [index, 0, 0, 1] == pytest.approx([*dataset.ImagePositionPatient, 1], abs=1e-3)


def test_the_real_series_without_one_slice_says_which(real_data, tmp_path):
    files = sorted(
        (real_data / "ct_chest_dicom_series").glob("*.dcm"),
        key=lambda file: float(dcmread(file, stop_before_pixels=True).ImagePositionPatient[2]),
    )
    where = float(dcmread(files[20], stop_before_pixels=True).ImagePositionPatient[2])
    found = reason(files[:20] + files[21:])
    assert f"missing between {where - 3:.2f} and {where + 3:.2f} mm" in found
