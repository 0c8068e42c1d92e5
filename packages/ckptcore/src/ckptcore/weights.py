"""The weights of a model alone: found in any checkpoint, loaded into a live model, named by their digest."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore.errors import UnknownFormat, UsageError, WeightsMismatch
from ckptcore.header import MARKER, MODEL_KEYS, tensor_entries
from ckptcore.header import model_digest as digest_of_entries
from ckptcore.pickled import TensorSpec
from ckptcore.plain import flatten

if TYPE_CHECKING:
    import torch

WEIGHT_KEYS = (*MODEL_KEYS, "model", "ema_state_dict", "model_ema", "ema")
"""Where checkpoints keep the weights of their model, in the order in which they are looked for."""

_COMPILED = "_orig_mod."
_WRAPPED = "module."
_AVERAGE_COUNTER = "n_averaged"
_BATCH_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class ShapeDifference:
    """A tensor of the model that has another shape in a checkpoint; ``got`` is None for what is no tensor."""

    name: str
    expected: tuple[int, ...]
    got: tuple[int, ...] | None

    def __str__(self) -> str:
        got = "no tensor" if self.got is None else self.got
        return f"{self.name} (expected {self.expected}, got {got})"


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did.

    Attributes:
        path: the checkpoint.
        source_key: the key under which the weights stood; empty for a plain state dict.
        missing: names that the model has and the checkpoint has not; they keep their values.
        unexpected: names that the checkpoint has and the model has not.
        other_shape: names that both have, with different shapes; they keep their values.
        loaded: names that were loaded.
        other_dtype: names that were loaded and converted to the model's dtype, which may cost precision.
        stripped: what was taken off the checkpoint's names to make them the model's.
    """

    path: Path
    source_key: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shape: tuple[ShapeDifference, ...]
    loaded: tuple[str, ...]
    other_dtype: tuple[str, ...] = ()
    stripped: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether model and checkpoint have the same names and shapes."""
        return not (self.missing or self.unexpected or self.other_shape)

    def lines(self) -> list[str]:
        """One line for each thing that a person should know."""
        listed = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", tuple(map(str, self.other_shape))),
            ("converted to the model's dtype", self.other_dtype),
            ("taken off the names", self.stripped),
        )
        return [f"{len(names)} {what}: {', '.join(names)}" for what, names in listed if names]


def load_weights(
    model: torch.nn.Module, path: str | os.PathLike[str], strict: bool = True, *, key: str | None = None
) -> WeightsReport:
    """Load the weights of a checkpoint, native or foreign, into a model on whatever device.

    Args:
        model: the model; wrappers of DDP, DataParallel and torch.compile are seen through.
        path: the checkpoint, or a plain state dict, or a safetensors file.
        strict: whether every name and shape must agree; if not, what fits is loaded and the rest is reported.
        key: where the weights stand, if not where they are looked for (`WEIGHT_KEYS`): ``"ema_state_dict"``,
            say.

    Raises:
        WeightsMismatch: with ``strict``, before anything in the model changes.
        DamagedCheckpoint: the file is not what was written.
        UnknownFormat: it holds no weights.
    """
    from ckptcore.loading import load
    from ckptcore.pieces import unwrap

    target = unwrap(model)
    live = target.state_dict()
    checkpoint = load(path)
    source_key, found = find_state_dict(checkpoint, key, checkpoint.path)
    saved, stripped = _strip(found, live)
    report, fitting = _compare(live, saved, checkpoint.path, source_key, stripped)
    if strict and not report.fits:
        shapes = [str(difference) for difference in report.other_shape]
        raise WeightsMismatch(checkpoint.path, report.missing, report.unexpected, shapes)
    target.load_state_dict(fitting, strict=False)
    return report


def find_state_dict(
    mapping: Mapping[str, Any], key: str | None = None, path: str | os.PathLike[str] = "the checkpoint"
) -> tuple[str, Mapping[str, Any]]:
    """The weights in a loaded checkpoint, and the key under which they stand ("" when they are all of it).

    Raises:
        UnknownFormat: there are none, or none under the given key.
    """
    for candidate in WEIGHT_KEYS if key is None else (key,):
        value = mapping.get(candidate)
        if isinstance(value, Mapping) and (_holds_tensors(value) or (not value and candidate in MODEL_KEYS)):
            return candidate, value
    plain = {name: value for name, value in mapping.items() if name != MARKER}
    if key is None and plain and all(_is_tensor(v) or n.endswith("_extra_state") for n, v in plain.items()):
        return "", plain
    wanted = repr(key) if key is not None else f"one of {', '.join(WEIGHT_KEYS)}, or tensors alone"
    there = ", ".join(list(mapping)[:10]) or "nothing"
    raise UnknownFormat(f"{Path(path).name} holds no weights of a model: expected {wanted}; it has {there}.")


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _holds_tensors(mapping: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in mapping) and any(map(_is_tensor, mapping.values()))


def _strip(saved: Mapping[str, Any], live: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """A state dict without the prefixes that wrappers gave its names, where the model's names have none."""
    stripped: list[str] = []
    if any(_COMPILED in name for name in saved) and not any(_COMPILED in name for name in live):
        plain = _renamed(saved, lambda name: name.replace(_COMPILED, ""))
        stripped += [_COMPILED] if plain is not saved else []
        saved = plain
    while _is_wrapped(saved) and not any(name.startswith(_WRAPPED) for name in live):
        if _AVERAGE_COUNTER in saved:
            stripped.append(_AVERAGE_COUNTER)
        saved = _renamed(saved, lambda n: None if n == _AVERAGE_COUNTER else n.removeprefix(_WRAPPED))
        stripped.append(_WRAPPED)
    return saved, tuple(stripped)


