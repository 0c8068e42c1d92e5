import json
import math

import pytest

from ckptcore.errors import DiskFull
from ckptcore.history import write_history


def test_all_columns_are_equally_long_and_what_is_no_number_is_null(tmp_path):
    path = write_history(tmp_path / "h.json", {"loss": [1.0, math.nan, 0.5], "auc": [math.inf], "none": []})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "loss": [1.0, None, 0.5],
        "auc": [None, None, None],
        "none": [None, None, None],
    }


def test_an_empty_history_is_an_empty_object(tmp_path):
    assert json.loads(write_history(tmp_path / "h.json", {}).read_text()) == {}


def test_what_was_there_stays_when_the_new_one_does_not_fit(tmp_path, monkeypatch):
    path = write_history(tmp_path / "h.json", {"loss": [1.0]})
    monkeypatch.setattr("ckptcore.durable.free_bytes", lambda folder: 3)
    with pytest.raises(DiskFull):
        write_history(path, {"loss": [1.0, 0.5]})
    assert json.loads(path.read_text()) == {"loss": [1.0]}
