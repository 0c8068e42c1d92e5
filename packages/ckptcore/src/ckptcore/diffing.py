"""What differs between two checkpoints, told by their tensor tables alone: no tensor is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptcore import foreign, reader
from ckptcore.errors import DamagedCheckpoint, UnknownFormat
from ckptcore.header import Header, TensorEntry

ABSENT = "-"
"""Stands for a value that one side does not have."""


@dataclass(frozen=True)
class Reshaped:
    """A tensor with another shape or type: ``float32 (64, 3, 7, 7)`` on either side."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class FieldChange:
    """A value of the header that differs; `ABSENT` where a side lacks it."""

    field: str
    a: object
    b: object


@dataclass(frozen=True)
class Difference:
    """How a second checkpoint differs from a first.

    Attributes:
        changed: tensors of the same shape and type with other values.
        added: tensors that only the second has.
        removed: tensors that only the first has.
        same: tensors that are equal bit by bit.
        reshaped: tensors of another shape or type.
        metadata: values of the header that differ.
        same_model: whether the model's weights are the same.
        same_values: whether everything beside the tensors is the same (history, hyperparameters, counters).
    """

    a: Path
    b: Path
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    same: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]
    metadata: tuple[FieldChange, ...]
    same_model: bool
    same_values: bool

    @property
    def identical(self) -> bool:
        """Whether both hold the same state; when and by whom they were written does not count."""
        return self.same_values and not (self.changed or self.added or self.removed or self.reshaped)


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Difference:
    """Compare two native checkpoints.

    Raises:
        DamagedCheckpoint: the header of one is not what was written.
        UnknownFormat: one is no native file, and so has no digests of its tensors.
    """
    header_a, tensors_a, values_a = _table(a)
    header_b, tensors_b, values_b = _table(b)
    both = [name for name in tensors_a if name in tensors_b]
    alike = [name for name in both if _kind(tensors_a[name]) == _kind(tensors_b[name])]
    same = {name for name in alike if tensors_a[name].digest == tensors_b[name].digest}
    unlike = [name for name in both if _kind(tensors_a[name]) != _kind(tensors_b[name])]
    return Difference(
        a=header_a.path,
        b=header_b.path,
        changed=tuple(name for name in alike if name not in same),
        added=tuple(name for name in tensors_b if name not in tensors_a),
        removed=tuple(name for name in tensors_a if name not in tensors_b),
        same=tuple(name for name in alike if name in same),
        reshaped=tuple(Reshaped(name, _kind(tensors_a[name]), _kind(tensors_b[name])) for name in unlike),
        metadata=_field_changes(header_a, header_b),
        same_model=header_a.model_digest is not None and header_a.model_digest == header_b.model_digest,
        same_values=values_a == values_b,
    )


def _table(path: str | os.PathLike[str]) -> tuple[Header, dict[str, TensorEntry], str]:
    """A file's header, its tensors by name, and the digest of everything beside them."""
    with reader.opened(path) as (file, fd):
        header = reader.find_summary(fd, file)
        if header is None and reader.looks_native(fd):
            raise DamagedCheckpoint(file, foreign.why_not_native(fd))
        if header is None:
            raise UnknownFormat(
                f"{file.name} is no ckptcore file and has no table of digests. Import it first (ckpt import)."
            )
        try:
            _, tensors, records = reader.read_table(fd, header)
        except ValueError as error:
            raise DamagedCheckpoint(file, [str(error)]) from error
    return header, {entry.name: entry for entry in tensors}, records[0].digest


def _kind(entry: TensorEntry) -> str:
    return f"{entry.dtype} {entry.shape}"


def _field_changes(a: Header, b: Header) -> tuple[FieldChange, ...]:
    fields_a, fields_b = _fields(a), _fields(b)
    names = [*fields_a, *(name for name in fields_b if name not in fields_a)]
    pairs = [(name, fields_a.get(name, ABSENT), fields_b.get(name, ABSENT)) for name in names]
    return tuple(FieldChange(name, x, y) for name, x, y in pairs if x != y)


def _fields(header: Header) -> dict[str, object]:
    """The header as flat values by dotted name."""
    found: dict[str, object] = {}
    content = header.content
    for part in (content.get("scalars", {}), content.get("texts", {})):
        _flatten("", part, found)
    _flatten("val_metrics", content.get("val_metrics", {}), found)
    _flatten("metadata", header.metadata, found)
    return found | {"created": header.created, "writer": header.writer, "model_digest": header.model_digest}


def _flatten(prefix: str, value: Any, into: dict[str, object]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(f"{prefix}.{key}" if prefix else str(key), item, into)
    else:
        into[prefix] = value
