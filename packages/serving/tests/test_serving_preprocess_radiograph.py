"""A radiograph fits into its size undistorted, without aliasing, in 8 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radfuse.serving import preprocess
from radfuse.serving.errors import InputError, SpecError
from radfuse.serving.preprocess.radiograph import fitted

SPEC = {"kind": "radiograph", "size": [8, 8]}


def test_stored_in_8_bits_and_given_as_three_channels_of_0_to_1(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "a.png")
    prepared = preprocess.prepare(SPEC, {"image": tmp_path / "a.png"})
    assert prepared.geometry is None
    assert prepared.array.dtype == np.uint8
    assert (prepared.array == grey).all()
    image = preprocess.to_input(SPEC, prepared.array)
    assert image.dtype == np.float32
    assert image.shape == preprocess.input_shape(SPEC) == (3, 8, 8)
    assert (image == grey.astype(np.float32) / 255).all()


sides = st.integers(1, 40)


@given(sides, sides, sides, sides, st.floats(0, 1, width=32))
def test_a_flat_picture_stays_flat_with_black_beside_it(height, width, rows, columns, grey):
    fit = fitted(np.full((height, width), grey, np.float32), rows, columns)
    assert fit.shape == (rows, columns)
    inside = fit != 0
    assert fit[inside] == pytest.approx(grey, abs=1e-6)
    if grey > 0:
        filled_rows, filled_columns = inside.any(1).sum(), inside.any(0).sum()
        assert inside.sum() == filled_rows * filled_columns
        assert filled_rows == rows or filled_columns == columns
        scale = min(rows / height, columns / width)
        assert abs(filled_rows - max(1, height * scale)) <= 0.5 + 1e-9
        assert abs(filled_columns - max(1, width * scale)) <= 0.5 + 1e-9


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
def test_shrinking_by_a_whole_factor_takes_means_of_blocks(rows, columns, factor):
    pixels = np.random.default_rng(0).random((rows * factor, columns * factor)).astype(np.float32)
    blocks = pixels.reshape(rows, factor, columns, factor).mean((1, 3))
    assert fitted(pixels, rows, columns) == pytest.approx(blocks, abs=1e-6)


def test_shrinking_by_a_broken_factor_keeps_the_mean():
    pixels = np.random.default_rng(0).random((97, 97)).astype(np.float32)
    assert fitted(pixels, 32, 32).mean() == pytest.approx(pixels.mean(), abs=1e-6)


def test_growing_interpolates():
    ramp = np.linspace(0, 1, 8, dtype=np.float32)[None].repeat(8, 0)
    grown = fitted(ramp, 16, 16)
    assert (np.diff(grown, axis=1) >= 0).all()
    assert grown[:, 5] == pytest.approx(grown[0, 5])
    assert np.ptp(np.diff(grown[0, 1:-1])) == pytest.approx(0, abs=1e-6)


def test_real_radiographs_fill_their_size(real_data):
    spec = {"kind": "radiograph", "size": [224, 224]}
    for file in sorted((real_data / "nih_chestxray14_original_1024").rglob("*.png")):
        array = preprocess.prepare(spec, {"image": file}).array
        assert array.shape == (224, 224)
        assert array.std() > 20


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"kind": "sonogram"},
        {"kind": "radiograph"},
        {"kind": "radiograph", "size": [8]},
        {"kind": "radiograph", "size": [8, 0]},
        {"kind": "radiograph", "size": [8, 8.0]},
        {"kind": "radiograph", "size": [8, True]},
        {"kind": "radiograph", "size": [8, 100_000]},
        {"kind": "radiograph", "size": [8, 8], "seize": 1},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(spec):
    with pytest.raises(SpecError):
        preprocess.input_shape(spec)


def test_images_and_points_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected images for image"):
        preprocess.prepare(SPEC, {"t1": tmp_path / "a.png"})
    with pytest.raises(InputError, match="leave the point out"):
        preprocess.prepare(SPEC, {"image": tmp_path / "a.png"}, (1, 2, 3))


def test_another_package_can_register_a_kind(tmp_path):
    class Doubled:
        def roles(self, spec):
            return ("number",)

        def input_shape(self, spec):
            return (1,)

        def prepare(self, spec, images, point_mm, read):
            return preprocess.Prepared(np.array([int(images["number"].read_text())]), None)

        def to_input(self, spec, array):
            return array.astype(np.float32) * 2

    preprocess.register("doubled", Doubled())
    (tmp_path / "a.txt").write_text("21")
    spec = {"kind": "doubled"}
    prepared = preprocess.prepare(spec, {"number": tmp_path / "a.txt"})
    assert preprocess.to_input(spec, prepared.array) == 42
    assert preprocess.roles(spec) == ("number",)
