"""Promoting a checkpoint to a version: its own read-only file, a card, a number that tells what changed.

The order is such that a kill at any moment loses nothing and leaves nothing that looks like another version:
the copy is made and checked under a hidden name, gets its name, and only then the card gets its own. Both
names are claimed, never taken: of two promotions to one number, one is refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptcore import durable, reader
from ckptcore.cards import ParentVersion, VersionCard, check_version, list_versions, pinned_names
from ckptcore.errors import DamagedCheckpoint, DiskFull, UnsavableValue, UsageError, VersionRefused
from ckptcore.hashing import file_sha256
from ckptcore.header import MODEL_KEYS, Header, TensorEntry, canonical_json, jsonable
from ckptcore.package import own_version
from ckptcore.reader import Opened
from ckptcore.rules import finite_score
from ckptcore.semver import SUFFIXES, Semver, VersionName, base_name, version_of
from ckptcore.verifying import verify, verify_open

__all__ = [
    "ParentVersion",
    "Semver",
    "VersionCard",
    "base_name",
    "check_version",
    "list_versions",
    "pinned_names",
    "promote",
    "version_of",
]

_log = logging.getLogger(__name__)
READ_ONLY = 0o444
FIRST = Semver(1, 0, 0)
_HYPERPARAMETERS = ("hyperparameters", "hyper_parameters")
_BOOKKEEPING = frozenset({"best_metric", "best_epoch"})


def promote(
    file: str | os.PathLike[str],
    *,
    version: str | None = None,
    bump: str | None = None,
    notes: str = "",
    dataset: str = "",
    model_name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> VersionCard:
    """Make a checkpoint a version: a read-only copy of its own, named by number, with a card.

    Args:
        file: a native checkpoint; every digest of it is checked before, and of the copy after.
        version: the number, higher than that of every version of the same name.
        bump: instead of a number: "major", "minor" or "patch" above the highest; the first version is 1.0.0.
            A number under which a killed promotion left another checkpoint's file is passed over.
        notes: what a reader of the card should know.
        dataset: what it was trained on.
        model_name: the name on the card; by default the one in the checkpoint's metadata, else the file's.
        directory: where the version goes; by default beside the checkpoint.

    Returns:
        The card.

    Raises:
        VersionRefused: the number is taken, too low, or not a new major one though the architecture changed;
            the checkpoint is of a foreign format or holds no model.
        DamagedCheckpoint: the checkpoint is not what was written.
        UsageError: neither number nor bump, or both.
        DiskFull: the copy does not fit; nothing was changed.
    """
    if (version is None) == (bump is None):
        raise UsageError("expected a version (1.2.0) or a bump (major, minor, patch), and not both.")
    for what, text in (("notes", notes), ("dataset", dataset), ("model_name", model_name or "")):
        if text != text.encode("utf-8", "replace").decode("utf-8"):
            raise UsageError(f"expected {what} to be text, got bytes that are no UTF-8: {text!a}.")
    with reader.opened(file) as (source, fd):
        found = _opened(source, fd)
        folder = source.parent if directory is None else Path(directory)
        durable.make_folder(folder)
        durable.require_writable(folder)
        base, shown_name = _names(found.header, model_name)
        suffix = source.suffix if source.suffix in SUFFIXES else SUFFIXES[0]
        existing = [card for card in list_versions(folder) if card.base == base]
        left = _left_by_others(existing, found.header, suffix)
        parent, number = _number(existing, version, bump, {card.semver for card in left})
        _check_free(left, number)
        _check_architecture(found, parent, number)
        report = verify_open(fd, source)
        if not report.ok:
            raise DamagedCheckpoint(source, report.findings)
        card = _card(found, VersionName(base, number, suffix), parent, file_sha256(fd), folder)
        card = replace(card, model_name=shown_name, notes=notes, dataset=dataset)
        _publish(fd, card)
    return card


def _opened(source: Path, fd: int) -> Opened:
    header = reader.find_summary(fd, source)
    if header is None and not reader.looks_native(fd):
        raise VersionRefused(
            f"{source.name} is of a foreign format. Import it first (ckpt import), then promote the new file."
        )
    if header is None:
        raise DamagedCheckpoint(source, verify_open(fd, source).findings)
    if header.model_digest is None:
        keys = " or ".join(MODEL_KEYS)
        raise VersionRefused(f"{source.name} holds no model to promote; expected tensors under {keys}.")
    return reader.open_native(fd, header)


def _names(header: Header, model_name: str | None) -> tuple[str, str]:
    """The base of the file name, and the model's name on the card."""
    told = header.metadata.get("model_name")
    shown = model_name or (told if isinstance(told, str) and told else None)
    base = base_name(header.path.name)
    if base == "model" and shown is not None:
        base = re.sub(r"[^\w.-]+", "_", shown, flags=re.ASCII).strip("._-") or base
    return base, shown or base


