"""A model's weights out of a checkpoint into a safetensors file; no torch where the checkpoint is ours."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptcore import durable, reader, safetensors
from ckptcore.errors import DamagedCheckpoint, UnknownFormat, UnsavableValue, UsageError
from ckptcore.hashing import CHUNK, Stretch, intact
from ckptcore.header import MODEL_KEYS, Header, canonical_json, encode_number, read_exactly
from ckptcore.pickled import TensorSpec
from ckptcore.plain import flatten, iter_slots


@dataclass(frozen=True)
class ExportReport:
    """What `export_weights` wrote.

    Attributes:
        path: the new file.
        source: the checkpoint.
        tensors: how many tensors it holds.
        nbytes: bytes of its tensors.
        model_digest: names the model, whatever file it sits in.
        tied: groups of names that share one tensor in the checkpoint; here each has its own copy.
    """

    path: Path
    source: Path
    tensors: int
    nbytes: int
    model_digest: str | None
    tied: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Source:
    """The tensors to export: specs and digests by name, and what gives their bytes."""

    specs: dict[str, TensorSpec]
    digests: dict[str, str]
    bytes_of: Callable[[str], Iterable[bytes | memoryview]]
    model_digest: str | None
    tied: tuple[tuple[str, ...], ...]


def export_weights(
    path: str | os.PathLike[str], to: str | os.PathLike[str], *, overwrite: bool = False
) -> ExportReport:
    """Write the model's tensors of a checkpoint to a safetensors file; those of a native file without torch.

    Names that share a tensor (tied weights) get a copy each, because the format knows no sharing and a reader
    that asks for every name shall find it. They are listed under ``tied`` in the file's metadata. That is one
    key, ``ckptcore``, with one JSON object as its text, so that the same weights make the same bytes.

    Args:
        path: the checkpoint; every tensor is checked against its digest while it is copied, and in the copy.
        to: the new file, ``.safetensors``.
        overwrite: whether a file of that name may be replaced.

    Raises:
        UsageError: the name is taken or of another kind.
        DamagedCheckpoint: a tensor is not what was written; nothing is left behind.
        UnknownFormat: the checkpoint holds no model.
        DiskFull: it does not fit.
    """
    target = Path(to)
    if target.suffix != ".safetensors":
        raise UsageError(f"expected a file name that ends in .safetensors, got {target.name}.")
    if os.path.lexists(target) and not overwrite:
        raise UsageError(f"{target} exists already. Give another name, or say that it may be replaced.")
    with reader.opened(path) as (file, fd):
        header = reader.find_summary(fd, file)
        source = _native_source(fd, header) if header is not None else _foreign_source(file)
        durable.make_folder(target.parent)
        durable.require_writable(target.parent)
        temporary = _write(target, file, source, header)
    _name(temporary, target, overwrite)
    nbytes = sum(spec.nbytes for spec in source.specs.values())
    return ExportReport(target, file, len(source.specs), nbytes, source.model_digest, source.tied)


def _native_source(fd: int, header: Header) -> _Source:
    found = reader.open_native(fd, header)
    key = next((k for k in MODEL_KEYS if any(e.name.startswith(f"{k}/") for e in found.tensors)), None)
    if key is None:
        wanted = " or ".join(MODEL_KEYS)
        raise UnknownFormat(f"{header.path.name} holds no model: expected tensors under {wanted}.")
    slots = _slots(found.tree[key])
    records = {record.name: record for record in found.records}

    def chunks(name: str) -> Iterator[bytes]:
        entry = records[f"data/{slots[name]}"]
        at, left = found.placed[entry.name].data_at, entry.size
        while left > 0 and (chunk := read_exactly(fd, min(left, CHUNK), at)):
            yield chunk
            at, left = at + len(chunk), left - len(chunk)

    return _Source(
        {name: found.specs[index] for name, index in slots.items()},
        {name: records[f"data/{index}"].digest for name, index in slots.items()},
        chunks,
        header.model_digest,
        _tied(slots),
    )


def _foreign_source(path: Path) -> _Source:
    from ckptcore.loading import load
    from ckptcore.weights import find_state_dict, model_digest, raw_bytes

    _, state = find_state_dict(load(path), None, path)
    tree, tensors = flatten(dict(state))
    slots = _slots(tree)
    data = {index: raw_bytes(tensor) for index, tensor in enumerate(tensors)}
    digests = {index: hashlib.sha256(view).hexdigest() for index, (_, _, view) in data.items()}
    return _Source(
        {name: data[index][0] for name, index in slots.items()},
        {name: digests[index] for name, index in slots.items()},
        lambda name: [data[slots[name]][2]],
        model_digest(state),
        _tied(slots),
    )


def _slots(tree: Any) -> dict[str, int]:
    """Storage indices by the name that a flat file gives a tensor."""
    pairs = [(".".join(map(str, path)), slot.index) for path, slot in iter_slots(tree)]
    slots = dict(pairs)
    if len(slots) != len(pairs) or "__metadata__" in slots:
        raise UnsavableValue("", "two tensors get one name in safetensors, or its reserved one. Rename.")
    return slots


def _tied(slots: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    groups: dict[int, list[str]] = {}
    for name, index in slots.items():
        groups.setdefault(index, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _write(target: Path, path: Path, source: _Source, header: Header | None) -> Path:
    """The finished temporary file beside the target, every tensor in it checked."""
    # Wide types first: every tensor is then aligned to its own type, as readers that map the file want it.
    names = sorted(source.specs, key=lambda n: (-TensorSpec(source.specs[n].dtype, ()).nbytes, n))
    head = _head(names, path, source, header)
    size = len(head) + sum(source.specs[name].nbytes for name in names)
    with durable.staged(target, size) as (fd, temporary):
        durable.write_all(fd, head)
        for name in names:
            sha = hashlib.sha256()
            for chunk in source.bytes_of(name):
                sha.update(chunk)
                durable.write_all(fd, chunk)
            if sha.hexdigest() != source.digests[name]:
                raise DamagedCheckpoint(path, [f"tensor {name}"])
        _check_copy(fd, target, source)
    return temporary


def _head(names: list[str], path: Path, source: _Source, header: Header | None) -> bytes:
    told: dict[str, Any] = {"model_digest": source.model_digest, "tied": source.tied, "source": path.name}
    if header is not None:
        metrics = {name: encode_number(value) for name, value in header.metrics.items()}
        told |= {"epochs_finished": header.epochs_finished, "metrics": metrics, "run_key": header.run_key}
    tensors = {name: (source.specs[name].dtype, source.specs[name].shape) for name in names}
    try:
        return safetensors.encode_header(tensors, {"ckptcore": canonical_json(told).decode("ascii")})
    except ValueError as error:
        raise UnsavableValue("", f"{error}. Convert it before it is saved.") from error


def _check_copy(fd: int, target: Path, source: _Source) -> None:
    """Read the new file back and compare every tensor with its digest."""
    placements, _, data_at = safetensors.read_placements(fd)
    stretches = [
        Stretch(fd, data_at + p.start, p.end - p.start, source.digests[n]) for n, p in placements.items()
    ]
    wrong = [name for name, good in zip(placements, intact(stretches), strict=True) if not good]
    if wrong or placements.keys() != source.specs.keys():
        raise DamagedCheckpoint(target, [f"tensor {name} was not written as it was read" for name in wrong])


def _name(temporary: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        durable.publish(temporary, [target])
        return
    try:
        durable.claim(temporary, target)
    except FileExistsError as error:
        raise UsageError(f"{target} exists already; somebody else made it just now.") from error
    durable.sync_folder(target.parent)
