"""What a kind of preprocessing is, and the table of the kinds that are known.

A recipe ("spec") is a JSON object whose ``kind`` names one of them; the rest are that kind's own parameters.
Training and serving carry out the same recipe by the same code. Another package adds a kind by `register`, or
without being imported first by an entry point of the group ``radfuse.preprocessing``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from radfuse.serving.errors import InputError, SpecError
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.limits import MAX_VOXELS, check_volume
from radfuse.serving.images.scans import Source, VolumeReader
from radfuse.serving.images.volume import Volume, resample, resampled_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radfuse.serving.preprocess.geometry import Geometry

GROUP = "radfuse.preprocessing"

Spec = Mapping[str, Any]
Images = Mapping[str, Source]
"""Sources by role: ``image``, or the names of MR sequences."""


@dataclass(frozen=True)
class Prepared:
    """An image as it is stored for training.

    Attributes:
        array: in the compact type of its kind; `Kind.to_input` makes the network's input of it.
        geometry: where its voxels lie, and the grid that results go back to; None for a radiograph.
    """

    array: NDArray[Any]
    geometry: Geometry | None


class Kind(Protocol):
    """One kind of preprocessing."""

    def roles(self, spec: Spec) -> tuple[str, ...]:
        """Names of the images that it takes."""

    def input_shape(self, spec: Spec) -> tuple[int | None, ...]:
        """Shape (C, ...) of the network's input, None where it depends on the image.

        Raises:
            SpecError: the recipe is not one of this kind.
        """

    def prepare(
        self, spec: Spec, images: Images, point_mm: Sequence[float] | None, read: VolumeReader
    ) -> Prepared:
        """Read and prepare one sample: `radfuse.serving.preprocess.prepare`."""

    def prepare_mask(
        self, spec: Spec, path: Path, geometry: Geometry, values: Mapping[int, int] | None
    ) -> NDArray[np.uint8]:
        """Read a label map on the grid of a prepared array: `radfuse.serving.preprocess.prepare_mask`."""

    def to_input(self, spec: Spec, array: NDArray[Any]) -> NDArray[np.float32]:
        """A prepared array as the exported graph takes it: (C, ...)."""


_kinds: dict[str, Kind] = {}


def register(name: str, kind: Kind) -> None:
    """Make a kind known under a name."""
    _kinds[name] = kind


def kind_of(spec: Spec) -> Kind:
    """The kind that a recipe names.

    Raises:
        SpecError: it names none, or one that is not installed.
    """
    name = spec.get("kind")
    if name not in _kinds:
        for point in entry_points(group=GROUP, name=str(name)):
            register(point.name, point.load())
    if name not in _kinds:
        known = ", ".join(sorted(_kinds))
        raise SpecError(f"preprocessing of kind {name!r} is not installed; known: {known}")
    return _kinds[str(name)]


def parameters(spec: Spec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's parameters, with defaults for those that it leaves out.

    Args:
        spec: the recipe.
        defaults: of the kind's parameters; those whose default is ``...`` must be given.

    Raises:
        SpecError: a parameter is unknown or missing.
    """
    unknown = sorted(set(spec) - set(defaults) - {"kind"})
    missing = sorted(name for name, value in defaults.items() if value is ... and name not in spec)
    if unknown or missing:
        wrong = [f"unknown {name!r}" for name in unknown] + [f"missing {name!r}" for name in missing]
        raise SpecError(
            f"preprocessing of kind {spec.get('kind')!r}: {', '.join(wrong)}; known: {', '.join(defaults)}"
        )
    return {name: spec.get(name, value) for name, value in defaults.items()}


def lengths(value: Any, name: str, axes: int) -> tuple[int, ...]:
    """A size: so many whole numbers from 1 to 4096.

    Raises:
        SpecError: it is something else.
    """
    if not isinstance(value, list | tuple) or len(value) != axes:
        raise SpecError(f"expected {axes} whole numbers in {name!r}, got {value!r}")
    if any(isinstance(each, bool) or not isinstance(each, int) or not 1 <= each <= 4096 for each in value):
        raise SpecError(f"expected whole numbers from 1 to 4096 in {name!r}, got {value!r}")
    if prod(value) > MAX_VOXELS:
        raise SpecError(f"{name!r} asks for {prod(value)} values; the limit is {MAX_VOXELS}")
    return tuple(value)


def spacing(value: Any) -> tuple[float, float, float] | None:
    """``spacing_mm``: three positive numbers, or None.

    Raises:
        SpecError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise SpecError(f"expected three numbers or null in 'spacing_mm', got {value!r}")
    if any(
        isinstance(each, bool) or not isinstance(each, int | float) or not 0 < each < 1e3 for each in value
    ):
        raise SpecError(f"expected numbers between 0 and 1000 in 'spacing_mm', got {value!r}")
    depth, height, width = map(float, value)
    return depth, height, width


def chosen(images: Images, roles: Sequence[str]) -> list[Source]:
    """The sources of the roles, in their order.

    Raises:
        InputError: roles are missing or unknown.
    """
    missing, unknown = sorted(set(roles) - set(images)), sorted(set(images) - set(roles))
    if missing or unknown:
        raise InputError(f"expected images for {', '.join(roles)}; got {', '.join(images) or 'none'}")
    return [images[role] for role in roles]


def place_of(source: Source) -> Path:
    """A source's path for messages."""
    if isinstance(source, str | Path):
        return Path(source)
    return Path(source[0]).parent if source else Path("series")


def at_spacing(path: Path, volume: Volume, spacing_mm: Sequence[float] | None) -> Volume:
    """The volume as float32, resampled where a spacing is asked for.

    Raises:
        UnreadableImage: it would have more voxels than the limit.
    """
    if spacing_mm is None:
        return Volume(volume.voxels.astype(np.float32), volume.affine)
    check_volume(path, resampled_shape(volume, spacing_mm))
    return resample(volume, spacing_mm)


def refused_point(point_mm: Sequence[float] | None, images: Images) -> None:
    """Raises `InputError` where a point was given to a kind that takes whole images."""
    if point_mm is not None:
        raise InputError(f"a point was given, and {', '.join(images)} is taken whole; leave the point out")


def no_mask(path: Path, kind: str) -> UnreadableImage:
    """The error for a kind that has no label maps."""
    return UnreadableImage(path, f"preprocessing of kind {kind!r} has no label maps")
