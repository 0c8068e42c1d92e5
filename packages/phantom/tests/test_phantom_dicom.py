"""What is written is DICOM by its rules, and shows the same picture however it is encoded."""

from datetime import date
from itertools import product

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import CTImageStorage

from radfuse.phantom import chest_volume, nodules, series
from radfuse.phantom.people import Person, Study
from radfuse.phantom.radiographs import COMPRESSED, UNCOMPRESSED, Encoding, write
from radfuse.phantom.series import Layout

PERSON = Person("NOR-TEST234567", "Fjellelobakken^Isoldarius", "O", date(1950, 6, 15), "nordhavn")
STUDY = Study("E23456789ABC", date(2020, 6, 14), "Ridgeway", "DXR Nova", 0)
ENCODINGS = [
    Encoding(digital, bits, inverted, slope, intercept, exact, second, syntax)
    for digital, bits, inverted, (slope, intercept), (exact, second), syntax in product(
        (True, False),
        (12, 16),
        (True, False),
        ((1.0, 0.0), (2.0, -150.0), (0.5, 25.0)),
        ((False, False), (True, True)),
        (*UNCOMPRESSED, *COMPRESSED),
    )
]


def shown(dataset):
    """The picture as a viewer shows it, 0 black to 1 white, by pydicom's own functions."""
    rescaled = apply_modality_lut(dataset.pixel_array, dataset)
    windowed = apply_voi_lut(rescaled.astype(np.float64), dataset)
    # pydicom maps the window to the range of the stored values after rescaling.
    ends = np.array([0.0, 2.0**dataset.BitsStored - 1]) * dataset.RescaleSlope + dataset.RescaleIntercept
    picture = (windowed - ends[0]) / (ends[1] - ends[0])
    return 1.0 - picture if dataset.PhotometricInterpretation == "MONOCHROME1" else picture


def test_every_encoding_shows_the_same_picture(tmp_path):
    picture = np.linspace(0.0, 1.0, 67 * 64, dtype=np.float32).reshape(67, 64)
    for number, encoding in enumerate(ENCODINGS):
        path = tmp_path / f"{number}.dcm"
        write(path, picture, encoding, PERSON, STUDY, "PA")
        dataset = pydicom.dcmread(path)
        assert np.abs(shown(dataset) - picture).max() < 4e-4, encoding
        assert dataset.file_meta.TransferSyntaxUID == encoding.transfer_syntax
        assert dataset.BitsStored == encoding.bits


def test_random_encodings_cover_what_machines_do_and_digital_ones_never_rescale():
    drawn = [Encoding.of(np.random.default_rng(seed)) for seed in range(400)]
    assert {e.transfer_syntax for e in drawn} == {*UNCOMPRESSED, *COMPRESSED}
    assert {(e.digital, e.bits, e.inverted) for e in drawn} == set(
        product((True, False), (12, 16), (True, False))
    )
    assert {e.slope for e in drawn if e.digital} == {1.0}
    assert {e.slope for e in drawn if not e.digital} == {0.5, 1.0, 2.0}


def test_radiographs_say_whose_they_are_and_agree_with_the_table(cohort):
    table = pd.read_csv(cohort / "xray/studies.csv").set_index("accession_number")
    people = pd.read_csv(cohort / "patients.csv").set_index("original_patient_id")
    assert len(table) >= 6
    for accession, row in table.iterrows():
        dataset = pydicom.dcmread(cohort / row["path"])
        person = people.loc[row["original_patient_id"]]
        assert dataset.AccessionNumber == accession
        assert dataset.PatientID == row["original_patient_id"]
        assert str(dataset.PatientName) == person["patient_name"]
        assert dataset.PatientBirthDate == person["birth_date"].replace("-", "")
        assert dataset.PatientAge == f"{row['age_years']:03d}Y"
        assert (dataset.PatientSex, dataset.ViewPosition) == (row["sex"], row["view"])
        assert dataset.ManufacturerModelName == row["scanner_model"]
        assert dataset.StudyDate == row["study_date"].replace("-", "")
        assert dataset.Modality in {"DX", "CR"}
        assert len(dataset.SOPInstanceUID) <= 64 and dataset.SOPInstanceUID.is_valid


def test_files_are_standard_dicom_without_warnings_from_strict_reading(cohort):
    for path in sorted(cohort.rglob("*.dcm"))[::7]:
        with pydicom.config.strict_reading(), open(path, "rb") as file:
            dataset = pydicom.dcmread(file)
            for element in dataset.iterall():
                assert element.VM >= 0
        assert path.read_bytes()[128:132] == b"DICM"


