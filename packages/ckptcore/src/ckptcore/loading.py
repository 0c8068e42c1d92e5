"""Reading checkpoints: verified while they are read, foreign formats through torch's restricted unpickler."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ckptcore import foreign, memory, pickled
from ckptcore.dtypes import numel, torch_dtype
from ckptcore.errors import CheckpointError, DamagedCheckpoint, UsageError
from ckptcore.hashing import Stretch, intact
from ckptcore.header import Header
from ckptcore.memory import without_collection
from ckptcore.plain import Atom, TensorSlot
from ckptcore.reader import Opened, find_summary, looks_native, open_native, opened

if TYPE_CHECKING:
    import torch


class Checkpoint(dict[str, Any]):
    """A loaded checkpoint: the mapping that was saved, with what its header says.

    Attributes:
        header: metrics, digests, roles and the rest of the header.
        path: where it was read from.
    """

    def __init__(self, mapping: dict[str, Any], header: Header) -> None:
        super().__init__(mapping)
        # A bare state dict keeps the versions of its layers here; load_state_dict looks for them.
        if hasattr(mapping, "_metadata"):
            self._metadata = mapping._metadata
        self.header = header
        self.path = header.path

    @property
    def epochs_finished(self) -> int | None:
        """How many epochs were finished, whatever ``epoch`` counts in this format; None if it is not said."""
        return self.header.epochs_finished


def load(path: str | os.PathLike[str], map_location: Any = "cpu", *, mmap: bool = False) -> Checkpoint:
    """Load a checkpoint; every byte of a native file is verified on the way.

    Args:
        path: a file of ckptcore, or of a format that it reads (torch.save, Lightning, safetensors).
        map_location: the device that its tensors go to; always loadable on the CPU, whatever they were saved
            on. None: the CPU, or for files of other programs where they were saved.
        mmap: let the tensors of a native file lie in the file itself, mapped into memory, instead of in a
            copy. Verified all the same, and faster; but whoever overwrites or cuts that very file while they
            live (nothing in ckptcore does, a plain ``torch.save`` to its name would) changes them or ends the
            process.

    Raises:
        DamagedCheckpoint: naming every tensor or record that is not what was written.
        RefusedContent: a foreign file that asks for more than data.
        UnknownFormat: it is nothing that ckptcore reads.
        CheckpointError: it does not fit into memory.
        UsageError: ``map_location`` is no device of this machine; nothing was read.
    """
    _check_place(map_location)
    try:
        with opened(path) as (file, fd):
            header = find_summary(fd, file)
            if header is not None:
                with without_collection():
                    mapping = _load_native(fd, open_native(fd, header), map_location, mmap)
            elif looks_native(fd):
                raise DamagedCheckpoint(file, foreign.why_not_native(fd))
            else:
                header, mapping = foreign.load(fd, file, map_location)
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into memory. Load it where there is more.") from error
    return Checkpoint(mapping, header)


def _check_place(map_location: Any) -> None:
    """Refuse what is no device before the file is read: a large one takes minutes to hash."""
    if map_location is None or str(map_location) == "cpu":
        return
    import torch

    if not isinstance(map_location, (str, torch.device)):
        raise UsageError(
            f"expected map_location to be a device, its name or None, got {type(map_location).__name__}. "
            "Load to the CPU, and move the tensors from there."
        )
    try:
        torch.empty(0, device=map_location)
    except (RuntimeError, AssertionError, ImportError) as error:
        why = str(error).partition("\n")[0]
        raise UsageError(
            f"expected map_location to be a device of this machine, got {str(map_location)!r} ({why})."
        ) from error


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a checkpoint from the end of its file, without torch and without reading tensors.

    Raises:
        DamagedCheckpoint: the file was ours and its header is not what was written.
        UnknownFormat: a foreign file; it has no header (`load` reads it).
    """
    with opened(path) as (file, fd):
        header = find_summary(fd, file)
        if header is not None:
            return header
        if looks_native(fd):
            raise DamagedCheckpoint(file, foreign.why_not_native(fd))
        return foreign.read_header(fd, file)


