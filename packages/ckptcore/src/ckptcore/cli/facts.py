"""What one checkpoint says of itself, as names and values and as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ckptcore import reader, safetensors
from ckptcore.cli.text import age, aligned, amount, clean, count, moment, plural, size
from ckptcore.errors import DamagedCheckpoint, UsageError
from ckptcore.header import Header

_OWN_METADATA = frozenset(
    (
        *("run_key", "layout", "epoch_counts", "epochs_finished", "global_step", "metrics", "best"),
        *("roles", "names", "sequence", "reason", "total_epochs", "stages", "parent"),
    )
)
_COUNTS = {"index": "the index of the last finished epoch, from 0", "finished": "finished epochs"}


class TensorRow(NamedTuple):
    """A tensor of a file; the digest is empty where its format has none."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    digest: str


def header_json(header: Header) -> dict[str, Any]:
    """A header as `--json` shows it."""
    return {
        "path": header.path,
        "name": header.path.name,
        "format": header.format,
        "format_version": header.format_version,
        "epoch": header.epoch,
        "epochs_finished": header.epochs_finished,
        "global_step": header.global_step,
        "metrics": header.metrics,
        "roles": list(header.roles),
        "reason": header.reason,
        "run_key": header.run_key,
        "model_digest": header.model_digest,
        "tensor_count": header.tensor_count,
        "tensor_bytes": header.tensor_bytes,
        "parameters": header.parameters,
        "keys": list(header.content.get("keys", ())),
        "texts": dict(header.content.get("texts", {})),
        "scalars": finite(header.content.get("scalars", {})),
        "metadata": dict(header.metadata),
        "created": header.created,
        "writer": header.writer,
        "size": header.file_size,
    }


def finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers by name; those that are written as text, as NaN and the infinities are, become None."""
    return {name: None if isinstance(value, str) else value for name, value in numbers.items()}


def header_facts(header: Header, whole: bool = False) -> list[tuple[str, str]]:
    """A header as lines for people.

    Args:
        header: of a native or a foreign file.
        whole: also keys, texts and the metadata of its writer.
    """
    facts = [
        ("file", clean(str(header.path))),
        ("size", f"{size(header.file_size)} ({header.file_size:,} bytes)"),
    ]
    if header.format != "ckptcore":
        told = f"{header.format}, not written by ckptcore: 'ckpt import' reads what is in it"
        return [*facts, ("format", told)]
    facts += _training(header)
    metrics = {name: amount(value) for name, value in header.metrics.items()}
    facts += [("metrics", aligned(metrics))] if metrics else []
    facts += _identity(header)
    return facts + (_contents(header) if whole else [])


def _training(header: Header) -> list[tuple[str, str]]:
    meta = header.metadata
    total = meta.get("total_epochs")
    of_total = f" of {total}" if isinstance(total, int) else ""
    convention = _COUNTS.get(str(meta.get("epoch_counts")))
    stored = (
        f" (epoch {header.epoch} in the file: {convention})"
        if convention and header.epoch is not None
        else ""
    )
    facts = (
        [("epoch", f"{count(header.epochs_finished)}{of_total} finished{stored}")]
        if header.epochs_finished is not None
        else []
    )
    if not facts and header.epoch is not None:
        facts = [("epoch", f"{header.epoch} in the file, which does not say what it counts")]
    facts += [("step", count(header.global_step))] if header.global_step is not None else []
    stages = meta.get("stages")
    facts += [("stages", clean(", ".join(map(str, stages))))] if isinstance(stages, list) and stages else []
    saved = f"{moment(header.created)} UTC" + (f", {age(header.created)}" if age(header.created) else "")
    return [*facts, ("saved", saved), *([("why", f"on {clean(header.reason)}")] if header.reason else [])]


def _identity(header: Header) -> list[tuple[str, str]]:
    meta = header.metadata
    facts = [("saved as", clean(", ".join(header.roles)))] if header.roles else []
    facts += [("run", clean(header.run_key or "none: saved by hand"))]
    parent = meta.get("parent")
    if isinstance(parent, Mapping):
        facts.append(("parent", aligned({str(k): str(v) for k, v in parent.items() if v})))
    model = f"{plural(header.parameters, 'element')}" if header.model_digest else "none"
    return [
        *facts,
        ("model", model + (f"\nsha256 {header.model_digest}" if header.model_digest else "")),
        ("tensors", f"{count(header.tensor_count)}, {size(header.tensor_bytes)}"),
        ("written by", clean(f"{header.writer}, format {header.format_version}")),
    ]


def _contents(header: Header) -> list[tuple[str, str]]:
    keys = [clean(str(key)) for key in header.content.get("keys", ())]
    facts = [("keys", "\n".join(keys))] if keys else []
    scalars = {k: v for k, v in header.content.get("scalars", {}).items() if k not in header.metrics}
    values = {**scalars, **header.content.get("texts", {})}
    facts += [("values", aligned({str(k): _value(v) for k, v in values.items()}))] if values else []
    more = {key: value for key, value in header.metadata.items() if key not in _OWN_METADATA}
    return facts + ([("metadata", aligned({str(k): _value(v) for k, v in more.items()}))] if more else [])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return amount(value)
    if isinstance(value, (dict, list)):
        import json

        return json.dumps(value)
    return str(value)


def tensor_rows(path: Path) -> list[TensorRow]:
    """The tensors of a native or safetensors file, from its header.

    Raises:
        UsageError: its format tells nothing without being loaded.
        DamagedCheckpoint: the table is not what was written.
    """
    with reader.opened(path) as (file, fd):
        header = reader.find_summary(fd, file)
        try:
            if header is not None:
                _, tensors, _ = reader.read_table(fd, header)
                return [TensorRow(t.name, t.dtype, t.shape, t.nbytes, t.digest) for t in tensors]
            if os.path.splitext(file.name)[1] == ".safetensors":
                placements, _, _ = safetensors.read_placements(fd)
                return [TensorRow(n, p.dtype, p.shape, p.end - p.start, "") for n, p in placements.items()]
        except ValueError as error:
            raise DamagedCheckpoint(file, [str(error)]) from error
    raise UsageError(
        f"{path.name} is no file of ckptcore, so its tensors cannot be listed without loading it. "
        "'ckpt import' converts it."
    )
