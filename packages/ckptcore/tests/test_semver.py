"""Version numbers are read strictly, and a version's name comes from the checkpoint's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptcore.errors import VersionRefused
from ckptcore.semver import Semver, VersionName, base_name, split_name, version_of

numbers = st.builds(Semver, *[st.integers(0, 10**6)] * 3)


@given(
    numbers,
    st.sampled_from(["resnet50", "3dcnn", "u-net", "a_v1", "x_best"]),
    st.sampled_from([".pth", ".pt", ".ckpt"]),
)
def test_a_version_name_reads_back_as_its_parts(number, base, suffix):
    name = VersionName(base, number, suffix)
    assert split_name(str(name)) == name
    assert version_of(str(name)) == number == Semver.parse(str(number))
    assert base_name(str(name)) == base_name(base)


@given(numbers, st.sampled_from(["major", "minor", "patch"]))
def test_a_bump_is_the_next_number_of_its_part(number, part):
    bumped = number.bumped(part)
    assert bumped > number
    index = ["major", "minor", "patch"].index(part)
    assert bumped[:index] == number[:index] and bumped[index] == number[index] + 1
    assert not any(bumped[index + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.0",
        "v1.0.0",
        "1.0.0.0",
        "01.0.0",
        "1.0.0-rc1",
        "1.0.0+x",
        " 1.0.0",
        "1.0.0\n",
        "-1.0.0",
        "1.0.٣",
        "9" * 30,
    ],
)
def test_anything_but_three_plain_numbers_is_refused(text):
    with pytest.raises(VersionRefused, match="three numbers"):
        Semver.parse(text)


def test_an_unknown_part_is_refused():
    with pytest.raises(VersionRefused, match="major, minor, patch"):
        Semver(1, 0, 0).bumped("huge")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("resnet50_best.pth", "resnet50"),
        ("resnet50_epoch_15.pth", "resnet50"),
        ("3dcnn_latest.pth", "3dcnn"),
        ("resnet50_v1.1.0_best.pth", "resnet50"),
        ("best_model_f1_0.7130.pth", "model"),
        ("checkpoint_epoch05_stage1_f1_0.81.pth", "model"),
        ("checkpoint_epoch_10.pt", "model"),
        ("epoch_010_checkpoint.pt", "model"),
        ("latest_checkpoint.pt", "model"),
        ("best-epoch02-val_f1-0.713.ckpt", "model"),
        ("stacker.pth", "stacker"),
        ("my-net_best.pt", "my-net"),
        ("unet_v2_best.pth", "unet_v2"),
        ("net_2_best.pth", "net_2"),
    ],
)
def test_the_base_is_the_name_without_role_epoch_and_score(name, base):
    assert base_name(name) == base


@pytest.mark.parametrize(
    "name",
    [
        "resnet50_best.pth",
        "resnet50_v1.1_best.pth",
        "resnet50_v1.1.0.pth",
        "r_v1.1.0_best.json",
        "_v1.0.0_best.pth",
    ],
)
def test_other_names_carry_no_version(name):
    assert version_of(name) is None
