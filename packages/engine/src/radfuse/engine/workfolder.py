"""The folder in which a training keeps its state, named by everything that decides its numbers.

A training that was killed finds its state again under the same key; changed parameters, data or code lead to
another folder and can never meet stale state.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ckptcore import durable, read_header
from ckptcore.canonical import canonical_json
from ckptcore.errors import CheckpointError, holder_text
from ckptcore.lease import Lease
from radfuse.engine import code
from radfuse.engine.digests import file_digest
from radfuse.engine.modality import Modality
from radfuse.engine.places import Places
from radfuse.engine.settings import TrainSettings
from radfuse.engine.tracking import flat

if TYPE_CHECKING:
    from radfuse.engine.config import Params

_log = logging.getLogger(__name__)

SCHEMA = 1
RECORD = "run.json"
RUN_ONLY = ("keep_last", "save_every")
"""Settings of a training that change no number: which checkpoints stay."""
NUMERIC = ("precision", "deterministic")
"""Settings of all trainings that change numbers. Where it runs is no part of what is trained."""
_ANEW = "begun_anew"
_A_DAY = 86_400.0
_GOING = ".deleted"
"""Ends the name of a folder that is being deleted."""


def recipe_of(params: Params, modality: Modality, train: TrainSettings, learnt_digest: str) -> dict[str, Any]:
    """Everything that decides the numbers of a training, as plain values; no path is among them.

    Args:
        params: params.yaml.
        modality: what is trained.
        train: ``train.<modality>``, with its files where they are.
        learnt_digest: of the arrays and labels that are trained and validated on.
    """
    told = train.model_dump(mode="json", exclude={*RUN_ONLY, "weights", "continue_from"})
    for name in ("weights", "continue_from"):
        file = getattr(train, name)
        told[name] = None if file is None else {"file": file.name, "sha256": file_digest(file)}
    return {
        "schema": SCHEMA,
        "modality": modality.name,
        "seed": params.seed,
        "prepare": params.prepare_of(modality).model_dump(mode="json"),
        "train": told,
        "numerics": params.train.model_dump(mode="json", include=set(NUMERIC)),
        "learnt_digest": learnt_digest,
        "code": code.digests(*code.of_training(modality)),
    }


def key_of(recipe: Mapping[str, Any]) -> str:
    """The name of the work folder: 16 hex digits of the recipe's SHA-256."""
    return hashlib.sha256(canonical_json(recipe)).hexdigest()[:16]


@dataclass(frozen=True)
class WorkFolder:
    """One training's folder; `opened` makes sure that it is nobody else's meanwhile.

    Attributes:
        path: the folder.
        key: its name.
        new: nothing was in it.
    """

    path: Path
    key: str
    new: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """What is noted of the training: recipe, time of its beginning, and its end if it came."""
        return read_record(self.path) or {}

    @property
    def finished(self) -> bool:
        """Whether the training came to its end; its files are then only to be published again."""
        return bool(self.record.get("finished"))

    @property
    def begun_anew(self) -> bool:
        """Whether what was there of it was set aside, and MLflow has not been told yet."""
        return bool(self.record.get(_ANEW))

    def forget_anew(self) -> None:
        """Note that MLflow has a run of what began anew."""
        record = self.record
        if record.pop(_ANEW, None):
            _write_record(self.path, record)

    def reopen(self) -> None:
        """Take back the note of an end: the training goes on."""
        record = self.record
        if record.pop("finished", None):
            _write_record(self.path, record)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Note that the training came to its end."""
        _write_record(self.path, {**self.record, "finished": dict(facts)})


@contextmanager
def opened(places: Places, name: str, recipe: Mapping[str, Any], fresh: bool = False) -> Iterator[WorkFolder]:
    """The work folder of a recipe, held until the block ends; another training of the same recipe waits.

    Args:
        places: of the pipeline.
        name: of the modality, or ``ensemble``.
        recipe: names the folder.
        fresh: set aside what is in it and begin anew.
    """
    root, key = places.work(name), key_of(recipe)
    durable.make_folder(root)
    folder = root / key
    with _held(folder):
        begun_anew = fresh and folder.exists()
        if begun_anew:
            aside = durable.make_new_folder(root / f"{key}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            os.replace(folder, aside)
            _log.info("what was there of this training was set aside as %s", shown(aside))
        new = read_record(folder) is None
        if new:
            durable.make_folder(folder)
            noted = {
                "recipe": dict(recipe),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "pipeline": name_of_pipeline(places),
            }
            _write_record(folder, noted | ({_ANEW: True} if begun_anew else {}))
        yield WorkFolder(folder, key, new)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The lock of a work folder. It lies beside the folder, which may be set aside while it is held."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder_text(Lease(folder).holder())
        _log.warning("another process trains exactly this, %s (%s); waiting for it to end", folder.name, who)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def announce_nearest(places: Places, modality: Modality, recipe: Mapping[str, Any], epochs: int) -> None:
    """Say which earlier training is nearest to a new one, what differs, and how to use it instead.

    Args:
        places: of the pipeline.
        modality: what is trained.
        recipe: of the new training.
        epochs: that it has in all. From one that had no fewer nothing can be gone on, but from its weights.
    """
    found = nearest(places, modality, recipe)
    if found is None:
        return
    folder, differing = found
    latest = folder / f"{modality.model_name}_latest.pth"
    over = _epochs_of(latest) >= epochs
    what, setting = ("begin with its weights", "weights") if over else ("go on from it", "continue_from")
    own = "" if places.root.resolve() == Path.cwd() else f" --params {shown(places.root / 'params.yaml')}"
    _log.info(
        "this training starts afresh; the nearest earlier one, %s, differs in:\n  %s\n"
        "To %s instead: radfuse train %s%s --set train.%s.%s=%s",
        folder.name, "\n  ".join(differing), what, modality.name, own, modality.name, setting,
        as_setting(places, latest),
    )  # fmt: skip


def nearest(places: Places, modality: Modality, recipe: Mapping[str, Any]) -> tuple[Path, list[str]] | None:
    """The earlier training that differs least, and in what; None where there is none to go on from."""
    ranked = []
    for folder in _folders(places, modality.name):
        before = (read_record(folder) or {}).get("recipe")
        latest = folder / f"{modality.model_name}_latest.pth"
        # One that does not differ was set aside so that the training begins anew.
        if (
            isinstance(before, dict)
            and _epochs_of(latest) >= 0
            and (differing := differences(before, recipe))
        ):
            ranked.append((len(differing), -latest.stat().st_mtime, folder, differing))
    if not ranked:
        return None
    _, _, folder, differing = min(ranked, key=lambda one: one[:2])
    return folder, differing


def _epochs_of(file: Path) -> int:
    """Whole epochs that a checkpoint has; -1 where none can be gone on from."""
    try:
        return read_header(file).epochs_finished or 0
    except (CheckpointError, OSError):
        return -1


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two recipes differ in, a line each."""
    old, new = flat(before), flat(now)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name):
            continue
        if name.startswith("code."):
            lines.append(f"{name} (the program changed)")
        elif name == "learnt_digest":
            lines.append("what it learns from (images, labels or split)")
        else:
            lines.append(f"{name}: {old.get(name, 'nothing')} then, {new.get(name, 'nothing')} now")
    return lines


