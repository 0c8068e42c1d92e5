"""Foreign checkpoints made native: torch.save, Lightning and safetensors, told apart by their content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptcore import durable, foreign, reader, writing
from ckptcore.errors import DamagedCheckpoint, UnknownFormat, UsageError
from ckptcore.hashing import file_sha256
from ckptcore.header import MODEL_KEYS
from ckptcore.semver import SUFFIXES
from ckptcore.verifying import verify
from ckptcore.weights import find_state_dict

EPOCH_COUNTS = ("index", "finished", "unknown")
_OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "optimizer_state_dict": ("optimizer", "optim", "optimizer_state"),
    "scheduler_state_dict": ("scheduler", "lr_scheduler", "scheduler_state"),
    "scaler_state_dict": ("scaler", "grad_scaler", "amp_scaler"),
    "ema_state_dict": ("ema", "model_ema", "state_dict_ema"),
}
"""Keys under which other programs keep what has a key of its own here."""


def import_checkpoint(
    file: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    name: str | None = None,
    epoch_counts: str | None = None,
) -> Path:
    """Make a native checkpoint of a foreign file; that file is only read.

    A Lightning checkpoint keeps all its keys and stays loadable by Lightning. Elsewhere the model's weights
    go under ``model_state_dict``, and states of optimizer, scheduler, scaler and EMA under their names here.

    Args:
        file: a file of torch.save (a checkpoint or a state dict), of Lightning, or of safetensors.
        to: the folder for the native file.
        name: its name; by default that of the file.
        epoch_counts: what ``epoch`` means there: "index" of the last finished epoch, from 0; how many are
            "finished"; or "unknown". By default told from the keys beside it.

    Returns:
        The new file.

    Raises:
        RefusedContent: it asks for more than data; the classes it names are in the message.
        DamagedCheckpoint: its own checks do not hold.
        UnknownFormat: it is nothing that ckptcore reads, or holds no weights.
        UnsavableValue: it holds a value that has no place in a native file, named by its key path.
        UsageError: the name is taken or of another kind, or the file is native already.
    """
    if epoch_counts is not None and epoch_counts not in EPOCH_COUNTS:
        raise UsageError(
            f"expected epoch_counts to be one of {', '.join(EPOCH_COUNTS)}, got {epoch_counts!r}."
        )
    target = Path(to) / _name(Path(file), name)
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already, and an import replaces nothing. Give another name.")
    with reader.opened(file) as (source, fd):
        if reader.find_summary(fd, source) is not None:
            raise UsageError(f"{source.name} is a ckptcore file already. Copy it instead.")
        if reader.looks_native(fd):
            raise DamagedCheckpoint(source, foreign.why_not_native(fd))
        header, mapping = foreign.load(fd, source, "cpu")
        digest = file_sha256(fd)
    counts = epoch_counts or foreign.epoch_convention(mapping)
    state, renamed = _native_state(header.format, mapping, source)
    origin: dict[str, Any] = {"format": header.format, "file_name": source.name, "sha256": digest}
    metadata: dict[str, Any] = {"imported_from": origin, "epoch_counts": counts}
    if renamed:
        origin |= {"renamed": renamed}
    told = header.metadata.get("safetensors")
    if told:
        metadata["safetensors"] = told
    _write(target, state, metadata)
    return target


def _name(source: Path, name: str | None) -> str:
    """The native file's name: a checkpoint's ending, and no way out of the folder."""
    given = (
        name
        if name is not None
        else source.name
        if source.suffix in SUFFIXES
        else f"{source.stem}{SUFFIXES[0]}"
    )
    if given != os.path.basename(given) or given.startswith(".") or not given.endswith(SUFFIXES):
        raise UsageError(f"expected a file name that ends in {', '.join(SUFFIXES)}, got {given!r}.")
    return given


def _native_state(
    kind: str, mapping: Mapping[str, Any], source: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """The state under the keys it has here, and which keys were renamed (old name by new name)."""
    if kind == "lightning":
        return dict(mapping), {}
    key, weights = find_state_dict(mapping, None, source)
    if key == "":
        return {MODEL_KEYS[0]: weights}, {}
    aliases = {old: new for new, olds in _OWN_KEYS.items() for old in olds if new not in mapping}
    aliases[key] = MODEL_KEYS[0]
    state: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for old, value in mapping.items():
        new = aliases.get(old, old) if isinstance(value, (Mapping, list)) else old
        if new in state or (new != old and new in mapping):
            new = old
        state[new] = value
        if new != old:
            renamed[new] = old
    if MODEL_KEYS[0] not in state:
        raise UnknownFormat(f"{source.name} holds no weights under a key that ckptcore knows.")
    return state, renamed


def _write(target: Path, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write, verify, and only then give the file its name, which must be free."""
    encoded = writing.encode(state, metadata)
    durable.make_folder(target.parent)
    durable.require_writable(target.parent)
    with durable.staged(target, encoded.nbytes) as (fd, temporary):
        writing.write(fd, encoded)
    try:
        report = verify(temporary)
        if not report.ok:
            raise DamagedCheckpoint(target, report.findings)
        durable.claim(temporary, target)
        durable.sync_folder(target.parent)
    except FileExistsError as error:
        raise UsageError(f"{target} exists already; somebody else made it just now.") from error
    finally:
        durable.remove_quietly(temporary)