def read_series(folder):
    """Slices sorted by their position along the normal, and the axes from (slice, row, column) to LPS mm."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    along_row, along_column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    slices.sort(key=lambda one: normal @ np.array(one.ImagePositionPatient, float))
    first, second = (np.array(one.ImagePositionPatient, float) for one in slices[:2])
    spacing = np.array(slices[0].PixelSpacing, float)
    axes = np.stack([second - first, along_column * spacing[0], along_row * spacing[1]], axis=1)
    volume = np.stack([apply_modality_lut(one.pixel_array, one) for one in slices])
    return slices, volume, axes, first


def test_series_have_one_geometry_unique_ids_and_names_out_of_order(cohort):
    table = pd.read_csv(cohort / "ct/series.csv")
    for row in table.itertuples():
        slices, volume, axes, _ = read_series(cohort / row.path)
        assert len(slices) == row.slices == volume.shape[0]
        assert len({one.SOPInstanceUID for one in slices}) == len(slices)
        assert len({one.SeriesInstanceUID for one in slices}) == 1
        steps = np.diff([float(one.ImagePositionPatient[2]) for one in slices])
        assert np.abs(steps - steps[0]).max() < 2e-3
        assert np.linalg.norm(axes[:, 0]) > 1.3 * np.linalg.norm(axes[:, 1]), "slices thicker than pixels"
        assert slices[0].SOPClassUID == CTImageStorage
        by_name = [pydicom.dcmread(p).InstanceNumber for p in sorted((cohort / row.path).iterdir())]
        assert by_name not in (sorted(by_name), sorted(by_name, reverse=True))
        assert volume.min() < -950 and 400 < volume.max() < 3072


def test_nodules_are_where_the_table_says(cohort):
    table = pd.read_csv(cohort / "ct/series.csv").set_index("accession_number")
    positions = pd.read_csv(cohort / "ct/nodules.csv")
    assert len(positions) >= 8
    for row in positions.itertuples():
        _, volume, axes, origin = read_series(cohort / table.path[row.accession_number])
        index = np.linalg.solve(axes, np.array([row.x_mm, row.y_mm, row.z_mm]) - origin)
        centre = tuple(np.round(index).astype(int))
        reach = 2 + np.ceil(1.2 * row.diameter_mm / np.linalg.norm(axes, axis=0)).astype(int)
        around = volume[tuple(slice(max(0, c - r), c + r) for c, r in zip(centre, reach, strict=True))]
        # Dense in the middle, lung about it.
        assert volume[centre] > -500
        assert np.percentile(around, 25) < -700


@pytest.mark.parametrize("prone", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_a_series_reads_back_as_it_was_drawn_however_it_lies_and_is_stored(tmp_path, prone, signed):
    layout = Layout(16, 5, 2.0, 4.0, -10.0, (3.0, -150.0, 77.0), signed, prone, True)
    volume = np.random.default_rng(0).uniform(-1000, 2000, (5, 16, 16)).astype(np.float32)
    series.write(tmp_path, volume, layout, PERSON, STUDY, np.random.default_rng(1))
    slices, read, axes, first = read_series(tmp_path)
    assert slices[0].PixelRepresentation == signed
    grid = layout.grid
    for index in ((0, 0, 0), (4, 15, 3), (2, 7, 9)):
        d, h, w = index
        inside = (float(grid.x[w]), float(grid.y[h]), float(grid.z[d]))
        found = np.round(np.linalg.solve(axes, np.array(layout.to_patient(inside)) - first)).astype(int)
        assert read[tuple(found)] == pytest.approx(volume[index], abs=0.51)


def test_the_more_severe_a_nodule_the_larger_denser_and_more_spiculated_it_is():
    grid = Layout(64, 40, 1.0, 1.0, -20.0, (0.0, 0.0, 0.0), True, False, True).grid
    volumes, spikes, brightness = [], [], []
    for severity in (-1.5, -0.5, 0.5, 1.5, 2.5):
        volume = np.full((40, 64, 64), chest_volume.LUNG, np.float32)
        drawn = nodules.nodule(severity, (0.0, 0.0, 0.0), np.random.default_rng(3))
        nodules.draw(volume, grid, drawn, np.random.default_rng(4))
        dense = volume > -500
        volumes.append(dense.sum())
        spikes.append(drawn.spikes)
        brightness.append(volume[18:22, 30:34, 30:34].mean())
    assert volumes == sorted(volumes) and volumes[-1] > 10 * volumes[0]
    assert brightness == sorted(brightness)
    assert spikes == sorted(spikes) and spikes[0] < 0.15 < 0.7 < spikes[-1]
