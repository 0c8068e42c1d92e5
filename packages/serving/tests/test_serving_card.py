"""A card is read whole or refused with what is wrong, whatever is in the file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfuse.serving.card import MAX_CARD_BYTES, Card, NoModel, card_path, no_model
from radfuse.serving.errors import CardError
from radfuse.serving.model import OnnxModel


def segmentation(card_json):
    return {
        **card_json(),
        "task": "segmentation",
        "labels": [],
        "thresholds": {},
        "calibration": {},
        "inputs": ["t1", "t2"],
        "preprocessing": {"kind": "mr_volume", "sequences": ["t1", "t2"]},
        "classes": ["background", "core", "oedema"],
        "regions": {"whole_tumour": [1, 2], "tumour_core": [1]},
        "sliding_window": {"size": [64, 64, 64], "overlap": 0.25},
    }


def features(card_json):
    return {
        **card_json(),
        "task": "features",
        "inputs": ["ct:malignant", "available:ct"],
        "preprocessing": {},
    }


@pytest.mark.parametrize("kind", [lambda card: card(), segmentation, features])
def test_a_card_that_is_written_is_read_again(tmp_path, card_json, kind):
    card = Card.from_json(kind(card_json))
    card.write(tmp_path / "model.json")
    assert Card.read(tmp_path / "model.json") == card
    assert json.loads((tmp_path / "model.json").read_text())["format"] == 1


def test_a_cards_place_is_beside_its_model(tmp_path):
    assert card_path(tmp_path / "xray_onnx.onnx") == tmp_path / "xray_onnx.json"


def test_a_card_without_a_model_says_why_there_is_none(tmp_path):
    (tmp_path / "ensemble_onnx.onnx").write_bytes(b"")
    (tmp_path / "ensemble_onnx.json").write_text(json.dumps(no_model("3 of the 40 patients have two")))
    expected = r"ensemble_onnx\.json: .*not applicable here: 3 of the 40 patients have two"
    with pytest.raises(NoModel, match=expected):
        OnnxModel(tmp_path / "ensemble_onnx.onnx")


@pytest.mark.parametrize(
    ("why", "expected"),
    [("a\nb" + "c" * 5000, "a bccc"), (["a"], "gives no reason"), ("", "gives no reason")],
)
def test_the_reason_of_a_card_without_a_model_is_short_enough_for_a_message(why, expected):
    with pytest.raises(NoModel, match=expected) as caught:
        Card.from_json({"status": "not_applicable", "why": why})
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, "expected a card of format 1, got 2; update radfuse-serving"),
        ({"format": None}, "expected a card of format 1, got None"),
        ({"format": True}, "format"),
        ({"surprise": 1}, "fields that are not known: 'surprise'"),
        ({"digest_sha256": "abc"}, "digest_sha256: expected 64 hexadecimal digits"),
        ({"digest_sha256": "A" * 64}, "64 hexadecimal digits"),
        ({"task": "regression"}, "one of classification, segmentation, features"),
        ({"labels": []}, "at least one label"),
        ({"labels": ["a", "a"]}, "list of different names"),
        ({"labels": "Effusion"}, "list of different names"),
        ({"classes": ["x", "y"]}, "has no classes"),
        ({"inputs": []}, "inputs: expected"),
        ({"thresholds": {"Hernia": 0.5}}, "a threshold is for a label that is not there"),
        ({"thresholds": {"Mass": float("nan")}}, "a number for each label"),
        ({"calibration": {"Hernia": {}}}, "a calibration is for a label that is not there"),
        ({"preprocessing": {"size": [8, 8]}}, "names no kind"),
        ({"preprocessing": [1]}, "preprocessing: expected an object"),
        ({"parity": {"tolerance": float("nan")}}, "parity: expected an object"),
        ({"sliding_window": {"size": [8, 8, 8], "overlap": 0.5}}, "has no sliding window"),
        ({"opset": "20"}, "whole number or null"),
        ({"created": "yesterday"}, "a time with its zone"),
        ({"created": "2026-11-21T12:00:00"}, "a time with its zone"),
        ({"modality": ""}, "modality: expected a name"),
        ({"version": 1.1}, "version: expected text"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(card_json, change, expected):
    with pytest.raises(CardError) as caught:
        Card.from_json({**card_json(), **change})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"classes": ["background"]}, "at least two classes"),
        ({"labels": ["a"]}, "has classes, no labels"),
        ({"regions": {"core": [3]}}, "a class that is not there"),
        ({"regions": {"core": []}}, "lists of class indices"),
        ({"regions": {"core": [-1]}}, "lists of class indices"),
        ({"sliding_window": {"size": [64, 64], "overlap": 0.5}}, "sliding_window"),
        ({"sliding_window": {"size": [64, 64, 64], "overlap": 1}}, "sliding_window"),
        ({"sliding_window": {"size": [64, 64, 64]}}, "sliding_window"),
        ({"sliding_window": {"size": [64, 64, 10**9], "overlap": 0.5}}, "sliding_window"),
    ],
)
def test_a_segmentation_must_agree_with_itself(card_json, change, expected):
    with pytest.raises(CardError, match=expected):
        Card.from_json({**segmentation(card_json), **change})


@pytest.mark.parametrize("field", ["modality", "digest_sha256", "inputs", "preprocessing", "task", "created"])
def test_a_missing_field_is_named(card_json, field):
    data = card_json()
    del data[field]
    with pytest.raises(CardError, match=f"lacks {field}"):
        Card.from_json(data)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "expected a card as a JSON object"),
        (b'{"format": 1, "thresholds": {"a": NaN}}', "no JSON"),
    ],
)
def test_what_is_no_card_is_refused_with_its_name(tmp_path, content, expected):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(CardError) as caught:
        Card.read(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("model.json: ")


def test_missing_and_huge_cards_are_refused(tmp_path):
    with pytest.raises(CardError, match="belongs beside its model file"):
        Card.read(tmp_path / "absent.json")
    (tmp_path / "huge.json").write_bytes(b" " * (MAX_CARD_BYTES + 1))
    with pytest.raises(CardError, match="more than"):
        Card.read(tmp_path / "huge.json")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_no_value_of_any_field_raises_anything_but_a_card_error(card_json, data):
    fields = card_json()
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(fields)), values, max_size=3))
    try:
        card = Card.from_json({**fields, **changed})
    except CardError:
        return
    assert Card.from_json(json.loads(json.dumps(card.as_json()))) == card
