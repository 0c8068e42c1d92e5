"""What a checkpoint says of itself at the end of its file: a small summary, and the table of its tensors.

The last record of the zip is the summary: canonical JSON, then a seal of 64 bytes (magic, format version,
length, SHA-256 of the JSON). It is found from the end of the file in one read, without the central directory.
The record before it is the tensor table, which the summary names by its SHA-256; the table names every other
record by its own. So the seal stands for every byte of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptcore.canonical import canonical_json, encode_number, json_depth, jsonable, too_many_brackets
from ckptcore.errors import UnsavableValue
from ckptcore.plain import MAX_DEPTH
from ckptcore.tables import (
    MAX_TABLE,
    MODEL_KEYS,
    RecordEntry,
    TensorEntry,
    decode_table,
    encode_table,
    model_digest,
    tensor_counts,
    tensor_entries,
)

__all__ = [
    "FORMAT_VERSION",
    "MAGIC",
    "MARKER",
    "MAX_SUMMARY",
    "MAX_TABLE",
    "MODEL_KEYS",
    "SEAL",
    "SUMMARY_RECORD",
    "TABLE_RECORD",
    "Header",
    "RecordEntry",
    "TensorEntry",
    "canonical_json",
    "decode_summary",
    "decode_table",
    "derive_content",
    "encode_number",
    "encode_table",
    "jsonable",
    "model_digest",
    "read_exactly",
    "seal",
    "summary_bytes",
    "summary_format",
    "tensor_counts",
    "tensor_entries",
    "too_many_brackets",
]

FORMAT_VERSION = 1
MARKER = "ckptcore_format"
MAGIC = b"ckptcore"
SEAL = struct.Struct("<8sIIQ32s8x")
TABLE_RECORD = "ckptcore/tensors.json"
SUMMARY_RECORD = "ckptcore/summary.json"
MAX_SUMMARY = 1 << 20
_MAX_TEXT = 200
_MAX_SCALARS = 200


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def derive_content(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary says about the state itself; readers derive it again and compare.

    Args:
        tree: the canonical tree of ``data.pkl``.
    """
    scalars = {k: encode_number(v) for k, v in list(tree.items()) if len(k) <= _MAX_TEXT and _is_number(v)}
    metrics = tree.get("val_metrics")
    val_metrics = {}
    if isinstance(metrics, dict):
        val_metrics = {
            str(k): encode_number(v) for k, v in metrics.items() if len(str(k)) <= _MAX_TEXT and _is_number(v)
        }
    texts = {k: v for k, v in tree.items() if type(v) is str and len(v) <= _MAX_TEXT >= len(k)}
    return {
        "scalars": dict(list(scalars.items())[:_MAX_SCALARS]),
        "texts": dict(list(texts.items())[:_MAX_SCALARS]),
        "val_metrics": dict(list(val_metrics.items())[:_MAX_SCALARS]),
        "keys": [key[:_MAX_TEXT] for key in list(tree)[:_MAX_SCALARS]],
    }


def seal(summary: bytes) -> bytes:
    """The summary record: JSON and its seal."""
    return summary + SEAL.pack(MAGIC, FORMAT_VERSION, 0, len(summary), hashlib.sha256(summary).digest())


@dataclass(frozen=True)
class Header:
    """What is known of a checkpoint without reading its tensors.

    Attributes:
        path: the file.
        format: "ckptcore", or the name of a foreign format.
        format_version: version of the ckptcore format; 0 for foreign files.
        content: what the file's state says (scalars, texts, val_metrics, keys).
        metadata: what its writer said (roles, run_key, metrics, reason, layout, ...).
        model_digest: names the model, whatever file it sits in; None where there is none.
        file_size: bytes.
    """

    path: Path
    format: str
    format_version: int
    content: Mapping[str, Any]
    metadata: Mapping[str, Any]
    model_digest: str | None
    file_size: int
    created: str | None = None
    tensor_count: int = 0
    tensor_bytes: int = 0
    parameters: int = 0
    writer: str | None = None
    table_at: tuple[int, int, str] | None = field(default=None, repr=False)
    sealed: bytes = field(default=b"", repr=False)
    """The whole summary record of a native file."""

    @property
    def epoch(self) -> int | None:
        """``epoch`` as it stands in the file, whatever it counts there."""
        value = self.content.get("scalars", {}).get("epoch")
        return value if isinstance(value, int) else None

    @property
    def epochs_finished(self) -> int | None:
        """How many epochs were finished, in the one meaning that ckptcore has."""
        given = self.metadata.get("epochs_finished")
        if isinstance(given, int):
            return given
        epoch = self.epoch
        if epoch is None or self.metadata.get("epoch_counts") == "finished":
            return epoch
        return None if self.metadata.get("epoch_counts") == "unknown" else epoch + 1

    @property
    def global_step(self) -> int | None:
        """Optimizer steps taken."""
        value = self.content.get("scalars", {}).get("global_step", self.metadata.get("global_step"))
        return value if isinstance(value, int) else None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the writer and of the state by name; where both speak, the writer's count."""
        found: dict[str, Any] = {}
        for key, value in self.content.get("scalars", {}).items():
            if key.startswith(("val_", "train_", "loss", "best_", "test_", "optimal_threshold")):
                found[key] = value
        found.update(self.content.get("val_metrics", {}))
        given = self.metadata.get("metrics")
        found.update(given if isinstance(given, dict) else {})
        return {str(k): float(v) for k, v in found.items() if _floatable(v)}

    @property
    def roles(self) -> tuple[str, ...]:
        """What the file was saved as: best, latest, periodic, stage, final."""
        roles = self.metadata.get("roles")
        return tuple(map(str, roles)) if isinstance(roles, list) else ()

    @property
    def run_key(self) -> str | None:
        """The key of the training run that wrote the file."""
        key = self.metadata.get("run_key")
        return key if isinstance(key, str) else None

    @property
    def reason(self) -> str | None:
        """Why it was saved, where that was no plan: signal, exception, nonfinite."""
        reason = self.metadata.get("reason")
        return reason if isinstance(reason, str) else None


