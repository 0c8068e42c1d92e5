"""Files on a command line find their roles by name, and what is unclear is asked back."""

from pathlib import Path

import pytest

from radfuse.serving import Card, inputs_for
from radfuse.serving.errors import InputError

NAMES = ("t1", "t1ce", "t2", "flair")


@pytest.fixture
def mri(card_json):
    preprocessing = {"kind": "mr_volume", "sequences": list(NAMES)}
    return Card.from_json({**card_json(), "inputs": list(NAMES), "preprocessing": preprocessing})


@pytest.fixture
def xray(card_json):
    return Card.from_json(card_json())


def test_one_image_is_the_one_path(xray):
    assert inputs_for(xray, ["a.dcm"], {}) == {"image": Path("a.dcm")}
    assert inputs_for(xray, [], {"image": "a.dcm"}) == {"image": Path("a.dcm")}


@pytest.mark.parametrize(
    "files",
    [
        [f"Brats18_2013_11_1_{name}.nii.gz" for name in NAMES],
        [f"case-{name}.nii" for name in reversed(NAMES)],
        [f"{name.upper()}.nii.gz" for name in NAMES],
        [f"folder/t2_study/case_{name}" for name in NAMES],
    ],
)
def test_sequences_are_told_by_the_ends_of_names(mri, files):
    found = inputs_for(mri, files, {})
    assert list(found) == list(NAMES)
    assert sorted(map(str, found.values())) == sorted(files)
    assert found["t1"].name.lower().replace("_", "-").split(".")[0].endswith("t1")


def test_a_said_role_goes_before_names(mri):
    found = inputs_for(mri, [f"case_{name}.nii" for name in NAMES if name != "t2"], {"t2": "odd_name.nii"})
    assert found["t2"] == Path("odd_name.nii")


def test_a_case_folder_stands_for_its_files(mri, tmp_path):
    for name in (*NAMES, "seg"):
        (tmp_path / f"case_{name}.nii.gz").touch()
    found = inputs_for(mri, [tmp_path], {})
    assert found == {name: tmp_path / f"case_{name}.nii.gz" for name in NAMES}


@pytest.mark.parametrize(
    ("paths", "named", "expected"),
    [
        (["case_t1.nii"], {}, "missing: t1ce, t2, flair"),
        (["a_t1.nii", "b_t1.nii"], {}, "t1 is given twice: a_t1.nii and b_t1.nii"),
        (["brain.nii"], {}, "brain.nii: which of t1, t1ce, t2, flair it is, its name does not say"),
        ([], {"pd": "x.nii"}, "not pd"),
        (["case_t1.nii"], {"t1": "other.nii"}, "t1 is given twice"),
    ],
)
def test_what_is_unclear_is_asked_back(mri, paths, named, expected):
    with pytest.raises(InputError, match=expected):
        inputs_for(mri, paths, named)


@pytest.mark.parametrize("paths", [[], ["a.dcm", "b.dcm"]])
def test_one_image_is_not_none_or_two(xray, paths):
    with pytest.raises(InputError, match=f"{len(paths)} are given"):
        inputs_for(xray, paths, {})