def _left_by_others(existing: Sequence[VersionCard], header: Header, suffix: str) -> list[VersionCard]:
    """The files without a card that this checkpoint cannot complete, as they are another's copy."""
    ours = (header.file_size, header.model_digest, suffix)
    left = [card for card in existing if card.status == "incomplete"]
    return [card for card in left if (card.size, card.model_digest, card.name.suffix) != ours]


def _number(
    existing: Sequence[VersionCard], version: str | None, bump: str | None, taken: Collection[Semver]
) -> tuple[VersionCard | None, Semver]:
    """The version before this one, and this one's number; a bump passes over the ``taken`` ones."""
    unreadable = next((card for card in existing if card.status == "unreadable"), None)
    if unreadable is not None:
        raise VersionRefused(
            f"the card {unreadable.card_path.name} cannot be read, and the next number follows from it. "
            "Restore it from a copy first."
        )
    complete = [card for card in existing if card.status != "incomplete"]
    parent = max(complete, key=lambda card: card.semver, default=None)
    if version is None:
        return parent, _next_number(parent, bump or "", taken)
    number = Semver.parse(version)
    if parent is not None and number <= parent.semver:
        what = "exists already" if any(card.semver == number for card in complete) else "is too low"
        raise VersionRefused(
            f"version {number} {what}: the newest of {parent.base} is {parent.version}. "
            f"Expected a higher number, such as {parent.semver.bumped('minor')}."
        )
    return parent, number


def _next_number(parent: VersionCard | None, part: str, taken: Collection[Semver]) -> Semver:
    following = (parent.semver if parent else FIRST).bumped(part)
    number = following if parent else FIRST
    while number in taken:
        _log.warning("version %s is passed over: a promotion of another checkpoint to it was cut off", number)
        number = number.bumped(part)
    return number


def _check_free(left: Sequence[VersionCard], number: Semver) -> None:
    other = next((card for card in left if card.semver == number), None)
    if other is not None:
        raise _cut_off(other.path)


def _cut_off(path: Path) -> VersionRefused:
    """The refusal of a number under which there is a file without a card."""
    return VersionRefused(
        f"{path.name} exists with another content and no card: a promotion was cut off, or is going on right "
        "now. Give a higher number, promote the same checkpoint as then to complete it, or, if nobody is at "
        f"it, delete what is left: rm -f {shlex.quote(str(path))}"
    )


def _check_architecture(found: Opened, parent: VersionCard | None, number: Semver) -> None:
    """A change of names or shapes asks for a new major number."""
    if parent is None or number.major > parent.semver.major:
        return
    if _architecture(found.tensors) != parent.architecture_digest:
        raise VersionRefused(
            f"the architecture is not that of version {parent.version}{_changes(found.tensors, parent)}. "
            f"That asks for a new major number: expected {parent.semver.bumped('major')}, got {number}."
        )


def _shapes(tensors: Sequence[TensorEntry]) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's tensors by name."""
    for key in MODEL_KEYS:
        found = {e.name.removeprefix(f"{key}/"): e.shape for e in tensors if e.name.startswith(f"{key}/")}
        if found:
            return found
    return {}


def _architecture(tensors: Sequence[TensorEntry]) -> str:
    """SHA-256 over the sorted (name, shape) of the model's tensors."""
    rows = (canonical_json([name, list(shape)]) for name, shape in sorted(_shapes(tensors).items()))
    return hashlib.sha256(b"\n".join(rows)).hexdigest()


def _changes(tensors: Sequence[TensorEntry], parent: VersionCard) -> str:
    """The first differences in words, as far as the parent's file can still be read."""
    try:
        with reader.opened(parent.path) as (path, fd):
            header = reader.find_summary(fd, path)
            before = _shapes(reader.read_table(fd, header)[1]) if header is not None else {}
    except (OSError, ValueError, DamagedCheckpoint):
        before = {}
    if not before:
        return " (its file is not there to say where)"
    now = _shapes(tensors)
    parts = [f"{name} is new" for name in now if name not in before]
    parts += [f"{name} is gone" for name in before if name not in now]
    parts += [f"{n} had {before[n]}, has {now[n]}" for n in now if n in before and now[n] != before[n]]
    more = f", and {len(parts) - 5} more" if len(parts) > 5 else ""
    return f" ({', '.join(parts[:5])}{more})"


