"""Prediction tables and who may read them."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from radfuse.engine import predictions
from radfuse.engine.errors import MissingStage, StaleError

STAMP = predictions.Stamp("xray", "a" * 64, "b" * 64, "c" * 16, ("Mass", "Ödem"), "d" * 64, "e" * 64)


def test_a_table_comes_back_with_its_stamp(tmp_path):
    frame = pd.DataFrame({"sample_id": ["i1", "i2"], "logit:Mass": [0.5, float("nan")]})
    path = tmp_path / "folder" / "xray.parquet"
    predictions.write(path, frame, STAMP)
    found, stamp = predictions.read(path)
    pd.testing.assert_frame_equal(found, frame)
    assert stamp == STAMP == predictions.read_stamp(path)


def test_a_table_without_a_stamp_is_refused(tmp_path):
    path = tmp_path / "xray.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(StaleError, match=r"xray\.parquet does not say which model it came from"):
        predictions.read(path)


def test_a_stamp_of_another_form_is_refused(tmp_path):
    table = pq.read_table(write_empty(tmp_path / "a.parquet"))
    pq.write_table(
        table.replace_schema_metadata({predictions.METADATA: b'{"modality": "xray"}'}), tmp_path / "b.parquet"
    )
    with pytest.raises(StaleError):
        predictions.read_stamp(tmp_path / "b.parquet")


def write_empty(path):
    predictions.write(path, pd.DataFrame({"a": [1]}), STAMP)
    return path


def test_a_missing_table_is_told_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingStage, match="run `radfuse predict-split MODALITY` first"):
        predictions.read(tmp_path / "none.parquet")
