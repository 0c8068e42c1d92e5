"""Pipelines on small tables of images, for tests."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from radfuse.engine import cohort, config
from radfuse.engine.modality import Modality
from radfuse.engine.places import Places
from radfuse.engine.prepared import Prepared
from radfuse.engine.preparing import stage
from radfuse.engine.settings import PrepareSettings, TrainSettings

RADIOGRAPH = {"kind": "radiograph", "size": [16, 16]}
CT_PATCH = {"kind": "ct_patch", "size": [8, 8, 8], "spacing_mm": None, "window_hu": [-1000, 400]}
MR_VOLUME = {
    "kind": "mr_volume",
    "sequences": ["t1", "t1ce", "t2", "flair"],
    "spacing_mm": None,
    "size": None,
    "crop_to_brain": False,
}
SPECS = {"xray": RADIOGRAPH, "ct": CT_PATCH, "mri": MR_VOLUME}


class Toy(Modality):
    """A modality that is only prepared."""

    title, model_name = "Toy", "toy"
    prepare_settings, train_settings = PrepareSettings, TrainSettings

    def __init__(self, name: str, spec: Mapping[str, Any] | None = None) -> None:
        self.name = name  # type: ignore[misc]
        self.spec = dict(spec or SPECS[name])

    def preprocessing(self, settings: Any) -> dict[str, Any]:
        return self.spec

    def task(self, *_: Any) -> Any: ...
    def network(self, *_: Any) -> Any: ...
    def normalisation(self, *_: Any) -> Any: ...
    def layer_groups(self, *_: Any) -> Any: ...


@dataclass
class Pipeline:
    """A folder with params.yaml and what the stages make of it."""

    root: Path

    def __post_init__(self) -> None:
        if not self.root.exists():
            self.root.mkdir(parents=True)
            self.write({})

    @property
    def places(self) -> Places:
        return Places(self.root)

    @property
    def file(self) -> Path:
        return self.root / "params.yaml"

    def write(self, params: Mapping[str, Any]) -> None:
        relaxed = {"minimum_positives": 0, "minimum_patients": dict.fromkeys(("train", "val", "test"), 0)}
        self.file.write_text(yaml.safe_dump({"split": relaxed, **params}))

    def sources(self, *sources: Mapping[str, Any], **blocks: Any) -> None:
        self.write({"sources": list(sources), **blocks})

    def params(self, *overrides: str) -> config.Params:
        return config.load(self.file, overrides)

    def cohort(self, *overrides: str) -> cohort.Cohort:
        made = cohort.build(self.params(*overrides), self.places)
        cohort.write(made, self.places)
        return made

    def prepare(self, modality: str, spec: Mapping[str, Any] | None = None, *overrides: str) -> stage.Result:
        chosen = ("prepare.workers=1", *overrides)
        return stage.prepare(Toy(modality, spec), self.params(*chosen), self.places, progress="none")

    def script(self, call: str) -> str:
        """A program that calls one of the stages above; this folder must be on its path."""
        return (
            "from pathlib import Path\nfrom pipelines import Pipeline\n"
            f"if __name__ == '__main__':\n    Pipeline(Path({str(self.root)!r})).{call}\n"
        )

    def prepared(self, modality: str) -> Prepared:
        return Prepared(self.places, modality)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def write_png(path: Path, seed: int = 0, size: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size), np.uint8)
    Image.fromarray(pixels).save(path)


def xray_table(root: Path, patients: int, images_each: int = 1) -> dict[str, Any]:
    """Radiographs with a table: patient, path, label; the source that reads them."""
    rows = []
    for patient in range(patients):
        for image in range(images_each):
            name = f"images/{patient:03}_{image}.png"
            write_png(root / name, seed=100 * patient + image)
            rows.append((f"Patient-{patient:03}", name, patient % 2))
    write_csv(root / "xray.csv", ("patient_id", "path", "Mass"), rows)
    return {"kind": "table", "root": str(root), "modality": "xray", "csv": "xray.csv", "labels": ["Mass"]}
