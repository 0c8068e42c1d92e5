"""Prepared arrays as training reads them, compared with what the manifest says of their files."""

import pickle

import numpy as np
import pytest
from trainable import toy_pipeline, write_prepared

from radfuse.engine import prepared as module
from radfuse.engine.digests import file_digest
from radfuse.engine.errors import DamagedArray
from radfuse.engine.prepared import Prepared

SPEC = {"kind": "radiograph", "size": [8, 8]}


def change(path):
    """Other bytes, the same size."""
    good = path.read_bytes()
    path.write_bytes(good[:-5] + bytes(255 - byte for byte in good[-5:]))


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were compared."""
    names = []

    def told(path):
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(module, "file_digest", told)
    return names


def test_an_array_is_compared_once_however_often_it_is_read(toy, read):
    prepared = Prepared(toy.places, "toy")
    first, second = prepared.samples("train")[:2]
    for sample in (first, second, first, first):
        assert prepared.array(sample).shape == (8, 8)
    assert read == [f"{first}.npy", f"{second}.npy"]


def test_what_was_compared_and_how_go_to_another_process(toy, read):
    prepared = Prepared(toy.places, "toy")
    first, second = prepared.samples("train")[:2]
    prepared.array(first)
    again = pickle.loads(pickle.dumps(prepared))
    assert again == prepared
    again.array(first)
    assert read == [f"{first}.npy"]
    change(toy.places.arrays("toy") / f"{second}.npy")
    with pytest.raises(DamagedArray, match=f"{second}.*radfuse prepare toy"):
        again.array(second)


def test_a_changed_segmentation_is_named(toy):
    path = toy.places.arrays("toy")
    rows = Prepared(toy.places, "toy").rows()
    sample = rows["sample_id"].iloc[0]
    np.save(path / f"{sample}.mask.npy", np.ones((8, 8), np.uint8))
    rows.loc[0, "mask_sha256"] = file_digest(path / f"{sample}.mask.npy")
    write_prepared(toy.root, "toy", rows, SPEC, ["bright", "striped"])
    assert Prepared(toy.places, "toy").mask(sample).all()
    change(path / f"{sample}.mask.npy")
    with pytest.raises(DamagedArray, match=rf"{sample}\.mask\.npy.*not those that were prepared"):
        Prepared(toy.places, "toy").mask(sample)


def test_without_digests_in_the_manifest_nothing_is_compared(tmp_path):
    toy = toy_pipeline(tmp_path)
    rows = Prepared(toy.places, "toy").rows().drop(columns="sha256")
    write_prepared(tmp_path, "toy", rows, SPEC, ["bright", "striped"])
    prepared = Prepared(toy.places, "toy")
    change(toy.places.arrays("toy") / f"{rows['sample_id'].iloc[0]}.npy")
    assert prepared.array(rows["sample_id"].iloc[0]).shape == (8, 8)
