"""MR cases have BraTS names and labels, lie as their affines say, and hold the volumes of the truth."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from radfuse.phantom import brain, cases
from radfuse.phantom.diseases import REGION_SIZES

NAMES = ("flair", "t1", "t1ce", "t2", "seg")


@pytest.fixture(scope="module")
def table(cohort):
    return pd.read_csv(cohort / "mri/cases.csv")


def load(cohort, row, name):
    return nib.load(cohort / row.path / f"{row.case}_{name}.nii.gz")


def test_a_case_has_four_sequences_and_a_segmentation_on_one_grid(cohort, table):
    assert len(table) >= 6
    for row in table.itertuples():
        assert len(list((cohort / row.path).iterdir())) == 5
        images = {name: load(cohort, row, name) for name in NAMES}
        assert row.case.startswith(row.original_patient_id)
        assert len({image.shape for image in images.values()}) == 1
        for image in images.values():
            assert np.allclose(image.affine, images["seg"].affine)
            assert image.header["qform_code"] == image.header["sform_code"] == 1
        labels = np.asarray(images["seg"].dataobj)
        assert set(np.unique(labels)) <= {0, 1, 2, 4}
        outside = np.asarray(images["t1"].dataobj) == 0
        assert 0.2 < outside.mean() < 0.8, "the skull is stripped"
        assert not labels[outside].any()
        assert all((np.asarray(images[name].dataobj)[outside] == 0).all() for name in NAMES)


def test_cases_lie_in_several_orientations(cohort, table):
    codes = {nib.aff2axcodes(load(cohort, row, "seg").affine) for row in table.itertuples()}
    assert len(codes) >= 3


@pytest.mark.parametrize("codes", cases.ORIENTATIONS)
def test_turned_volumes_show_the_same_brain_at_the_same_place(tmp_path, codes):
    space = brain.Space.of(24, 1.2)
    volume = np.arange(np.prod(space.shape), dtype=np.int16).reshape(space.shape)
    cases.write(tmp_path / "case_t1.nii.gz", volume, space, codes, "NOR-TEST234567")
    image = nib.load(tmp_path / "case_t1.nii.gz")
    assert nib.aff2axcodes(image.affine) == tuple(codes)
    for index in ((0, 0, 0), (3, 20, 5), tuple(n - 1 for n in space.shape)):
        world = space.affine @ [*index, 1.0]
        found = np.round(np.linalg.solve(image.affine, world)[:3]).astype(int)
        assert np.asarray(image.dataobj)[tuple(found)] == volume[index]


def test_the_affine_puts_the_patients_left_at_negative_x_of_nifti():
    space = brain.Space.of(24, 1.0)
    assert nib.aff2axcodes(space.affine) == ("L", "P", "S")
    centre = (np.array(space.shape) - 1) / 2
    assert np.allclose(space.affine @ [*centre, 1.0], [0, 0, 0, 1], atol=1e-4)


def regions_cm3(image):
    labels = np.asarray(image.dataobj)
    voxel_cm3 = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    wanted = ((1, 2, 4), (1, 4), (4,))
    return [np.isin(labels, some).sum() * voxel_cm3 for some in wanted], voxel_cm3


def test_regions_have_the_volumes_of_the_truth(cohort, table):
    truth = pd.read_parquet(cohort / "truth.parquet").set_index("accession_number")
    for row in table.itertuples():
        found, voxel_cm3 = regions_cm3(load(cohort, row, "seg"))
        wanted = truth.loc[row.accession_number, [f"volume_cm3:{name}" for name in REGION_SIZES]]
        assert found == pytest.approx(list(wanted), abs=1.01 * voxel_cm3)


def test_an_oracle_that_measures_the_volumes_recovers_the_expressions(cohort, table):
    truth = pd.read_parquet(cohort / "truth.parquet").set_index("accession_number")
    logs = np.log([regions_cm3(load(cohort, row, "seg"))[0] for row in table.itertuples()])
    features = np.column_stack([logs, np.ones(len(logs))])
    for size in REGION_SIZES.values():
        wanted = truth.loc[table.accession_number, f"expression:{size.disease.name}"].to_numpy()
        fitted = features @ np.linalg.lstsq(features, wanted, rcond=None)[0]
        assert np.corrcoef(fitted, wanted)[0, 1] > 0.97


def test_tissues_differ_as_in_real_sequences(cohort, table):
    row = next(table.itertuples())
    labels = np.asarray(load(cohort, row, "seg").dataobj)
    mean = {
        (name, label): np.asarray(load(cohort, row, name).dataobj)[labels == label].mean()
        for name in NAMES[:4]
        for label in (1, 2, 4)
    }
    assert mean["t1ce", 4] > 1.3 * max(mean["t1ce", 1], mean["t1ce", 2]), "enhancing tumour takes up contrast"
    assert mean["flair", 2] > 1.3 * mean["flair", 1], "oedema is bright, necrosis is not"
