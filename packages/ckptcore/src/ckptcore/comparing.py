"""Checkpoints of a run side by side: how far each had come, what it scored, which is the best."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptcore import reader
from ckptcore.catalogue import SUFFIXES
from ckptcore.errors import CheckpointError, NothingThere, UsageError
from ckptcore.header import Header
from ckptcore.loading import load, read_header
from ckptcore.rules import Mode, finite_score, improves

MODES = ("min", "max")
# Names, or parts of names between "_", "-" and "/", of what is better when it is smaller.
_SMALLER_IS_BETTER = frozenset(
    {
        *("loss", "losses", "error", "err", "mae", "mse", "rmse", "nll", "bce", "ce", "perplexity", "ppl"),
        *("brier", "ece", "hd", "hd95", "hausdorff", "assd", "fpr", "fnr", "time", "seconds"),
    }
)
_USUAL = (
    "val_auc",
    "val_dice",
    "f1",
    "val_f1",
    "auc",
    "dice",
    "accuracy",
    "val_accuracy",
    "val_loss",
    "loss",
)
_COUNTERS = frozenset({"optimal_threshold", "best_metric", "best_epoch"})
_LEARNABLE = ("learnable_parameters", "trainable_parameters")


@dataclass(frozen=True)
class Row:
    """A checkpoint in a comparison.

    Attributes:
        threshold: the classification threshold found best on validation data.
        stage: name of the training stage it was saved in.
        learnable_parameters: how many parameters learn in that stage.
        parameters: how many elements the model has.
        problem: why nothing could be said of it; the rest is empty then.
    """

    path: Path
    name: str
    format: str | None = None
    epochs_finished: int | None = None
    global_step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    stage: str | None = None
    learnable_parameters: int | None = None
    parameters: int | None = None
    roles: tuple[str, ...] = ()
    size: int = 0
    model_digest: str | None = None
    run_key: str | None = None
    created: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Checkpoints by epochs finished, and the best of them.

    Attributes:
        best: the row with the best value of the metric; None where no row has one.
        metric: the metric they are compared by; None where they have none in common.
        mode: "min" or "max".
        gone: files of a folder that their writer rotated away before they were read.
    """

    rows: tuple[Row, ...]
    best: Row | None
    metric: str | None
    mode: str | None
    gone: tuple[Path, ...] = ()


def compare(
    paths: Sequence[str | os.PathLike[str]], metric: str | None = None, *, mode: str | None = None
) -> Comparison:
    """Put checkpoints side by side, native ones by their headers alone, foreign ones by loading them.

    Args:
        paths: files; a folder stands for the checkpoints in it.
        metric: what to compare by; by default a usual one that most of them have.
        mode: whether "min" or "max" is better; by default told from the metric's name.

    Raises:
        NothingThere: no path is a file or a folder that holds checkpoints.
        UsageError: a file does not exist, or nothing has the metric.
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"expected mode to be min or max, got {mode!r}.")
    files = [file for path in paths for file in _files(Path(path))]
    if not files:
        raise NothingThere("expected checkpoints to compare, or a folder of them; got none.")
    told = {file: _row(file) for file in files}
    gone = tuple(file for file, row in told.items() if row is None)
    missing = next((file for file in gone if file in map(Path, paths)), None)
    if missing is not None:
        raise UsageError(f"there is no file {missing}.")
    rows = sorted((row for row in told.values() if row is not None), key=_progress)
    chosen = metric if metric is not None else _usual_metric(rows)
    if chosen is None:
        return Comparison(tuple(rows), None, None, None, gone)
    known = sorted({name for row in rows for name in row.metrics})
    if chosen not in known and any(row.problem is None for row in rows):
        raise UsageError(f"no checkpoint has the metric {chosen!r}; there are: {', '.join(known) or 'none'}.")
    direction = mode or better_when(chosen)
    return Comparison(tuple(rows), _best(rows, chosen, direction), chosen, direction, gone)


def plot(comparison: Comparison, file: str | os.PathLike[str]) -> Path:
    """Draw a comparison to a PNG file; see `ckptcore.plotting`.

    Raises:
        UsageError: matplotlib is not installed, or there is nothing to draw.
    """
    from ckptcore import plotting

    return plotting.plot(comparison, file)


def better_when(metric: str) -> str:
    """Whether a metric is better when it is smaller ("min") or larger ("max"), by its name."""
    words = metric.lower().replace("-", "_").replace("/", "_").split("_")
    return "min" if _SMALLER_IS_BETTER & set(words) or metric.lower().endswith("loss") else "max"


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(
        p for p in path.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith(".") and p.is_file()
    )


def _progress(row: Row) -> tuple[bool, int, int, str]:
    finished = row.epochs_finished
    return finished is None, finished or 0, row.global_step or 0, row.name


def _usual_metric(rows: Sequence[Row]) -> str | None:
    """The metric that most rows have; among equals a usual one, then the first by name."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row.metrics:
            counts[name] = counts.get(name, 0) + (name not in _COUNTERS)
    order = {name: index for index, name in enumerate(_USUAL)}
    # Validation counts before training: a usual name, then one that begins with val_.
    ranked = sorted(
        (name for name, count in counts.items() if count),
        key=lambda n: (-counts[n], order.get(n, len(order)), not n.startswith("val"), n),
    )
    return ranked[0] if ranked else None


