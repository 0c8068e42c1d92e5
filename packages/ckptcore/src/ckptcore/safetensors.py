"""The safetensors format, read and written without its library: a JSON header and one run of bytes.

Source: the format's own description: eight bytes of header length, JSON with dtype, shape and data_offsets of
    every tensor,
then the data, without holes or overlaps. The format allows headers of 100 MB; parsing one takes gigabytes of
memory, so at most 32 MiB (some 300,000 tensors) are read here.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptcore.dtypes import ITEM_SIZE, is_possible, numel, torch_dtype
from ckptcore.errors import DamagedCheckpoint
from ckptcore.header import canonical_json, read_exactly, too_many_brackets

if TYPE_CHECKING:
    import torch

MAX_HEADER = 32 << 20
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Placement(NamedTuple):
    """A tensor of the file: its dtype in torch's name, its shape, and its bytes within the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_placements(fd: int) -> tuple[dict[str, Placement], dict[str, str], int]:
    """The tensors of an open file by name, its metadata, and where its data begins.

    Raises:
        ValueError: saying what breaks the format's rules.
    """
    size = os.fstat(fd).st_size
    if size < 8:
        raise ValueError("it is shorter than its own header")
    length = struct.unpack("<Q", read_exactly(fd, 8, 0))[0]
    if length > min(MAX_HEADER, size - 8):
        raise ValueError(
            f"its header claims {length:,} bytes; the file has {size:,} and a header {MAX_HEADER:,} at most"
        )
    header = read_exactly(fd, length, 8)
    if too_many_brackets(header):
        raise ValueError("its header has more lists and objects than tensors of that many bytes")
    try:
        found = json.loads(header.decode("utf-8"), object_pairs_hook=_no_doubles)
        if not isinstance(found, dict):
            raise TypeError("no object")
        metadata = found.pop("__metadata__", {})
        if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
            raise TypeError("metadata that is no text")
        placements = {name: _placement(name, entry) for name, entry in found.items()}
    except (TypeError, KeyError, RecursionError, UnicodeError, OverflowError) as error:
        raise ValueError(f"its header has another form ({error})") from error
    _check_places(placements, size - 8 - length)
    return placements, metadata, 8 + length


def _no_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _placement(name: str, entry: Any) -> Placement:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise TypeError(f"the entry of {name[:80]!r}")
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if (
        type(shape) is not list
        or not is_possible((*shape,))
        or not all(type(n) is int and 0 <= n < 1 << 56 for n in (start, end))
    ):
        raise TypeError(f"the numbers of {name[:80]!r}")
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"tensor {name[:80]!r} has the unknown type {str(entry['dtype'])[:20]!r}")
    if end - start != numel(tuple(shape)) * ITEM_SIZE[dtype]:
        raise ValueError(f"tensor {name[:80]!r} of shape {shape[:8]} does not fill its {end - start} bytes")
    return Placement(dtype, tuple(shape), start, end)


def _check_places(placements: Mapping[str, Placement], data_size: int) -> None:
    at = 0
    for name, placement in sorted(placements.items(), key=lambda item: (item[1].start, item[1].end)):
        if placement.start != at:
            raise ValueError(f"tensor {name[:80]!r} overlaps another, or a hole lies before it")
        at = placement.end
    if at != data_size:
        raise ValueError(f"its tensors take {at:,} bytes, the file has {data_size:,}")


def findings(fd: int) -> list[str]:
    """What breaks the format's rules in an open file; the format has no checksums, so flipped bits in the
    data are not found.
    """
    try:
        read_placements(fd)
    except ValueError as error:
        return [str(error)]
    return []


def load(fd: int, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of an open file by name, in memory of their own, and its metadata.

    Raises:
        DamagedCheckpoint: it breaks the format's rules.
    """
    import torch

    from ckptcore import memory

    try:
        placements, metadata, data_at = read_placements(fd)
    except ValueError as error:
        raise DamagedCheckpoint(path, [str(error)]) from error
    size = max((p.end for p in placements.values()), default=0)
    starts = memory.offsets([p.end - p.start for p in placements.values()])
    arena = memory.Arena.of(starts[-1], huge=False)
    view = memoryview(arena)
    tensors: dict[str, torch.Tensor] = {}
    for (name, p), at in zip(placements.items(), starts, strict=False):
        nbytes, done = p.end - p.start, 0
        while done < nbytes:
            count = os.preadv(fd, [view[at + done : at + nbytes]], data_at + p.start + done)
            if count == 0:
                raise DamagedCheckpoint(path, [f"it ends within its {size:,} bytes of data"])
            done += count
        dtype = torch_dtype(p.dtype)
        tensors[name] = (
            torch.frombuffer(arena, dtype=dtype, count=numel(p.shape), offset=at).reshape(p.shape)
            if nbytes
            else torch.empty(p.shape, dtype=dtype)
        )
    return tensors, metadata


def encode_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of a file with these tensors (dtype, shape), whose data follows in this order; the same
    input, the same bytes.

    Raises:
        ValueError: a dtype has no name in this format.
    """
    at = 0
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (dtype, shape) in tensors.items():
        if dtype not in _NAMES:
            raise ValueError(f"tensor {name} of type {dtype} has no place in safetensors")
        size = numel(shape) * ITEM_SIZE[dtype]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    data = canonical_json(header)
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data
