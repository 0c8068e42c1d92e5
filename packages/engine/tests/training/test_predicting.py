"""From a published checkpoint to the prediction table."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from trainable import Pipeline, toy_pipeline, write_prepared

import ckptcore
from radfuse.engine import calibration, modality, predictions
from radfuse.engine.digests import file_digest
from radfuse.engine.errors import MissingStage, StaleError
from radfuse.engine.prepared import Prepared
from radfuse.engine.tables import columns


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    pipeline = toy_pipeline(tmp_path_factory.mktemp("trained"))
    sys.path.insert(0, str(Path(__file__).parent / "toy"))
    modality.modalities.cache_clear()
    pipeline.train()
    sys.path.remove(str(Path(__file__).parent / "toy"))
    return pipeline


@pytest.fixture
def trained(template, tmp_path):
    """A copy of a pipeline that was trained once."""
    shutil.copytree(template.root, tmp_path / "pipeline")
    return Pipeline(tmp_path / "pipeline", "toy", {"size": 8})


def test_every_held_out_sample_has_a_row_with_labels_logits_and_probabilities(trained):
    path = trained.predict()
    frame, stamp = predictions.read(path)
    rows = Prepared(trained.places, "toy").rows()
    rows = rows[rows["split"] != "train"]
    assert list(frame["sample_id"]) == list(rows["sample_id"]) and list(frame["split"]) == list(rows["split"])
    for prefix in ("label:", "logit:", "probability:", "calibrated:"):
        assert columns(frame, prefix) == ["bright", "striped"]
    assert np.array_equal(frame["label:bright"], rows["label:bright"], equal_nan=True)
    assert np.allclose(frame["probability:bright"], 1 / (1 + np.exp(-frame["logit:bright"])))
    fitted = calibration.read(trained.places.calibration("toy"))
    one = fitted.labels["bright"]
    expected = 1 / (1 + np.exp(-(frame["logit:bright"] / one.temperature + one.bias)))
    assert np.allclose(frame["calibrated:bright"], expected)
    header = ckptcore.read_header(trained.models / "tiny_best.pth")
    assert stamp.model_digest == header.model_digest and stamp.run_key == header.run_key
    assert stamp.labels == ("bright", "striped")
    assert stamp.calibration == file_digest(trained.places.calibration("toy"))


def test_workers_and_batch_size_change_no_prediction_beyond_rounding(trained):
    frame, _ = predictions.read(trained.predict())
    again, _ = predictions.read(trained.predict("predict.workers=2", "train.toy.batch_size=7"))
    assert np.allclose(frame["logit:bright"], again["logit:bright"], atol=1e-5)


def test_what_the_cohort_merges_is_calibrated_on_both_splits(trained):
    stamp = json.loads(trained.places.splits.read_text())
    trained.places.splits.write_text(json.dumps({**stamp, "few_positives": {"toy": ["bright"]}}))
    trained.predict()
    assert calibration.read(trained.places.calibration("toy")).fitted_on == "val+calibration (cross-fitted)"


def test_a_model_of_other_images_is_refused_as_stale(trained):
    rows = Prepared(trained.places, "toy").rows()
    rows.loc[0, "label:bright"] = 1 - rows.loc[0, "label:bright"]
    write_prepared(trained.root, "toy", rows, {"kind": "radiograph", "size": [8, 8]}, ["bright", "striped"])
    with pytest.raises(
        StaleError, match=r"tiny_best\.pth is stale: the images, labels and.*run `radfuse train toy` again"
    ):
        trained.predict()


def test_a_model_is_refused_when_a_patient_it_learnt_from_is_held_out_now(trained):
    rows = Prepared(trained.places, "toy").rows()
    rows.loc[rows["patient_id"] == rows["patient_id"][0], "split"] = "test"
    write_prepared(trained.root, "toy", rows, {"kind": "radiograph", "size": [8, 8]}, ["bright", "striped"])
    with pytest.raises(StaleError, match=r"tiny_best\.pth is stale: the images, labels and patients"):
        trained.predict()


def test_without_a_model_the_command_that_makes_it_is_told(toy):
    with pytest.raises(MissingStage, match="run `radfuse train toy` first"):
        toy.predict()


def test_a_damaged_model_is_refused_by_name(trained):
    path = trained.models / "tiny_best.pth"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ckptcore.CheckpointError, match=r"tiny_best\.pth"):
        trained.predict()
