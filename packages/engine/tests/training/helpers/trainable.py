"""Pipeline folders whose images are prepared, made without the stages before."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from radfuse.engine.config import load
from radfuse.engine.digests import file_digest
from radfuse.engine.places import Places
from radfuse.engine.prepared import digest_of

SPLITS = ("train", "train", "train", "val", "calibration", "test")
SPLIT_DIGEST = hashlib.sha256(b"split").hexdigest()
PLAIN = {"mlflow": False, "progress": "none", "device": "cpu", "precision": "32"}


class Pipeline:
    """A folder with prepared arrays and a params.yaml.

    Args:
        root: the folder.
        modality: its only one.
        block: of the `train` block, beside `PLAIN`.
        prepare: of the modality.
        train: of the modality.
    """

    def __init__(self, root, modality, prepare, block=None, **train):
        self.root, self.modality = root, modality
        self.places = Places(root)
        self.file = root / "params.yaml"
        content = {
            "seed": 0,
            "prepare": {modality: prepare},
            "train": {**PLAIN, **(block or {}), modality: train},
            "predict": {"device": "cpu"},
        }
        self.file.write_text(yaml.safe_dump(content))

    def params(self, *overrides):
        return load(self.file, list(overrides))

    def train(self, *overrides, **options):
        from radfuse.engine.training.session import train

        return train(self.params(*overrides), self.places, self.modality, **options)

    def predict(self, *overrides):
        from radfuse.engine.predicting import predict_split

        return predict_split(self.params(*overrides), self.places, self.modality)

    def works(self):
        """The work folders."""
        return sorted(path.parent for path in self.places.work(self.modality).glob("*/run.json"))

    @property
    def models(self):
        return self.places.saved_models(self.modality)


def toy_pictures(count, seed=0):
    """(count, 8, 8) uint8 and (count, 2): `bright` pictures and `striped` ones; some labels are not known."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, size=(count, 2)).astype(float)
    pictures = random.normal(100, 20, size=(count, 8, 8)) + 60 * labels[:, 0, None, None]
    pictures[:, ::2] += 40 * labels[:, 1, None, None]
    labels[random.random(labels.shape) < 0.1] = np.nan
    return pictures.clip(0, 255).astype(np.uint8), labels


def rows_of(modality, count, per_patient=1):
    """Rows of the prepared table; patients go round the splits."""
    patients = [index // per_patient for index in range(count)]
    return pd.DataFrame(
        {
            "patient_id": [f"p{patient:012x}" for patient in patients],
            "study_id": [f"s{index:012x}" for index in range(count)],
            "sample_id": [f"i{index:012x}" for index in range(count)],
            "modality": modality,
            "split": [SPLITS[patient % len(SPLITS)] for patient in patients],
            "mask_sha256": "",
        }
    )


def toy_pipeline(root: Path, count=48, seed=0, modality="toy", prepare=None, block=None, **train):
    pictures, labels = toy_pictures(count, seed)
    rows = rows_of(modality, count, per_patient=2)
    rows["label:bright"], rows["label:striped"] = labels.T
    arrays = root / "data" / "prepared" / modality / "arrays"
    arrays.mkdir(parents=True)
    for name, picture in zip(rows["sample_id"], pictures, strict=True):
        np.save(arrays / f"{name}.npy", picture)
    rows["sha256"] = [file_digest(arrays / f"{name}.npy") for name in rows["sample_id"]]
    write_prepared(root, modality, rows, {"kind": "radiograph", "size": [8, 8]}, ["bright", "striped"])
    return Pipeline(root, modality, {"size": 8} if prepare is None else prepare, block, **train)


def write_prepared(root, modality, rows, spec, labels, classes=None):
    """Write the manifest; where the rows have no ``sha256``, arrays are compared with nothing."""
    folder = root / "data" / "prepared" / modality
    (folder / "arrays").mkdir(parents=True, exist_ok=True)
    if "sha256" not in rows:
        rows = rows.assign(sha256="")
    rows.to_parquet(folder / "manifest.parquet", index=False)
    stamp = {
        "learnt_digest": digest_of(rows[rows["split"].isin(["train", "val"])], spec, labels, classes or {}),
        "digest": hashlib.sha256(json.dumps([spec, rows.to_csv()]).encode()).hexdigest(),
        "spec": spec,
        "labels": labels,
        "classes": classes or {},
        "counts": {},
        "split_digest": SPLIT_DIGEST,
        "skipped": 0,
    }
    (folder / "manifest.json").write_text(json.dumps(stamp))
    (root / "data" / "cohort").mkdir(parents=True, exist_ok=True)
    splits = {"digest": SPLIT_DIGEST, "merged_calibration": False, "few_positives": {}}
    (root / "data" / "cohort" / "splits.json").write_text(json.dumps(splits))


def stages(*epochs, rate=0.01):
    """A value for ``--set train.toy.stages=``: stages of so many epochs."""
    listed = [{"name": f"s{i}", "epochs": n, "learning_rate": rate} for i, n in enumerate(epochs)]
    return yaml.safe_dump(listed, default_flow_style=True, width=1000).strip()