def prune(places: Places, name: str, keep: WorkFolder, needed: Sequence[Path | None] = ()) -> list[str]:
    """Delete work folders of this pipeline whose training came to its end, and that nobody touched for a day.

    A training that was stopped stays until somebody finishes or deletes it, and so does what was set aside.

    Args:
        places: of the pipeline.
        name: of the modality, or ``ensemble``.
        keep: the one that stays.
        needed: files whose folders stay, too: what the training began with or continues from.

    Returns:
        Names of the deleted folders.
    """
    gone = []
    for rest in places.work(name).glob(f"*{_GOING}"):
        shutil.rmtree(rest, ignore_errors=True)
    begun_with = {above for file in needed if file is not None for above in file.resolve().parents}
    for folder in _folders(places, name):
        holds = folder.resolve() in begun_with
        if folder.name == keep.key or holds or time.time() - _touched(folder) < _A_DAY:
            continue
        record = read_record(folder) or {}
        aside = folder.name != key_of(record.get("recipe", {}))
        theirs = record.get("pipeline") != name_of_pipeline(places)
        if aside or theirs or not record.get("finished"):
            continue
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        try:
            with suppress(Timeout), lock.acquire(timeout=0):
                # Whole or gone under its name, as somebody may return to the old parameters after a kill.
                going = folder.with_name(folder.name + _GOING)
                os.replace(folder, going)
                shutil.rmtree(going)
                gone.append(folder.name)
        except OSError as error:
            # What was trained is published; the next end of a training tries again.
            _log.warning("the work folder %s was not deleted, or not wholly: %s", folder.name, error)
    if gone:
        _log.info("deleted work folders of earlier trainings: %s", ", ".join(gone))
    return gone


def as_setting(places: Places, file: Path) -> Path:
    """A file as params.yaml names it: relative to the pipeline where it lies in it."""
    return file.relative_to(places.root) if file.is_relative_to(places.root) else file.resolve()


def shown(path: Path) -> str:
    """A path as it is typed in the current folder."""
    return os.path.relpath(path)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What is noted of a training; None where nothing is, or nothing that can be read."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    durable.write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def name_of_pipeline(places: Places) -> str:
    """Names a pipeline: several may have their work folders on one scratch disk."""
    return hashlib.sha256(os.fsencode(places.root.resolve())).hexdigest()[:16]


def _folders(places: Places, name: str) -> list[Path]:
    root = places.work(name)
    if not root.is_dir():
        return []
    return sorted(
        one
        for one in root.iterdir()
        if one.is_dir() and not one.name.endswith(_GOING) and (one / RECORD).is_file()
    )


def _touched(folder: Path) -> float:
    try:
        return max((one.stat().st_mtime for one in folder.iterdir() if one.is_file()), default=0.0)
    except FileNotFoundError:
        # Something is written, or deleted, in this moment.
        return math.inf
