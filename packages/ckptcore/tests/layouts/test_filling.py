"""What the presets share."""

import math

import pytest

from ckptcore.errors import UsageError
from ckptcore.layouts.filling import literal, measured, metric_literal, series
from ckptcore.layouts.layout import Moment
from ckptcore.rules import Progress


def moment(history, metrics=None, epoch=2, epoch_end=True):
    progress = Progress(epoch, epoch_end, 0, metrics=metrics or {})
    return Moment(progress, history, {}, None, "f1", 0, "")


def test_what_was_measured_now_comes_before_the_last_epoch():
    assert measured(moment({"f1": [0.1, 0.2, 0.3]}, {"f1": 0.9}), "f1", "val_f1") == 0.9
    assert measured(moment({"f1": [0.1, 0.2, 0.3]}), "f1", "val_f1") == 0.3


def test_within_an_epoch_the_last_finished_one_counts():
    assert measured(moment({"f1": [0.1, 0.2]}, epoch_end=False), "f1") == 0.2
    assert moment({"f1": [0.1, 0.2]}, epoch_end=False).metric == 0.2


def test_what_was_never_measured_is_nan():
    assert math.isnan(measured(moment({}), "f1"))
    assert math.isnan(measured(moment({"f1": [0.1]}), "f1"))
    assert math.isnan(moment({}).metric)


def test_a_history_half_under_each_name_is_one():
    assert series(moment({"f1": [math.nan, 0.2], "val_f1": [0.1]}), "f1", "val_f1") == [0.1, 0.2]
    assert series(moment({}), "f1") == []


def test_names_that_would_lead_elsewhere_are_refused():
    for name in ("", ".hidden", "a/b", "a\\b", "a\0b"):
        with pytest.raises(UsageError, match="part of a file name"):
            literal(name, "the name")
    assert metric_literal("val/f1") == "val_f1"
