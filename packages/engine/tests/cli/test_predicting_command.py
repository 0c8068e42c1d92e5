"""`radfuse predict-split`: what it refuses to write, and what it notes of the images."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import ckptcore
from radfuse.engine import predictions
from radfuse.engine.cli import run
from radfuse.engine.digests import file_digest
from radfuse.engine.prepared import Prepared

if TYPE_CHECKING:
    from trained_pipeline import TrainedPipeline


def refused(pipeline: TrainedPipeline, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a prediction that must not leave a table."""
    pipeline.places.predictions(name).unlink(missing_ok=True)
    assert run(["predict-split", name, "--params", str(pipeline.file)]) == 1
    assert not pipeline.places.predictions(name).exists()
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_classification_whose_answers_are_no_numbers_is_refused(
    trained: TrainedPipeline, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    file = trained.places.saved_models("film") / "filmnet_best.pth"
    state = {**ckptcore.load(file)}
    state["model_state_dict"]["6.bias"][0] = value
    file.chmod(0o644)
    ckptcore.save(file, state)
    said = refused(trained, "film", capsys)
    assert "film: the model's answers to 26 of 26 samples are NaN or infinite: i000000000003, " in said
    assert "and 21 more" in said
    assert "`radfuse whois ID`" in said and "`radfuse train film`" in said


def test_a_segmentation_whose_answer_has_a_voxel_that_is_no_number_is_refused(
    trained: TrainedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two volumes, so that the model is not at fault."""
    path = trained.places.arrays("scan") / "i000000000001.npy"
    volume = np.load(path)
    volume[0, 0, 0, 0] = np.nan
    np.save(path, volume)
    manifest = trained.places.manifest("scan")
    rows = Prepared(trained.places, "scan").rows()
    rows.loc[rows["sample_id"] == path.stem, "sha256"] = file_digest(path)
    rows.to_parquet(manifest, index=False)
    trained.train("scan")
    said = refused(trained, "scan", capsys)
    assert "scan: the model's answers to 1 of 2 samples are NaN or infinite: i000000000001. " in said


def test_a_table_says_how_many_images_were_in_several_splits(trained: TrainedPipeline) -> None:
    assert predictions.read_stamp(trained.places.predictions("film")).twins_across_splits is None
    path = trained.places.manifest_stamp("film")
    path.write_text(json.dumps({**json.loads(path.read_text()), "twins_across_splits": 2}))
    assert run(["predict-split", "film", "--params", str(trained.file)]) == 0
    assert predictions.read_stamp(trained.places.predictions("film")).twins_across_splits == 2


def test_numbers_are_not_refused(trained: TrainedPipeline) -> None:
    assert run(["predict-split", "scan", "--params", str(trained.file)]) == 0
    frame, _ = predictions.read(trained.places.predictions("scan"))
    assert torch.isfinite(torch.tensor(frame["volume_mm3:lesion"].to_numpy())).all()