def _card(
    found: Opened, name: VersionName, parent: VersionCard | None, sha256: str, folder: Path
) -> VersionCard:
    header = found.header
    return VersionCard(
        model_name=name.base,
        version=str(name.version),
        dataset="",
        training_date=_day(header),
        hyperparameters=_hyperparameters(found.tree),
        performance=_performance(header.metrics),
        notes="",
        file_name=str(name),
        sha256=sha256,
        size=header.file_size,
        model_digest=header.model_digest,
        architecture_digest=_architecture(found.tensors),
        parameters=header.parameters,
        epochs_finished=header.epochs_finished,
        run_key=header.run_key,
        parent=ParentVersion(parent.version, parent.model_digest, parent.sha256) if parent else None,
        source_name=header.path.name,
        created=datetime.now(UTC).isoformat(),
        ckptcore_version=own_version(),
        directory=folder,
    )


def _performance(metrics: Mapping[str, float]) -> dict[str, float]:
    """What this checkpoint scored; not what the run's best was until then, which says nothing of it."""
    found: dict[str, float] = {}
    for name in sorted(metrics):
        value = finite_score(metrics, name)
        if value is not None and not _is_bookkeeping(name, metrics):
            found[name] = value
    return found


def _is_bookkeeping(name: str, metrics: Mapping[str, float]) -> bool:
    """``best_metric``, ``best_epoch``, and a ``best_val_auc`` beside a ``val_auc`` or of the same value."""
    if not name.startswith("best_"):
        return False
    others = [other for other in metrics if not other.startswith("best_")]
    told_already = name.removeprefix("best_") in others or any(metrics[o] == metrics[name] for o in others)
    return name in _BOOKKEEPING or told_already


def _day(header: Header) -> str | None:
    """The day on which the state was made (UTC), by its own time stamp or else by its file's."""
    for text in (header.content.get("texts", {}).get("timestamp"), header.created):
        try:
            moment = datetime.fromisoformat(text or "")
        except ValueError:
            continue
        return (moment.astimezone(UTC) if moment.tzinfo else moment).date().isoformat()
    return None


def _hyperparameters(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The state's hyperparameters as JSON values; what JSON cannot say is named by its kind."""
    given: Mapping[Any, Any] = next(
        (tree[key] for key in _HYPERPARAMETERS if isinstance(tree.get(key), dict)), {}
    )
    plain = {}
    for key, value in given.items():
        try:
            plain[str(key)] = jsonable(value)
        except UnsavableValue:
            plain[str(key)] = f"({type(value).__name__}, see the checkpoint)"
    return plain


def _publish(fd: int, card: VersionCard) -> None:
    """Copy, check, and give file and card their names, in this order."""
    target = card.path
    copy, text = durable.temporary_beside(target), durable.temporary_beside(target)
    try:
        durable.write_bytes(text, card.to_json().encode("utf-8"), READ_ONLY)
        if not os.path.lexists(target):
            # The open file itself: what has its name by now may be the next best.
            os.lseek(fd, 0, os.SEEK_SET)
            durable.copy_durable(Path(f"/dev/fd/{fd}"), copy, READ_ONLY)
            _check_copy(copy, card)
            _claim(copy, target)
        # Now a file of that name is there: ours, or one that a killed promotion left, or a rival's.
        _check_left(target, card)
        _claim(text, card.card_path, f"version {card.version} was promoted by somebody else just now.")
    except DiskFull as error:
        # The error shall name the version, not the hidden unfinished file.
        raise DiskFull(target, error.needed, error.free) from error
    finally:
        durable.remove_quietly(copy)
        durable.remove_quietly(text)


def _check_copy(copy: Path, card: VersionCard) -> None:
    with reader.opened(copy) as (_, fd):
        same = file_sha256(fd) == card.sha256
    if not same or not verify(copy).ok:
        raise VersionRefused(
            f"{card.source_name} was written to while it was copied. Nothing was promoted; try again."
        )


def _claim(temporary: Path, target: Path, refusal: str | None = None) -> None:
    try:
        durable.claim(temporary, target)
    except FileExistsError as error:
        if refusal is not None:
            raise VersionRefused(refusal) from error
    durable.sync_folder(target.parent)


def _check_left(target: Path, card: VersionCard) -> None:
    """A file without a card may get this card only if it is, byte for byte, the same checkpoint."""
    if target.is_symlink():
        raise VersionRefused(f"{target.name} is a symbolic link, and no version can be one. Remove it.")
    with reader.opened(target) as (_, fd):
        if file_sha256(fd) != card.sha256:
            raise _cut_off(target)
