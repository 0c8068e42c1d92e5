"""A pipeline of two tiny modalities as the stages before the export leave it, with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from prepared_folder import PREPARED_DIGEST, SPLIT_DIGEST, prepared_folder

import ckptcore
from radfuse.engine.config import Params, load
from radfuse.engine.modality import modality
from radfuse.engine.places import Places
from radfuse.engine.predicting import predict_split
from radfuse.engine.training.tasks import task_of

LABELS = ("Mass", "Nodule")
CLASSES = {1: "core", 2: "rim"}
SPLITS = ("train",) * 3 + ("val",) * 12 + ("calibration",) * 12 + ("test",) * 2


class TrainedPipeline:
    """A folder with params.yaml."""

    def __init__(self, root: Path) -> None:
        self.places = Places(root)
        self.file = root / "params.yaml"
        settings = {
            "train": {"mlflow": False, "progress": "none", "device": "cpu"},
            "predict": {"device": "cpu"},
            "export": {"samples": 3},
        }
        root.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(settings))
        self.places.cohort_folder.mkdir(parents=True)
        told = {"digest": SPLIT_DIGEST, "merged_calibration": False, "few_positives": {}}
        self.places.splits.write_text(json.dumps(told))

    def copied(self, root: Path) -> TrainedPipeline:
        """The same in another folder."""
        copy = object.__new__(TrainedPipeline)
        copy.places = Places(Path(shutil.copytree(self.places.root, root)))
        copy.file = root / "params.yaml"
        return copy

    def params(self, *overrides: str) -> Params:
        return load(self.file, list(overrides))

    def add_film(self) -> None:
        """Prepared, "trained" and predicted."""
        random = np.random.default_rng(0)
        arrays: dict[str, list[np.ndarray[Any, Any]]] = {}
        for split in SPLITS:
            arrays.setdefault(split, []).append(random.integers(0, 256, (32, 32), np.uint8))
        labels = {name: random.integers(0, 2, len(SPLITS)).astype(float) for name in LABELS}
        prepared_folder(self.places.root, "film", modality("film").preprocessing(None), arrays, labels)
        self.train("film")
        predict_split(self.params(), self.places, "film")

    def add_scan(self) -> None:
        """Prepared and "trained"; volumes have sizes of their own."""
        random = np.random.default_rng(1)
        sizes = ((35, 51, 35), (40, 33, 20))
        volumes = [random.normal(size=(2, *size)).astype(np.float16) for size in sizes]
        spec = modality("scan").preprocessing(None)
        prepared_folder(self.places.root, "scan", spec, {"val": volumes}, {}, CLASSES)
        self.train("scan")

    def train(self, name: str, seed: int = 0, **more: Any) -> Path:
        """Publish a checkpoint with random weights."""
        from radfuse.engine.prepared import Prepared

        one, params = modality(name), self.params()
        torch.manual_seed(seed)
        prepare = params.prepare_of(one)
        prepared = Prepared(self.places, name)
        task = task_of(one, prepare, prepared)
        network = one.network(prepare, params.train_of(one), task.outputs)
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(layer.running_mean)  # type: ignore[arg-type]
        provenance = {
            "split_digest": SPLIT_DIGEST,
            "prepared_digest": PREPARED_DIGEST,
            "learnt_digest": prepared.learnt_digest,
        }
        state = {"model_state_dict": network.state_dict(), "provenance": provenance, "epoch": 0, **more}
        folder = self.places.saved_models(name)
        folder.mkdir(parents=True, exist_ok=True)
        return ckptcore.save(folder / f"{one.model_name}_best.pth", state)