def _best(rows: Sequence[Row], metric: str, mode: str) -> Row | None:
    """As the manager chooses: NaN and infinities never count; of equals the earlier one, first in order."""
    best, highest = None, None
    direction: Mode = "max" if mode == "max" else "min"
    for row in rows:
        value = finite_score(row.metrics, metric)
        if value is not None and improves(value, highest, direction):
            best, highest = row, value
    return best


def _row(path: Path) -> Row | None:
    """What is known of a file; None where there is none."""
    try:
        header = read_header(path)
        if header.format == "ckptcore":
            return _native_row(path, header)
        return _foreign_row(path)
    except FileNotFoundError:
        return None
    except (CheckpointError, OSError) as error:
        return Row(path, path.name, problem=str(error))


def _native_row(path: Path, header: Header) -> Row:
    told = dict(header.metadata)
    if not told.get("stage") and "stage" in header.content.get("keys", ()):
        told["stage"] = _stage_in_state(path)
    return _made(path, header, told)


def _stage_in_state(path: Path) -> Any:
    """The ``stage`` of the state, which is a dict when the header does not have it; no tensor is read."""
    with reader.opened(path) as (file, fd):
        header = reader.find_summary(fd, file)
        return reader.open_native(fd, header).tree.get("stage") if header is not None else None


def _foreign_row(path: Path) -> Row:
    from ckptcore.weights import find_state_dict, model_digest

    checkpoint = load(path)
    told = {**checkpoint.header.metadata, "stage": checkpoint.get("stage")}
    row = _made(path, checkpoint.header, told)
    try:
        _, weights = find_state_dict(checkpoint, None, path)
        elements = sum(tensor.numel() for tensor in weights.values() if hasattr(tensor, "numel"))
        return Row(**{**vars(row), "model_digest": model_digest(weights), "parameters": elements})
    except CheckpointError:
        return row  # A checkpoint without a model that could be named, or with weights that we cannot store.


def _made(path: Path, header: Header, told: Mapping[str, Any]) -> Row:
    stage = told.get("stage")
    details = stage if isinstance(stage, Mapping) else {}
    named = details.get("name", details.get("index")) if details else stage
    if named is None:
        named = header.content.get("texts", {}).get("stage", header.content.get("scalars", {}).get("stage"))
    counts = [source.get(key) for source in (details, told) for key in _LEARNABLE]
    threshold = header.metrics.get("optimal_threshold")
    return Row(
        path=path,
        name=path.name,
        format=header.format,
        epochs_finished=header.epochs_finished,
        global_step=header.global_step,
        metrics={name: value for name, value in header.metrics.items() if name != "optimal_threshold"},
        threshold=threshold,
        stage=None if named is None else str(named),
        learnable_parameters=next((count for count in counts if type(count) is int), None),
        parameters=header.parameters or None,
        roles=header.roles,
        size=header.file_size,
        model_digest=header.model_digest,
        run_key=header.run_key,
        created=header.created,
    )
