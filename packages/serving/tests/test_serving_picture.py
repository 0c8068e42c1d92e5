"""PNG and JPEG pictures become grey values, whatever kind of pixels they have."""

import numpy as np
import pytest
from PIL import Image

from radfuse.serving.images import limits
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.intensity import spread
from radfuse.serving.images.radiograph import read_radiograph

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def shown(tmp_path, image, name="a.png", **how):
    image.save(tmp_path / name, **how)
    return read_radiograph(tmp_path / name).pixels


def test_grey_values_are_parts_of_255(tmp_path):
    assert (shown(tmp_path, Image.fromarray(GREY)) == GREY.astype(np.float32) / 255).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_a_grey_picture_is_the_same_in_every_kind_of_pixels(tmp_path, mode):
    plain = shown(tmp_path, Image.fromarray(GREY))
    assert (shown(tmp_path, Image.fromarray(GREY).convert(mode), "b.png") == plain).all()


def test_colours_become_their_luminance(tmp_path):
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8))
    for mode in ("RGB", "P"):
        assert shown(tmp_path, image.convert(mode)) == pytest.approx(
            np.array([[0.299, 0.587, 0.114]]), abs=1e-6
        )


def test_what_is_transparent_lies_on_black(tmp_path):
    layers = np.full((2, 2, 4), 200, np.uint8)
    layers[..., 3] = [[255, 0], [51, 255]]
    expected = 200 / 255 * np.array([[1, 0], [0.2, 1]])
    assert shown(tmp_path, Image.fromarray(layers)) == pytest.approx(expected, abs=1e-6)


def test_sixteen_bits_are_spread_because_they_may_be_twelve(tmp_path):
    deep = GREY.astype(np.uint16) * 16
    assert shown(tmp_path, Image.fromarray(deep)) == pytest.approx(spread(deep))


def test_black_and_white_stay_so(tmp_path):
    image = Image.fromarray(GREY > 127)
    assert set(np.unique(shown(tmp_path, image))) == {0, 1}


def test_jpeg_is_read_and_turned_as_it_says(tmp_path):
    tall = Image.fromarray(np.repeat(GREY, 2, axis=0))
    upright = shown(tmp_path, tall, "a.jpg", quality=95)
    assert upright.shape == (32, 16)
    turned = tall.copy()
    turned.getexif()[0x0112] = 6
    lying = shown(tmp_path, turned, "b.jpg", quality=95, exif=turned.getexif())
    assert (lying == np.rot90(upright, -1)).all()


def test_cmyk_is_read(tmp_path):
    assert shown(tmp_path, Image.fromarray(GREY).convert("CMYK"), "a.jpg").shape == (16, 16)


def reason(path):
    with pytest.raises(UnreadableImage) as caught:
        read_radiograph(path)
    return caught.value.reason


def test_moving_pictures_are_refused(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert "several pictures" in reason(tmp_path / "a.png")


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PIXELS", 100)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    assert "16 x 16 pixels; the limit is 100" in reason(tmp_path / "a.png")


def test_a_truncated_picture_is_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        path = tmp_path / name
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-200])
        assert "damaged" in reason(path)


def test_real_rgba_files_equal_their_grey_channel(real_data):
    kinds = set()
    for file in sorted((real_data / "nih_chestxray14_original_1024").rglob("*.png")):
        with Image.open(file) as image:
            layers = np.asarray(image)
            kinds.add(image.mode)
        grey = layers if layers.ndim == 2 else layers[..., 0]
        assert (read_radiograph(file).pixels == grey.astype(np.float32) / 255).all()
    assert "RGBA" in kinds
