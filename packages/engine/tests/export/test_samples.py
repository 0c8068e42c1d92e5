from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prepared_folder import prepared_folder

from radfuse.engine.errors import MissingStage
from radfuse.engine.export.samples import real_samples, rounded_up, sample_names

RADIOGRAPH = {"kind": "radiograph", "size": [8, 8]}
VOLUME = {
    "kind": "mr_volume",
    "sequences": ["t1", "t2"],
    "spacing_mm": None,
    "size": None,
    "crop_to_brain": False,
}


def filled(value: int) -> np.ndarray:
    return np.full((8, 8), value, np.uint8)


def test_samples_are_the_prepared_arrays_as_the_graph_takes_them(tmp_path: Path) -> None:
    prepared = prepared_folder(
        tmp_path, "xray", RADIOGRAPH, {"val": [filled(0), filled(255), filled(51)]}, {}
    )
    found = real_samples(prepared, sample_names(prepared, 2), None, None)
    assert [sample.shape for sample in found] == [(3, 8, 8)] * 2
    assert [float(sample.max()) for sample in found] == [0.0, 1.0]


def test_samples_that_no_table_has_and_those_of_the_test_split_are_never_taken(tmp_path: Path) -> None:
    arrays = {"train": [filled(10)], "val": [filled(20)], "calibration": [filled(30)], "test": [filled(40)]}
    prepared = prepared_folder(tmp_path, "xray", RADIOGRAPH, arrays, {})
    found = real_samples(prepared, sample_names(prepared, 9), None, None)
    assert [round(float(sample.max()) * 255) for sample in found] == [20, 30]


def test_nothing_but_train_and_test_samples_is_an_error(tmp_path: Path) -> None:
    arrays = {"train": [filled(2)], "test": [filled(1)]}
    prepared = prepared_folder(tmp_path, "xray", RADIOGRAPH, arrays, {})
    with pytest.raises(MissingStage, match="radfuse prepare xray"):
        sample_names(prepared, 1)


def test_volumes_of_any_size_become_windows_of_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    volumes = [random.normal(size=(2, *size)).astype(np.float16) for size in ((35, 51, 35), (20, 70, 33))]
    prepared = prepared_folder(tmp_path, "mri", VOLUME, {"val": volumes}, {})
    found = real_samples(prepared, sample_names(prepared, 2), (32, 48, 24), 16)
    assert [sample.shape for sample in found] == [(2, 32, 48, 32)] * 2
    torch.testing.assert_close(
        found[0][:, 0, 0, 0], torch.from_numpy(volumes[0][:, 1, 1, 1].astype(np.float32))
    )


@given(st.integers(1, 300), st.sampled_from([1, 8, 16]))
def test_rounded_length_is_the_next_multiple_and_at_least_two_steps(length: int, step: int) -> None:
    found = rounded_up(length, step)
    assert found % step == 0 and found >= max(length, 2 * step)
    assert found - step < length or found == 2 * step
