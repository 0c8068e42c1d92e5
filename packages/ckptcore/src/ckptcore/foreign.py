"""Checkpoints of other programs: plain torch.save files, Lightning's, safetensors.

A foreign pickle is only ever read by torch's weights_only unpickler, and there is no switch to change that. The file is
first copied into memory and checked there, so that nothing can be swapped between check and load.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ckptcore import safetensors
from ckptcore.errors import CheckpointError, DamagedCheckpoint, RefusedContent, UnknownFormat, UnsavableValue
from ckptcore.header import Header, derive_content, read_exactly
from ckptcore.plain import flatten

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_DESCRIPTOR = 24
_CHUNK = 1 << 20


def sniff(fd: int) -> str:
    """The format of an open file by its first bytes: torch, torch-legacy, safetensors, tar, pickle or unknown."""
    head = read_exactly(fd, 512, 0)
    size = os.fstat(fd).st_size
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "torch"
    if head.startswith(_LEGACY_MAGIC):
        return "torch-legacy"
    if head[257:262] == b"ustar":
        return "tar"
    if len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size:
        return "safetensors"
    if len(head) >= 9 and head[8:9] == b"{" and head[:8] > b"":
        return "safetensors"
    return "pickle" if head.startswith((b"\x80", b"(", b"]", b"}", b"c")) else "unknown"


def why_not_native(fd: int) -> list[str]:
    """What is wrong with a file that carries our marker and does not read as ours."""
    size = os.fstat(fd).st_size
    tail = read_exactly(fd, 1 << 16, max(0, size - (1 << 16)))
    if b"PK\x05\x06" not in tail:
        return [f"its end is missing (the file has {size:,} bytes and no zip directory): it was cut off"]
    return [
        "it carries the marker of a ckptcore file and no intact header at its end: it was changed after it was written, "
        "or loaded and saved again by another program (save it with ckptcore.save)"
    ]


def read_header(fd: int, path: Path) -> Header:
    """What can be said of a foreign file without loading it: format and size.

    Raises:
        UnknownFormat: it is nothing that ckptcore reads.
    """
    kind = sniff(fd)
    if kind in ("unknown", "pickle", "tar"):
        raise UnknownFormat(
            f"{path.name} is in no format that ckptcore reads; expected a checkpoint (.pt, .pth, .ckpt) or .safetensors file."
        )
    size = os.fstat(fd).st_size
    return Header(path, kind, 0, {"scalars": {}, "texts": {}, "val_metrics": {}, "keys": []}, {"epoch_counts": "unknown"}, None, size)


def findings(fd: int, path: Path) -> list[str]:
    """What is wrong with a foreign file, as far as that can be told: zip structure and CRCs, or safetensors structure.

    Raises:
        UnknownFormat: it is nothing that ckptcore reads.
        RefusedContent: it is no checkpoint but something that would run.
    """
    kind = read_header(fd, path).format
    if kind == "torch":
        with open(fd, "rb", closefd=False) as file:
            return _zip_findings(file, path)
    if kind == "safetensors":
        return safetensors.findings(fd)
    return []


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
    if kind == "torch":
        wrong = _zip_findings(io.BytesIO(data), path)
        if wrong:
            raise DamagedCheckpoint(path, wrong)
    mapping = _torch_load(data, path, map_location)
    name = kind
    if kind == "torch":
        name = "lightning" if "pytorch-lightning_version" in mapping else "torch"
        if mapping and all(_is_tensor(value) for value in mapping.values()):
            name = "state-dict"
    return _header(path, name, mapping, {}, len(data)), mapping


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
    except CheckpointError:
        raise
    except Exception as error:
        # The bytes are a stranger's and the parser is torch's: whatever it raises means that the file was not read.
        raise _refusal(data, path, error) from error
    if not isinstance(found, Mapping) or any(not isinstance(key, str) for key in found):
        raise UnknownFormat(f"{path.name} holds a {type(found).__name__}; expected a dict with text keys (a checkpoint or a state dict).")
    return dict(found)


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
    return Header(path, kind, 0, content, metadata, None, size, tensor_count=len(tensors), tensor_bytes=nbytes)


def epoch_convention(mapping: Mapping[str, Any]) -> str:
    """What ``epoch`` counts in a foreign checkpoint, told by the keys beside it: "index", "finished" or "unknown".

    Lightning and the saved_models layout store the index of the last finished epoch; the layouts with ``epoch_losses``, with
    ``optimal_threshold`` and with ``best_val_dice`` in their history store how many are finished.
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


def _zip_findings(file: IO[bytes], path: Path) -> list[str]:
    """Structure and CRCs of a torch zip; torch itself checks neither.

    Raises:
        RefusedContent: it is a TorchScript program.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            tops = {name.split("/", 1)[-1] for name in names}
            if "constants.pkl" in tops or any(name.startswith("code/") for name in tops):
                raise RefusedContent(path, "it is a TorchScript program, not a checkpoint. Load its state_dict where it was made and save that.")
            wrong = _listing_findings(infos)
            return wrong or _place_findings(file, archive, infos) or _crc_findings(file, infos)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, UnicodeError, ValueError, EOFError, OverflowError, OSError, NotImplementedError) as error:
        return [f"its zip directory does not hold ({error})"]


def _listing_findings(infos: list[zipfile.ZipInfo]) -> list[str]:
    names = [info.filename for info in infos]
    wrong = [f"record {name!r} is listed twice" for name in sorted({n for n in names if names.count(n) > 1})] if len(names) != len(set(names)) else []
    wrong += [f"record {i.filename!r} is compressed or encrypted; torch writes neither" for i in infos if i.compress_type or i.flag_bits & 1]
    wrong += [f"record {n!r} leads out of the archive" for n in names if n.startswith("/") or ".." in n.split("/") or "\\" in n]
    if sum(1 for name in names if name.count("/") == 1 and name.endswith("/data.pkl")) != 1:
        wrong.append("it has no data.pkl: no checkpoint of torch.save")
    return wrong


def _place_findings(file: IO[bytes], archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> list[str]:
    """Overlapping records and bytes that no record owns."""
    at = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        file.seek(info.header_offset)
        head = file.read(30)
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            return [f"record {info.filename!r} has no header where the directory says"]
        name_size, extra_size = struct.unpack("<HH", head[26:30])
        if file.read(name_size) != info.orig_filename.encode("utf-8"):
            return [f"record {info.filename!r} is called otherwise in its own header"]
        if not at <= info.header_offset <= at + _MAX_DESCRIPTOR:
            return [f"record {info.filename!r} overlaps the one before it, or unlisted bytes lie between them"]
        at = info.header_offset + 30 + name_size + extra_size + info.compress_size
    if not at <= archive.start_dir <= at + _MAX_DESCRIPTOR:
        return ["unlisted bytes lie before the zip directory, or records reach into it"]
    return []


def _crc_findings(file: IO[bytes], infos: list[zipfile.ZipInfo]) -> list[str]:
    wrong = []
    for info in infos:
        file.seek(info.header_offset + 26)
        name_size, extra_size = struct.unpack("<HH", file.read(4))
        file.seek(name_size + extra_size, os.SEEK_CUR)
        left, crc = info.file_size, 0
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        if left or crc != info.CRC:
            wrong.append(f"record {info.filename} (its CRC-32 does not match)")
    return wrong
