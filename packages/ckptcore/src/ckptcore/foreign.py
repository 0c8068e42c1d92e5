"""Checkpoints of other programs: plain torch.save files, Lightning's, safetensors.

A foreign pickle is only ever read by torch's weights_only unpickler, after `ckptcore.foreign_pickle` found
that it asks for nothing but data; there is no switch to change that. The file is first copied into memory and
checked there, so that nothing can be swapped between check and load.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptcore import safetensors
from ckptcore.errors import CheckpointError, DamagedCheckpoint, RefusedContent, UnknownFormat, UnsavableValue
from ckptcore.foreign_pickle import PickleRefused, survey_legacy
from ckptcore.foreign_zip import NOT_NATIVE, refused, zip_findings
from ckptcore.header import MARKER, Header, derive_content, read_exactly
from ckptcore.plain import flatten

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def sniff(fd: int) -> str:
    """The format of an open file by its first bytes: torch, torch-legacy, safetensors, tar, pickle or
    unknown.
    """
    head = read_exactly(fd, 512, 0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "torch"
    if head.startswith(_LEGACY_MAGIC):
        return "torch-legacy"
    if head[257:262] == b"ustar":
        return "tar"
    if head[8:9] == b"{":
        return "safetensors"
    return "pickle" if head.startswith((b"\x80", b"(", b"]", b"}", b"c")) else "unknown"


def why_not_native(fd: int) -> list[str]:
    """What is wrong with a file that carries our marker and does not read as ours."""
    size = os.fstat(fd).st_size
    tail = read_exactly(fd, 1 << 16, max(0, size - (1 << 16)))
    if b"PK\x05\x06" not in tail:
        return [f"its end is missing (the file has {size:,} bytes and no zip directory): it was cut off"]
    return [NOT_NATIVE]


def read_header(fd: int, path: Path) -> Header:
    """What can be said of a foreign file without loading it: format and size.

    Raises:
        UnknownFormat: it is nothing that ckptcore reads.
    """
    kind = sniff(fd)
    if kind in ("unknown", "pickle", "tar"):
        raise UnknownFormat(
            f"{path.name} is in no format that ckptcore reads; "
            "expected a checkpoint (.pt, .pth, .ckpt) or .safetensors file."
        )
    size = os.fstat(fd).st_size
    return Header(
        path,
        kind,
        0,
        {"scalars": {}, "texts": {}, "val_metrics": {}, "keys": []},
        {"epoch_counts": "unknown"},
        None,
        size,
    )


def findings(fd: int, path: Path) -> list[str]:
    """What is wrong with a foreign file, as far as that can be told: zip structure and CRCs, or the structure
    of safetensors and of torch's format from before 1.6, which carry nothing to check their numbers by.

    Raises:
        UnknownFormat: it is nothing that ckptcore reads.
        RefusedContent: it is no checkpoint but something that would run.
    """
    kind = read_header(fd, path).format
    if kind == "torch":
        with open(fd, "rb", closefd=False) as file:
            return zip_findings(file, path)
    if kind == "safetensors":
        return safetensors.findings(fd)
    return _legacy_findings(read_exactly(fd, os.fstat(fd).st_size, 0), path)


def load(fd: int, path: Path, map_location: Any) -> tuple[Header, dict[str, Any]]:
    """The mapping in a foreign file, and a header made from it.

    Raises:
        DamagedCheckpoint: its own CRCs or structure do not hold.
        RefusedContent: it asks for more than data.
        UnknownFormat: it is nothing that ckptcore reads, or holds no mapping.
    """
    kind = sniff(fd)
    if kind in ("tar", "pickle"):
        what = "torch's tar format from before 2018" if kind == "tar" else "a bare pickle"
        raise RefusedContent(path, f"{what} can run code when it is opened. Convert it where it was made.")
    if kind == "unknown":
        read_header(fd, path)
    if kind == "safetensors":
        mapping, metadata = safetensors.load(fd, path)
        if map_location is not None and str(map_location) != "cpu":
            mapping = {name: tensor.to(map_location) for name, tensor in mapping.items()}
        return _header(path, "safetensors", mapping, {"safetensors": metadata}, os.fstat(fd).st_size), mapping
    data = read_exactly(fd, os.fstat(fd).st_size, 0)
    wrong = zip_findings(io.BytesIO(data), path) if kind == "torch" else _legacy_findings(data, path)
    if wrong:
        raise DamagedCheckpoint(path, wrong)
    mapping = _torch_load(data, path, map_location)
    if MARKER in mapping:
        raise DamagedCheckpoint(path, [NOT_NATIVE])
    name = kind
    if kind == "torch":
        name = "lightning" if "pytorch-lightning_version" in mapping else "torch"
        if mapping and all(_is_tensor(value) for value in mapping.values()):
            name = "state-dict"
    return _header(path, name, mapping, {}, len(data)), mapping


def _legacy_findings(data: bytes, path: Path) -> list[str]:
    try:
        surveys = survey_legacy(data)
    except PickleRefused as error:
        if error.names:
            raise refused(path, error) from error
        return [str(error)]
    return [NOT_NATIVE] if MARKER.encode() in data[: surveys[-1].end] else []


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _torch_load(data: bytes, path: Path, map_location: Any) -> dict[str, Any]:
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:
        # The bytes are a stranger's and the parser is torch's: whatever it raises means that the file was not
        # read.
        raise _refusal(data, path, error) from error
    if not isinstance(found, Mapping) or any(not isinstance(key, str) for key in found):
        raise UnknownFormat(
            f"{path.name} holds a {type(found).__name__}; "
            "expected a dict with text keys (a checkpoint or a state dict)."
        )
    return found if isinstance(found, dict) else dict(found)


def _refusal(data: bytes, path: Path, error: Exception) -> CheckpointError:
    import torch

    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:  # torch names the classes where it can; where it cannot, its message has to do.
        names = []
    if names:
        return RefusedContent(
            path,
            f"it holds objects of {', '.join(names[:5])}, and loading data never needs classes. "
            "Save it again where it was made, with their state_dict() or plain values instead.",
            names,
        )
    first_line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return RefusedContent(path, f"torch's restricted loader does not read it ({first_line}).")


def _header(path: Path, kind: str, mapping: Mapping[str, Any], metadata: dict[str, Any], size: int) -> Header:
    try:
        tree, tensors = flatten(mapping)
    except UnsavableValue:
        tree, tensors = {}, []
    content = derive_content(tree)
    metadata["epoch_counts"] = epoch_convention(mapping)
    nbytes = sum(t.numel() * t.element_size() for t in tensors)
    return Header(
        path, kind, 0, content, metadata, None, size, tensor_count=len(tensors), tensor_bytes=nbytes
    )


def epoch_convention(mapping: Mapping[str, Any]) -> str:
    """What ``epoch`` counts in a foreign checkpoint, told by the keys beside it: "index", "finished" or
    "unknown".

    Lightning and the saved_models layout store the index of the last finished epoch; the layouts with
    ``epoch_losses``, with ``optimal_threshold`` and with ``best_val_dice`` in their history store how many
    are finished.
    """
    if "epoch" not in mapping:
        return "unknown"
    if "pytorch-lightning_version" in mapping:
        return "index"
    history = mapping.get("history")
    if "epoch_losses" in mapping or "optimal_threshold" in mapping:
        return "finished"
    if isinstance(history, Mapping) and ("best_val_dice" in history or "val_dice" in history):
        return "finished"
    if {"best_metric", "val_auc", "timestamp", "hyperparameters"} & set(mapping):
        return "index"
    return "unknown"
