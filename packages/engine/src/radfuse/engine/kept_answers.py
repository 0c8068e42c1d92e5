"""Answers of a prediction under way, batch by batch: one that was stopped goes on with what it lacks.

Answers of another model, of other arrays, parameters or code, or from another kind of machine, have another
key and are never met (see `kept`). What a batch holds decides the last bits of its answers, so a batch is
kept as a whole.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ckptcore
from ckptcore import durable
from ckptcore.errors import DiskFull
from radfuse.engine import code, workfolder
from radfuse.engine.digests import file_digest
from radfuse.engine.prepared import ARRAY_SUFFIX, MASK_SUFFIX
from radfuse.engine.tables import SAMPLE

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.predicting import Prediction
    from radfuse.engine.prepared import Prepared

Answers = Mapping[str, "np.ndarray[Any, Any]"]
"""Columns of the prediction table for one batch, as `Task.answers` gives them."""
SCHEMA = 1
FILE = "answers.jsonl"
_SYNCED_EVERY = 1.0
"""Seconds of work that a power cut may cost; a process that is killed loses none."""
PART = "predictions"
"""Of the work folder."""
_MODULES = ("radfuse.engine.predicting", "radfuse.engine.prepared", __name__)


def recipe_of(asked: Prediction) -> dict[str, Any]:
    """Everything that decides the bits of the answers, as plain values; no path and no id is among them."""
    params, modality = asked.params, asked.modality
    ignored = {*workfolder.RUN_ONLY, "weights", "continue_from"}
    return {
        "schema": SCHEMA,
        "modality": modality.name,
        # Of the network and not of the file: the file's digest is that of the weights before averaging.
        "model": ckptcore.model_digest(asked.trained.network),
        "prepare": params.prepare_of(modality).model_dump(mode="json"),
        "train": params.train_of(modality).model_dump(mode="json", exclude=ignored),
        "spec": asked.prepared.spec,
        "task": asked.trained.task.describe(),
        "samples": _digest_of_samples(asked.prepared, asked.batches),
        "numerics": asked.conditions.stamp(),
        "code": code.digests(*code.of_training(modality), *_MODULES),
    }


def _digest_of_samples(prepared: Prepared, batches: Sequence[pd.DataFrame]) -> str:
    """SHA-256 over the rows, digests of arrays among them, and over which of them are predicted together."""
    told = hashlib.sha256()
    for rows in batches:
        told.update(rows.to_csv(index=False).encode() + b"\0")
        if {"sha256", "mask_sha256"} <= set(rows) and rows["sha256"].astype(bool).all():
            continue
        # Nothing in the manifest would tell arrays that were changed from those that were predicted.
        folder = prepared.places.arrays(prepared.modality)
        for file in (folder / f"{name}{end}" for name in rows[SAMPLE] for end in (ARRAY_SUFFIX, MASK_SUFFIX)):
            told.update(f"{file.name} {file_digest(file) if file.is_file() else 'none'}\n".encode())
    return told.hexdigest()


class KeptAnswers:
    """The answers to finished batches, by the batch's number.

    A line that was cut off, or whose bytes are not those that were written, is no line: its batch is
    predicted again.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / FILE
        self._synced = time.monotonic()
        self.answers: dict[int, Answers] = dict(_whole_lines(self._path))
        text = b"".join(_line(number, found) for number, found in self.answers.items())
        if not self._path.exists() or self._path.read_bytes() != text:
            # What is added must not continue a line that was cut off.
            durable.write_bytes(self._path, text)

    def add(self, number: int, found: Answers) -> None:
        """Keep the answers to a batch.

        Raises:
            DiskFull: there is no room for them.
        """
        self.answers[number] = found
        if any(column.dtype.hasobject for column in found.values()):
            # A task of somebody else's may answer in other things than numbers; those are made again.
            return
        line = _line(number, found)
        try:
            with open(self._path, "ab", buffering=0) as file:
                durable.write_all(file.fileno(), line)
                if time.monotonic() - self._synced >= _SYNCED_EVERY:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(self._path, len(line), durable.free_bytes(self.folder)) from error
            raise

    def remove(self) -> None:
        """Forget them: what they were for has been published."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _line(number: int, found: Answers) -> bytes:
    """A batch as text, its SHA-256 before it; columns byte for byte, as no decimal number says which NaN."""
    columns = {name: [one.dtype.str, base64.b64encode(one.tobytes()).decode()] for name, one in found.items()}
    told = json.dumps({"batch": number, "columns": columns}).encode()
    return hashlib.sha256(told).hexdigest().encode() + b" " + told + b"\n"


def _whole_lines(path: Path) -> Iterator[tuple[int, Answers]]:
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for line in file:
            digest, _, told = line.rstrip(b"\n").partition(b" ")
            if hashlib.sha256(told).hexdigest().encode() != digest:
                continue
            with suppress(ValueError, KeyError, TypeError, binascii.Error):
                found = json.loads(told)
                yield (
                    int(found["batch"]),
                    {
                        name: np.frombuffer(base64.b64decode(data), dtype=np.dtype(kind)).copy()
                        for name, (kind, data) in found["columns"].items()
                    },
                )