def _floatable(value: object) -> bool:
    if isinstance(value, str):
        return value in ("nan", "inf", "-inf")
    return type(value) is float or (type(value) is int and abs(value) < 1 << 1000)


def summary_bytes(
    content: Mapping[str, Any],
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorEntry],
    table: bytes,
    table_at: int,
    created: str,
    writer: str,
) -> bytes:
    """The JSON of the summary record; ``table_at`` is the byte at which the table's data begins.

    Raises:
        UnsavableValue: the metadata makes it larger than readers accept.
    """
    count, nbytes, parameters = tensor_counts(tensors)
    summary = canonical_json(
        {
            "format": FORMAT_VERSION,
            "created": created,
            "writer": writer,
            "content": content,
            "metadata": metadata,
            "model_digest": model_digest(tensors),
            "tensors": {"count": count, "bytes": nbytes, "parameters": parameters},
            "table": {"at": table_at, "size": len(table), "sha256": hashlib.sha256(table).hexdigest()},
        }
    )
    if len(summary) > MAX_SUMMARY:
        raise UnsavableValue(
            "metadata",
            f"the summary has {len(summary):,} bytes; at most {MAX_SUMMARY:,}. Put it into the state.",
        )
    return summary


def summary_format(summary: bytes) -> object:
    """The format version that the JSON of a summary names.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        return json.loads(summary)["format"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the summary has another form ({type(error).__name__})") from error


def decode_summary(sealed: bytes, path: Path, file_size: int) -> Header:
    """The header that a summary record describes.

    Args:
        sealed: the record, its JSON already checked against its seal.
        path: the file.
        file_size: bytes of the file.

    Raises:
        ValueError: the JSON is not of this form.
    """
    try:
        found = json.loads(sealed[: -SEAL.size])
        if type(found["format"]) is not int or found["format"] != FORMAT_VERSION:
            raise ValueError(f"format version {found['format']}, this ckptcore reads up to {FORMAT_VERSION}")
        content, metadata, counts, table = (
            found["content"],
            found["metadata"],
            found["tensors"],
            found["table"],
        )
        _check_summary(found)
        size, at = table["size"], table["at"]
        if not 0 <= size <= MAX_TABLE or not 0 <= at <= file_size - size:
            raise ValueError(f"a tensor table of {size} bytes at byte {at}")
        return Header(
            path=path,
            format="ckptcore",
            format_version=FORMAT_VERSION,
            content=content,
            metadata=metadata,
            model_digest=found["model_digest"],
            file_size=file_size,
            created=found["created"],
            tensor_count=counts["count"],
            tensor_bytes=counts["bytes"],
            parameters=counts["parameters"],
            writer=found["writer"],
            table_at=(at, size, table["sha256"]),
            sealed=sealed,
        )
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the summary has another form ({type(error).__name__})") from error


def _check_summary(found: Mapping[str, Any]) -> None:
    content, counts, table = found["content"], found["tensors"], found["table"]
    numbers = (*content["scalars"].values(), *content["val_metrics"].values())
    texts = (*content["texts"].values(), *content["keys"], found["created"], found["writer"], table["sha256"])
    whole = (counts["count"], counts["bytes"], counts["parameters"], table["at"], table["size"])
    right = (
        set(content) == {"scalars", "texts", "val_metrics", "keys"}
        and all(_is_number(n) or n in ("nan", "inf", "-inf") for n in numbers)
        and all(type(text) is str for text in texts)
        and all(type(n) is int for n in whole)
        and type(content["keys"]) is list
        and type(found["metadata"]) is dict
        and type(found["model_digest"]) in (str, type(None))
    )
    if not right or json_depth(found["metadata"]) > MAX_DEPTH + 1:
        raise TypeError("a part has another type")


def read_exactly(fd: int, size: int, at: int) -> bytes:
    """``size`` bytes at ``at``, or fewer at the end of the file."""
    parts = []
    while size > 0:
        part = os.pread(fd, min(size, 64 << 20), at)
        if not part:
            break
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return b"".join(parts)
