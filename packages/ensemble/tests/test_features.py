from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from radfuse.engine.agreement import Table
from radfuse.engine.errors import StaleError
from radfuse.engine.predictions import Stamp
from radfuse.ensemble import feature_names
from radfuse.ensemble.features import Feature, features_of, outputs_of

STAMP = Stamp("", "m" * 64, "s" * 64, "k", ())
POOLING = {"ct": ("max", "mean", "count")}


def tables() -> dict[str, Table]:
    one = {
        "patient_id": ["p1"],
        "volume_mm3:core": [900.0],
        "true_volume_mm3:core": [1.0],
        "dice:core": [0.3],
    }
    xray, ct = {"patient_id": ["p1", "p1", "p2"]}, {"patient_id": ["p2", "p2", "p3"]}
    frames = {
        "xray": pd.DataFrame(xray).assign(**{"label:Mass": [1.0, 0, 0], "logit:Mass": [1.0, 3.0, -1.0]}),
        "ct": pd.DataFrame(ct).assign(**{"label:malignant": [1.0, 0, 0], "logit:malignant": [2.0, 4.0, 7.0]}),
        "mri": pd.DataFrame(one),
    }
    return {name: Table(name, frame, STAMP) for name, frame in frames.items()}


def test_features_are_ordered_by_modality_with_the_mask_last() -> None:
    assert feature_names(features_of(tables(), POOLING)) == [
        "ct:malignant:mean", "ct:malignant:max", "ct:images:count", "mri:core:mean", "xray:Mass:mean",
        "available:ct", "available:mri", "available:xray",
    ]  # fmt: skip


def test_images_of_a_patient_are_pooled_as_asked() -> None:
    found = outputs_of(tables(), features_of(tables(), POOLING))
    by_name = dict(zip([one.name for one in found.features], found.values.T, strict=True))
    assert found.patients == ["p1", "p2", "p3"]
    assert by_name["xray:Mass:mean"].tolist() == [2.0, -1.0, 0.0]
    assert by_name["ct:malignant:mean"].tolist() == [0.0, 3.0, 7.0]
    assert by_name["ct:malignant:max"].tolist() == [0.0, 4.0, 7.0]
    assert by_name["ct:images:count"] == pytest.approx([0.0, math.log(3), math.log(2)])
    assert by_name["mri:core:mean"].tolist() == [math.log(1.0), 0.0, 0.0]


def test_the_mask_says_what_a_patient_has() -> None:
    found = outputs_of(tables(), features_of(tables(), POOLING))
    assert found.modalities == ["ct", "mri", "xray"]
    assert found.mask.tolist() == [[0, 1, 1], [1, 0, 1], [1, 0, 0]]


def test_no_truth_is_ever_a_feature() -> None:
    before = outputs_of(tables(), features_of(tables(), POOLING))
    changed = tables()
    for table in changed.values():
        for name in table.frame.columns:
            if name.startswith(("label:", "true_volume_mm3:", "dice:")):
                table.frame[name] = 0.123
    after = outputs_of(changed, features_of(changed, POOLING))
    assert np.array_equal(before.inputs, after.inputs)


def test_an_empty_region_has_a_finite_logarithm() -> None:
    found = tables()
    found["mri"].frame["volume_mm3:core"] = 0.0
    assert outputs_of(found, [Feature("mri", "core", "log_volume", "mean")]).values[0, 0] == math.log(0.1)


def test_a_prediction_that_is_no_number_is_refused() -> None:
    found = tables()
    found["ct"].frame.loc[1, "logit:malignant"] = np.nan
    with pytest.raises(StaleError, match="radfuse predict-split ct"):
        outputs_of(found, features_of(found, POOLING))
