"""Writes a model in every format that is asked for: no file is there before all of them answered rightly."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ckptcore import durable
from radfuse.engine.errors import MissingStage
from radfuse.engine.export import onnx, torchscript
from radfuse.engine.export.cards import card_text, card_without_model, metadata
from radfuse.engine.export.graph import require_evaluation
from radfuse.engine.export.parity import Answers, Probe, largest_difference, probes
from radfuse.serving.card import card_path

if TYPE_CHECKING:
    from torch import Tensor

    from radfuse.engine.export.exportable import Exportable
    from radfuse.engine.export.kept_files import KeptFiles

    Keep = Callable[[Exportable, Sequence[Probe]], KeptFiles]


@dataclass(frozen=True)
class Written:
    """An exported file.

    Attributes:
        name: of the model: ``xray``.
        file: where it lies; its card lies beside it.
        size: in bytes.
        difference: the largest one from the checkpoint's own answers.
        seconds: that it took.
    """

    name: str
    file: Path
    size: int
    difference: float
    seconds: float


@dataclass(frozen=True)
class _Format:
    make: Callable[[Exportable, Tensor], bytes]
    runner: Callable[[Path], Answers]
    opset: int | None


def _onnx(model: Exportable, example: Tensor) -> bytes:
    return onnx.onnx_bytes(model.graph, example, model.step, metadata(model.card))


def _torchscript(model: Exportable, example: Tensor) -> bytes:
    return torchscript.torchscript_bytes(model.graph, example)


_FORMATS = {
    "onnx": _Format(_onnx, onnx.runner, onnx.OPSET),
    "torchscript": _Format(_torchscript, torchscript.runner, None),
}


def write(
    model: Exportable, folder: Path, formats: Sequence[str], tolerance: float, keep: Keep | None = None
) -> list[Written]:
    """Export a model, run every file on real samples, and give the files their names if all is well.

    Args:
        model: what to export.
        folder: where the files and their cards go; made when missing.
        formats: ``onnx``, ``torchscript``.
        tolerance: the largest difference from the checkpoint that is allowed.
        keep: gives the place where finished files are kept; each is made anew where there is none.

    Raises:
        ParityError: a file answers otherwise than the checkpoint. No file is left of this export; those of an
            earlier one, with their own cards, stay as they were.
        StillTraining: a layer of the graph is in training mode.
        MissingStage: there is no sample to try the export on.
    """
    require_evaluation(model.graph)
    if not model.samples:
        raise MissingStage(f"expected real samples to try the export of {model.name} on, got none.")
    durable.make_folder(folder)
    expected = probes(model.graph, model.samples, model.step)
    kept = None if keep is None else keep(model, expected)
    with ExitStack() as leftovers:
        tried = [_tried(model, folder, form, expected, tolerance, kept, leftovers) for form in formats]
        for one in tried:
            durable.publish(one.temporary, [one.written.file])
        # A file counts only with a card that names its digest, so what a kill leaves between is refused.
        for one in tried:
            durable.publish(one.card, [card_path(one.written.file)])
    return [one.written for one in tried]


def write_not_applicable(folder: Path, files: Mapping[str, str], formats: Sequence[str], why: str) -> None:
    """Write that there is no model: empty files whose cards say so, in place of those of an earlier model.

    DVC wants every output of a stage, and whether there is a model the run alone finds out.

    Args:
        folder: where the files and their cards go; made when missing.
        files: file name by format.
        formats: ``onnx``, ``torchscript``.
        why: there is none, in words.
    """
    durable.make_folder(folder)
    for form in formats:
        # The card first: an empty file beside the card of a model would count as a damaged one.
        durable.write_text(card_path(folder / files[form]), card_without_model(why))
        durable.write_bytes(folder / files[form], b"")


@dataclass(frozen=True)
class _Tried:
    """A file which has answered as it should, and its card, both under temporary names."""

    temporary: Path
    card: Path
    written: Written


def _tried(
    model: Exportable,
    folder: Path,
    form: str,
    expected: Sequence[Probe],
    tolerance: float,
    kept: KeptFiles | None,
    leftovers: ExitStack,
) -> _Tried:
    began = time.monotonic()
    how, target = _FORMATS[form], folder / model.files[form]
    finished = None if kept is None else kept.read(form)
    if finished is not None:
        data, difference = finished
        temporary = _staged(target, data, leftovers)
    else:
        # Two samples, or twice the same one: an axis of length 1 would be taken for a constant.
        data = how.make(model, torch.stack([model.samples[0], model.samples[-1]]))
        temporary = _staged(target, data, leftovers)
        difference = largest_difference(target.name, how.runner(temporary), expected, tolerance)
        if kept is not None:
            kept.add(form, data, difference)
    parity = {"samples": len(model.samples), "max_abs_difference": difference, "tolerance": tolerance}
    card = card_text(model.card, hashlib.sha256(data).hexdigest(), how.opset, parity)
    staged_card = _staged(card_path(target), card.encode("utf-8"), leftovers)
    seconds = time.monotonic() - began
    return _Tried(temporary, staged_card, Written(model.name, target, len(data), difference, seconds))


def _staged(target: Path, data: bytes, leftovers: ExitStack) -> Path:
    """A file that is durable, and has no name yet; it goes with the block if it never gets one."""
    with durable.staged(target, len(data)) as (fd, temporary):
        durable.write_all(fd, data)
    leftovers.callback(durable.remove_quietly, temporary)
    return temporary
