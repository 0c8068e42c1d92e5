"""The code that decides numbers: in the keys of work folders, and among the dependencies of the stages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from radfuse.engine.modality import Modality

ENGINE = "radfuse.engine"
READING = ("radfuse.serving.images", "radfuse.serving.preprocess")
"""Packages that make arrays of images."""
DECODING = (*READING, "radfuse.engine.preparing.decoding")
"""What a sample's arrays are made by; which files, classes and points of it, the sources say as values."""
TRAINING = ("radfuse.engine.training", "radfuse.serving.preprocess")
"""Packages that every training's numbers come from, besides its modality's own.

The readers of images are not among them: what they read is in the arrays, whose digests name a training.
"""


def of_stages(
    modalities: Sequence[Modality], ensemble: Sequence[str] = (), phantom: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The packages that the results of each stage come from, by its name in dvc.yaml.

    Most depend on the whole engine, as they call parts all over it and take minutes: better once too often
    than never. Preparing takes hours and training takes days, so those depend on what decides arrays and
    numbers alone.

    Args:
        modalities: of the pipeline.
        ensemble: packages of the ensemble; none where it is not installed, and so has no stage.
        phantom: packages of the phantom, likewise.
    """
    own = {one.name: package_of(type(one).__module__) for one in modalities}
    found: dict[str, tuple[str, ...]] = {"cohort": (ENGINE, "radfuse.serving.images")}
    for one in modalities:
        # A modality's package says what is made of its images, and may bring a kind of preprocessing.
        found[f"prepare_{one.name}"] = (
            *READING,
            "radfuse.engine.preparing",
            "radfuse.engine.sources",
            own[one.name],
        )
        found[f"train_{one.name}"] = of_training(one)
        found[f"predict_{one.name}"] = (ENGINE, "radfuse.serving.preprocess", own[one.name])
    if phantom:
        found["phantom"] = tuple(phantom)
    if ensemble:
        found["ensemble"] = (ENGINE, *ensemble)
    found["evaluate"] = (ENGINE,)
    found["export"] = (ENGINE, "radfuse.serving", *ensemble, *own.values())
    return found


def of_training(modality: Modality) -> tuple[str, ...]:
    """Packages, or modules that stand alone, that a training's numbers come from."""
    return (*TRAINING, package_of(type(modality).__module__))


def package_of(module: str) -> str:
    """The package that a module stands in, or the module where it stands alone."""
    spec = find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return module if is_package else module.rpartition(".")[0] or module


def place_of(name: str) -> Path:
    """A package's folder, or the file of a module that stands alone.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    file = Path(spec.origin)
    return file if spec.submodule_search_locations is None else file.parent


def digests(*names: str) -> dict[str, str]:
    """SHA-256 of every file of packages, by ``package.module.py``, and of modules, by their names."""
    found: dict[str, str] = {}
    for name in sorted(set(names)):
        place = place_of(name)
        if place.is_file():
            found[name] = _source_digest(place)
            continue
        for file in sorted(place.rglob("*.py")):
            found[f"{name}.{'.'.join(file.relative_to(place).parts)}"] = _source_digest(file)
    return found


def _source_digest(file: Path) -> str:
    """SHA-256 of a text with LF: git may write CRLF at a checkout, and the code is the same."""
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
