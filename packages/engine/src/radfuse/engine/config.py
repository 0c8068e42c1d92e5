"""params.yaml as checked settings: every key is known, every value is of its type."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, Field, PrivateAttr, TypeAdapter

from ckptcore.canonical import canonical_json
from radfuse.engine import modality as registry
from radfuse.engine import parameters
from radfuse.engine.blocks import (
    EvaluateSettings,
    ExportSettings,
    ModalityBlocks,
    PredictSettings,
    PrepareBlock,
    PrivacySettings,
    SplitSettings,
    TrainBlock,
)
from radfuse.engine.errors import SettingsError
from radfuse.engine.modality import Modality
from radfuse.engine.settings import PrepareSettings, Settings, TrainSettings
from radfuse.engine.validation import unknown_key, validated

Block = TypeVar("Block", bound=BaseModel)
_PLAIN: TypeAdapter[Any] = TypeAdapter(Any)


class Params(Settings):
    """Everything that params.yaml says.

    Attributes:
        seed: of the trainings; the split has its own.
        phantom: checked by the command that reads it.
        sources: checked by each source's own kind.
        ensemble: checked by the command that reads it.
    """

    seed: int = 0
    phantom: dict[str, Any] = Field(default_factory=dict)
    sources: tuple[dict[str, Any], ...] = ()
    split: SplitSettings = SplitSettings()
    privacy: PrivacySettings = PrivacySettings()
    prepare: PrepareBlock = PrepareBlock()
    train: TrainBlock = TrainBlock()
    predict: PredictSettings = PredictSettings()
    ensemble: dict[str, Any] = Field(default_factory=dict)
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()

    _origin: str = PrivateAttr(default="params.yaml")

    @property
    def origin(self) -> str:
        """Where it was read, for messages: ``params.yaml``, or ``params.yaml with --set seed``."""
        return self._origin

    def prepare_of(self, modality: Modality) -> PrepareSettings:
        """How images of a modality become arrays, as its package understands it.

        Raises:
            SettingsError: ``prepare.<modality>`` says something that the package does not know.
        """
        data = self.prepare.of(modality.name)
        return validated(modality.prepare_settings, data, self.origin, ("prepare", modality.name))

    def train_of(self, modality: Modality) -> TrainSettings:
        """How the network of a modality is trained, as its package understands it.

        Raises:
            SettingsError: ``train.<modality>`` says something that the package does not know.
        """
        data = self.train.of(modality.name)
        return validated(modality.train_settings, data, self.origin, ("train", modality.name))

    def block(self, name: str, model: type[Block]) -> Block:
        """A block that a command of another package checks itself: ``ensemble``, ``phantom``.

        Raises:
            SettingsError: it says something that the model does not know.
        """
        return validated(model, getattr(self, name), self.origin, (name,))


def load(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Read params.yaml, all of it checked.

    Args:
        path: the file.
        overrides: values of ``--set``: ``dotted.key=value``.

    Raises:
        SettingsError: the file cannot be read, or says something that nothing understands.
    """
    data = parameters.read(path)
    changed = parameters.override(data, overrides)
    origin = f"{path} with --set {' '.join(changed)}" if changed else str(path)
    # A block whose lines are all commented out reads as nothing, which means the defaults.
    given = {key: value for key, value in data.items() if value is not None}
    params = validated(Params, given, origin)
    params._origin = origin
    _check_modalities(params)
    return params


def digest(value: Any) -> str:
    """SHA-256 of settings, or of any plain value: the same for equal values, whatever their order.

    Args:
        value: a block, a mapping, a list or a scalar.
    """
    plain = _PLAIN.dump_python(value, mode="json")
    return hashlib.sha256(canonical_json(plain)).hexdigest()


def installed_modalities() -> list[str]:
    """Names of the installed modalities; none of their packages is imported."""
    return sorted(entry_points(group=registry.GROUP).names)


def _check_modalities(params: Params) -> None:
    """Check what stands there for single modalities: a typing error must not show after hours of work."""
    installed = installed_modalities()
    for name, block in (("prepare", params.prepare), ("train", params.train)):
        for modality in block.named:
            if modality not in installed:
                known = [*type(block).model_fields, *installed]
                raise SettingsError(f"{params.origin}: {unknown_key((name, modality), known)}")
            _check_mapping(params.origin, name, modality, block)
    for modality in params.prepare.named:
        params.prepare_of(registry.modality(modality))
    for modality in params.train.named:
        params.train_of(registry.modality(modality))


def _check_mapping(origin: str, name: str, modality: str, block: ModalityBlocks) -> None:
    value = cast(dict[str, Any], block.model_extra)[modality]
    if value is not None and not isinstance(value, dict):
        raise SettingsError(f"{origin}: {name}.{modality}: expected a block of keys, got {value!r}")
