"""Exported files that have answered as they should, until all that was asked for is exported.

DVC deletes what an export that was stopped had published, so they are kept in the work folder, too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ckptcore
from ckptcore import durable
from ckptcore.errors import DiskFull
from radfuse.engine import code
from radfuse.engine.export.cards import metadata

if TYPE_CHECKING:
    from radfuse.engine.export.exportable import Exportable
    from radfuse.engine.export.parity import Probe

_log = logging.getLogger(__name__)

PART = "exports"
"""Of the work folder."""
SCHEMA = 1
_CODE = (code.ENGINE, "radfuse.serving")
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def recipe_of(model: Exportable, expected: Sequence[Probe], tolerance: float) -> dict[str, Any]:
    """Everything that decides the files of a model and whether they are good, as plain values.

    Args:
        model: what is exported.
        expected: what it answers to real samples, on this machine.
        tolerance: the largest difference from it that is allowed.
    """
    told = hashlib.sha256()
    for probe in expected:
        for array in (probe.image, probe.answer):
            told.update(f"{array.dtype} {array.shape}".encode())
            told.update(array.tobytes())
    return {
        "schema": SCHEMA,
        "name": model.name,
        "model": ckptcore.model_digest(model.graph) if model.graph.state_dict() else "",
        "says": metadata(model.card),
        "step": model.step,
        "samples": len(model.samples),
        "answers": told.hexdigest(),
        "tolerance": tolerance,
        "code": code.digests(*_CODE),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


class KeptFiles:
    """Files of one model by format.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, form: str) -> tuple[bytes, float] | None:
        """A file and how far it is from the checkpoint; None where there is none, or not these very bytes."""
        file, note = self._places(form)
        try:
            told: Mapping[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() == told["sha256"]:
                return data, float(told["difference"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return None

    def add(self, form: str, data: bytes, difference: float) -> None:
        """Keep a file that has answered as it should."""
        file, note = self._places(form)
        told = {"sha256": hashlib.sha256(data).hexdigest(), "difference": difference}
        try:
            durable.write_bytes(file, data)
            durable.write_text(note, json.dumps(told) + "\n")
        except DiskFull as error:
            _log.warning("%s is exported, but would be exported anew after a stop: %s", form, error)

    def remove(self) -> None:
        """Forget them: what they were for has been published."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _places(self, form: str) -> tuple[Path, Path]:
        return self._folder / f"{form}.bin", self._folder / f"{form}.json"