def _load_native(fd: int, found: Opened, map_location: Any, mapped: bool) -> dict[str, Any]:
    tensors, stretches = (_mapped_tensors if mapped else _copied_tensors)(fd, found)
    before = os.fstat(fd)
    whole = dict(zip(stretches, intact(list(stretches.values())), strict=True))
    damaged = [f"tensor {e.name}" for e in found.tensors if not whole[e.storage]]
    after = os.fstat(fd)
    if mapped and (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        damaged.append("it was changed while it was read")
    if damaged:
        raise DamagedCheckpoint(found.header.path, damaged)
    if map_location is not None and str(map_location) != "cpu":
        tensors = {index: tensor.to(map_location) for index, tensor in tensors.items()}
    return {key: _materialise(value, tensors) for key, value in found.tree.items()}


def _materialise(value: Any, tensors: dict[int, torch.Tensor]) -> Any:
    """A canonical tree with its slots filled."""
    kind = type(value)
    if kind is TensorSlot:
        return tensors[value.index]
    if kind is dict:
        return {key: _materialise(item, tensors) for key, item in value.items()}
    if kind is OrderedDict:
        filled = OrderedDict((key, _materialise(item, tensors)) for key, item in value.items())
        if hasattr(value, "_metadata"):
            filled._metadata = _materialise(value._metadata, tensors)  # type: ignore[attr-defined]
        return filled
    if kind is list:
        return [_materialise(item, tensors) for item in value]
    if kind is tuple:
        return tuple(_materialise(item, tensors) for item in value)
    if kind is Atom:
        return _atom(value)
    return value


def _atom(atom: Atom) -> Any:
    import torch

    if atom.kind == "dtype":
        return torch_dtype(str(atom.value))
    return torch.device(str(atom.value)) if atom.kind == "device" else torch.Size(tuple(map(int, atom.value)))


Tensors = tuple[dict[int, "torch.Tensor"], dict[int, Stretch]]
"""Tensors by storage index, and the parts of the file that must be hashed before they may be used."""


def _mapped_tensors(fd: int, found: Opened) -> Tensors:
    """Tensors that lie in the file; a page is copied when it is written to."""
    try:
        whole = mmap.mmap(fd, found.header.file_size, access=mmap.ACCESS_COPY)
    except ValueError as error:
        raise DamagedCheckpoint(found.header.path, ["it was cut while it was read"]) from error
    view = memoryview(whole)
    tensors, stretches = {}, {}
    for record in found.records:
        if record.name.startswith("data/"):
            index, at = int(record.name.removeprefix("data/")), found.placed[record.name].data_at
            tensors[index] = _tensor_in(whole, at, found.specs[index])
            part = view[at : at + record.size]
            stretches[index] = Stretch(fd, at, record.size, record.digest, part, mapped=True)
    return tensors, stretches


def _copied_tensors(fd: int, found: Opened) -> Tensors:
    """Tensors in memory of our own: what was hashed is what is returned, whatever happens to the file."""
    records = {record.name: record for record in found.records}
    tensors, stretches = {}, {}
    for group in _groups(found):
        sizes = [records[f"data/{index}"].size for index in group]
        starts = memory.offsets(sizes)
        arena = memory.Arena.of(starts[-1], huge=False)
        view = memoryview(arena)
        for index, at, size in zip(group, starts, sizes, strict=False):
            name = f"data/{index}"
            tensors[index] = _tensor_in(arena, at, found.specs[index])
            data_at = found.placed[name].data_at
            stretches[index] = Stretch(
                fd,
                data_at,
                size,
                records[name].digest,
                view[at : at + size],
            )
    return tensors, stretches


def _tensor_in(arena: mmap.mmap, at: int, spec: pickled.TensorSpec) -> torch.Tensor:
    import torch

    dtype = torch_dtype(spec.dtype)
    count = numel(spec.shape)
    if count == 0:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(arena, dtype=dtype, count=count, offset=at).reshape(spec.shape)


def _groups(found: Opened) -> list[list[int]]:
    """Storage indices by the top-level key that names them first: dropping one key frees its memory."""
    groups: dict[str, list[int]] = {}
    seen: set[int] = set()
    for entry in found.tensors:
        if entry.storage not in seen:
            seen.add(entry.storage)
            groups.setdefault(entry.name.split("/", 1)[0], []).append(entry.storage)
    return list(groups.values())
