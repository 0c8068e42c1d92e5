"""Version cards: the JSON file beside a promoted checkpoint that makes it a version, and the list of them.

A version is a read-only file ``<base>_v1.1.0_best.pth`` and a card ``<base>_v1.1.0_best.json``. The card is
written last. A file without one is what a killed promotion left: it is listed as incomplete, and promoting
the same checkpoint to the same number again completes it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ckptcore.errors import CheckpointError, UsageError
from ckptcore.hashing import file_sha256
from ckptcore.loading import read_header
from ckptcore.reader import opened
from ckptcore.semver import SUFFIXES, Semver, VersionName, split_name

CARD_SUFFIX = ".json"
MAX_CARD = 16 << 20
_BESIDE = ("directory", "status")
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("model_name", "version", "dataset", "notes", "file_name", "sha256", "architecture_digest"), (str,)
    ),
    **dict.fromkeys(("source_name", "created", "ckptcore_version"), (str,)),
    **dict.fromkeys(("training_date", "model_digest", "run_key"), (str, type(None))),
    **dict.fromkeys(("size", "parameters"), (int,)),
    **dict.fromkeys(("hyperparameters", "performance"), (dict,)),
    "epochs_finished": (int, type(None)),
    "parent": (dict, type(None)),
}
_PARENT_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("version", "sha256"), (str,)),
    "model_digest": (str, type(None)),
}


@dataclass(frozen=True)
class ParentVersion:
    """The version that a version follows."""

    version: str
    model_digest: str | None
    sha256: str


@dataclass(frozen=True)
class VersionCard:
    """What a version is: its numbers, where they come from, and the digests that hold it to them.

    Attributes:
        training_date: day on which the checkpoint was written (UTC, ISO 8601).
        performance: the finite metrics by name.
        sha256: digest of the whole file.
        model_digest: digest of the model's tensors; names the model in whatever file it sits.
        architecture_digest: digest of the names and shapes of the model's tensors.
        parent: the version before this one.
        source_name: the file that was promoted.
        created: time of the promotion (UTC, ISO 8601).
        directory: the folder in which file and card lie; not in the card.
        status: "whole"; "incomplete", a file without a card; "missing", a card without its file; "changed", a
            file whose size or header is not what its card says; "unreadable", a card that is none. Not in the
            card.
    """

    model_name: str
    version: str
    dataset: str
    training_date: str | None
    hyperparameters: Mapping[str, Any]
    performance: Mapping[str, float | str]
    notes: str
    file_name: str
    sha256: str
    size: int
    model_digest: str | None
    architecture_digest: str
    parameters: int
    epochs_finished: int | None
    run_key: str | None
    parent: ParentVersion | None
    source_name: str
    created: str
    ckptcore_version: str
    directory: Path = field(default=Path("."), compare=False)
    status: str = field(default="whole", compare=False)

    @property
    def path(self) -> Path:
        """The version's file."""
        return self.directory / self.file_name

    @property
    def card_path(self) -> Path:
        """The version's card."""
        return self.path.with_suffix(CARD_SUFFIX)

    @property
    def name(self) -> VersionName:
        """The parts of the file name."""
        found = split_name(self.file_name)
        if found is None:
            raise UsageError(f"{self.file_name} is no version; expected something like net_v1.1.0_best.pth.")
        return found

    @property
    def base(self) -> str:
        """What all versions of this model are called."""
        return self.name.base

    @property
    def semver(self) -> Semver:
        """The version as numbers."""
        return self.name.version

    def to_json(self) -> str:
        """The text of the card."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _BESIDE}
        if self.parent is not None:
            values["parent"] = {f.name: getattr(self.parent, f.name) for f in fields(self.parent)}
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_card(path: Path) -> VersionCard:
    """Read a card.

    Raises:
        UsageError: it is no card of the version that its name says.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no regular file")
        if status.st_size > MAX_CARD:
            raise ValueError(f"more than {MAX_CARD:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        return _decoded(found, path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path.name} is no version card ({error}). Restore it from a copy.") from error