def _is_wrapped(saved: Mapping[str, Any]) -> bool:
    names = [name for name in saved if name != _AVERAGE_COUNTER]
    return bool(names) and all(name.startswith(_WRAPPED) for name in names)


def _renamed(saved: Mapping[str, Any], rename: Callable[[str], str | None]) -> Mapping[str, Any]:
    """A state dict under other names; what becomes None is left out, and no two names become one."""
    pairs = [(new, value) for old, value in saved.items() if (new := rename(old)) is not None]
    found = OrderedDict(pairs)
    if len(found) < len(pairs):
        return saved
    metadata = _layer_versions(saved)
    if metadata is not None:
        # Layers are named without the dot at the end that belongs to the names of their tensors.
        found._metadata = OrderedDict(  # type: ignore[attr-defined]
            ((rename(f"{layer}.") or "").removesuffix("."), version) for layer, version in metadata.items()
        )
    return found


def _layer_versions(saved: Mapping[str, Any]) -> OrderedDict[str, dict[str, Any]] | None:
    """What a state dict says of its layers, where layers can read it: a stranger's file may hold anything.

    ``assign_to_params_buffers`` is left out: there, torch keeps how it was called, not what was saved.
    """
    found = getattr(saved, "_metadata", None)
    if not isinstance(found, Mapping):
        return None
    return OrderedDict(
        (layer, {key: value for key, value in told.items() if key != "assign_to_params_buffers"})
        for layer, told in found.items()
        if isinstance(layer, str) and isinstance(told, Mapping) and type(told.get("version", 0)) is int
    )


def _compare(
    live: Mapping[str, Any], saved: Mapping[str, Any], path: Path, source_key: str, stripped: tuple[str, ...]
) -> tuple[WeightsReport, OrderedDict[str, Any]]:
    """What fits a model and what does not, and the part that fits as a state dict."""
    import torch
    from torch.nn.parameter import is_lazy

    fitting: OrderedDict[str, Any] = OrderedDict()
    shapes: list[ShapeDifference] = []
    dtypes: list[str] = []
    for name in live.keys() & saved.keys():
        own, got = live[name], saved[name]
        if not isinstance(own, torch.Tensor) or is_lazy(own):
            fitting[name] = got
        elif not isinstance(got, torch.Tensor):
            shapes.append(ShapeDifference(name, tuple(own.shape), None))
        # Before torch 0.4 scalars were stored as one element, and torch still takes them so.
        elif own.shape != got.shape and not (own.ndim == 0 and got.shape == (1,)):
            shapes.append(ShapeDifference(name, tuple(own.shape), tuple(got.shape)))
        else:
            fitting[name] = got
            dtypes += [name] if own.dtype != got.dtype else []
    ordered = OrderedDict((name, fitting[name]) for name in live if name in fitting)
    versions = _layer_versions(saved)
    if versions is not None:
        ordered._metadata = versions  # type: ignore[attr-defined]
    report = WeightsReport(
        path=path,
        source_key=source_key,
        missing=tuple(n for n in live if n not in saved and not _came_later(n, versions)),
        unexpected=tuple(name for name in saved if name not in live),
        other_shape=tuple(sorted(shapes, key=lambda s: list(live).index(s.name))),
        loaded=tuple(ordered),
        other_dtype=tuple(sorted(dtypes)),
        stripped=stripped,
    )
    return report, ordered


def _came_later(name: str, versions: Any) -> bool:
    """Whether batch norms of older torch versions had no such tensor: their files are whole without it.

    Source: torch.nn.modules.batchnorm, state dict version 2.
    """
    layer, _, last = name.rpartition(".")
    if last != _BATCH_COUNTER:
        return False
    known = versions.get(layer, {}) if isinstance(versions, Mapping) else {}
    return (known.get("version") or 0) < 2 if isinstance(known, Mapping) else True


def model_digest(model: torch.nn.Module | Mapping[str, Any]) -> str:
    """The digest that names a model: that of the header of any file which holds these weights.

    Args:
        model: a module (wrappers are seen through), or its state dict.

    Raises:
        UsageError: it has no tensors.
        UnsavableValue: it holds what no checkpoint can hold.
    """
    import torch

    from ckptcore.pieces import unwrap

    state = unwrap(model).state_dict() if isinstance(model, torch.nn.Module) else model
    tree, tensors = flatten({MODEL_KEYS[0]: state})
    data = {index: raw_bytes(tensor) for index, tensor in enumerate(tensors)}
    digests = {index: hashlib.sha256(view).hexdigest() for index, (_, _, view) in data.items()}
    specs = {index: spec for index, (spec, _, _) in data.items()}
    found = digest_of_entries(tensor_entries(tree, specs, digests))
    if found is None:
        raise UsageError("expected a model or a state dict with tensors in it; it has none.")
    return found


def raw_bytes(tensor: torch.Tensor) -> tuple[TensorSpec, torch.Tensor, memoryview]:
    """What a tensor is, its row-major bytes, and between them the tensor that keeps these bytes alive."""
    from ckptcore.writing import bytes_of, contiguous

    own = contiguous(tensor)
    spec = TensorSpec(str(own.dtype).removeprefix("torch."), tuple(own.shape))
    return spec, own, bytes_of(own, spec)
