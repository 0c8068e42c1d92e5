"""The code that decides numbers: in the keys of work folders, and among the dependencies of the stages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from radfuse.engine.digests import file_digest
from radfuse.engine.modality import Modality

READING = ("radfuse.serving.images", "radfuse.serving.preprocess")
"""Packages that make arrays of images."""
TRAINING = ("radfuse.engine.training", *READING)
"""Packages that every training's numbers come from, besides its modality's own."""


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
    """SHA-256 of every file of packages and modules, by ``package.module.py``."""
    found: dict[str, str] = {}
    for name in sorted(set(names)):
        place = place_of(name)
        if place.is_file():
            found[name] = file_digest(place)
            continue
        for file in sorted(place.rglob("*.py")):
            found[f"{name}.{'.'.join(file.relative_to(place).parts)}"] = file_digest(file)
    return found