def _decoded(found: Any, path: Path) -> VersionCard:
    values = {f.name: found[f.name] for f in fields(VersionCard) if f.name not in _BESIDE}
    _check_types(values, _TYPES)
    _check_types(values["performance"], dict.fromkeys(values["performance"], (int, float, str)))
    if values["parent"] is not None:
        parent = {f.name: values["parent"][f.name] for f in fields(ParentVersion)}
        _check_types(parent, _PARENT_TYPES)
        values["parent"] = ParentVersion(**parent)
    name = split_name(values["file_name"])
    if name is None or str(name.version) != values["version"] or name.stem + CARD_SUFFIX != path.name:
        raise ValueError(f"it speaks of {values['file_name']!r}, version {values['version']!r}")
    return VersionCard(**values, directory=path.parent)


def _check_types(values: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> None:
    wrong = next((name for name, allowed in types.items() if type(values[name]) not in allowed), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is of another type")


def list_versions(directory: str | os.PathLike[str]) -> list[VersionCard]:
    """The versions in a folder by model and number, each with a status told by sizes and headers alone.

    Raises:
        UsageError: there is no such folder.
    """
    folder = Path(directory)
    files, cards = _scan(folder)
    found = []
    for card_name in cards:
        try:
            card = read_card(folder / card_name)
        except UsageError:
            stem = card_name.removesuffix(CARD_SUFFIX)
            file_name = next((n for n in files if Path(n).stem == stem), stem + SUFFIXES[0])
            found.append(_without_card(folder, file_name, "unreadable"))
        else:
            found.append(_with_status(card))
    told = {card.file_name for card in found}
    found += [_without_card(folder, name, "incomplete") for name in files if name not in told]
    return sorted(found, key=lambda card: card.name)


def pinned_names(directory: str | os.PathLike[str]) -> frozenset[str]:
    """The names of version files and cards in a folder, which nothing may delete.

    Raises:
        UsageError: there is no such folder.
    """
    files, cards = _scan(Path(directory))
    return frozenset((*files, *cards))


def check_version(card: VersionCard) -> tuple[str, ...]:
    """Compare a version's file, every byte of it, with its card; empty when nothing is wrong."""
    if card.status == "incomplete":
        return (f"{card.file_name} has no card: its promotion was cut off. Promote its checkpoint again.",)
    if card.status == "unreadable":
        return (f"the card of {card.file_name} cannot be read",)
    try:
        with opened(card.path) as (_, fd):
            digest = file_sha256(fd)
    except CheckpointError as error:
        return (f"{card.file_name}: {error}",)
    except OSError as error:
        return (f"{card.file_name}: {error.strerror}",)
    return () if digest == card.sha256 else (f"{card.file_name} is not the file that was promoted",)


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"expected a folder of versions, got {folder}, which is no folder.") from error
    files = [name for name in names if split_name(name) is not None]
    stems = [name.removesuffix(CARD_SUFFIX) for name in names if name.endswith(CARD_SUFFIX)]
    return files, [stem + CARD_SUFFIX for stem in stems if split_name(stem + SUFFIXES[0]) is not None]


def _with_status(card: VersionCard) -> VersionCard:
    try:
        header = read_header(card.path)
        as_told = header.file_size == card.size and header.model_digest == card.model_digest
        status = "whole" if as_told else "changed"
    except FileNotFoundError:
        status = "missing"
    except (CheckpointError, OSError):
        status = "changed"
    return replace(card, status=status)


def _without_card(folder: Path, file_name: str, status: str) -> VersionCard:
    """What can be said of a version whose card is not there or cannot be read."""
    name = split_name(file_name)
    card = VersionCard(
        model_name=name.base if name else file_name,
        version=str(name.version) if name else "",
        dataset="",
        training_date=None,
        hyperparameters={},
        performance={},
        notes="",
        file_name=file_name,
        sha256="",
        size=0,
        model_digest=None,
        architecture_digest="",
        parameters=0,
        epochs_finished=None,
        run_key=None,
        parent=None,
        source_name="",
        created="",
        ckptcore_version="",
        directory=folder,
        status=status,
    )
    try:
        header = read_header(folder / file_name)
    except (CheckpointError, OSError):
        return card
    return replace(
        card,
        size=header.file_size,
        model_digest=header.model_digest,
        parameters=header.parameters,
        epochs_finished=header.epochs_finished,
        run_key=header.run_key,
    )
