"""Predicts the held-out samples of a modality with its published best checkpoint, and calibrates."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import ckptcore
from radfuse.engine import calibration, kept, kept_answers, predictions
from radfuse.engine.digests import file_digest
from radfuse.engine.errors import RadfuseError, SettingsError
from radfuse.engine.freshness import check_checkpoint, check_prepared
from radfuse.engine.kept_answers import Answers, KeptAnswers
from radfuse.engine.modality import Modality
from radfuse.engine.modality import modality as modality_of
from radfuse.engine.places import Places, require
from radfuse.engine.prepared import Prepared
from radfuse.engine.progress import track
from radfuse.engine.tables import PATIENT, SAMPLE, SPLIT, SPLITS, STUDY
from radfuse.engine.training import numerics
from radfuse.engine.training.killed_loaders import killed_loaders_told
from radfuse.engine.training.loaders import Examples, Loader
from radfuse.engine.training.numerics import Numerics
from radfuse.engine.training.run import Whole
from radfuse.engine.training.tasks import Task, task_of

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.config import Params

_log = logging.getLogger(__name__)
IDS = [PATIENT, STUDY, SAMPLE, SPLIT]
HELD_OUT = tuple(split for split in SPLITS if split != "train")
"""What is predicted: of samples that it was trained on a model says what it learnt by heart."""
_SHOWN = 5


class NonFiniteAnswers(RadfuseError):
    """What a model says of some samples is NaN or infinite; figures would be of the others alone.

    Args:
        modality: whose model.
        samples: their ids.
        total: how many were asked about.
    """

    def __init__(self, modality: str, samples: Sequence[str], total: int) -> None:
        more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
        super().__init__(
            f"{modality}: the model's answers to {len(samples)} of {total} samples are NaN or infinite: "
            f"{', '.join(samples[:_SHOWN])}{more}. Look at their images (`radfuse whois ID` finds the files) "
            "and take broken ones off the list. Where it is most of them, the weights are at fault: run "
            f"`radfuse train {modality}` again with a lower learning rate."
        )


@dataclass(frozen=True)
class Trained:
    """A network with the weights of a checkpoint, in evaluation mode on the CPU.

    Attributes:
        network: from normalised input to logits; the averaged one where the training kept an average.
        checkpoint: where the weights came from; every byte of it was verified.
        task: what it learnt.
    """

    network: nn.Module
    checkpoint: ckptcore.Checkpoint
    task: Task


@dataclass(frozen=True)
class Prediction:
    """What is predicted, and how.

    Attributes:
        params: params.yaml.
        modality: whose samples.
        prepared: the arrays.
        trained: what predicts.
        conditions: device, precision and the like.
        batches: rows of the prepared table, as they are predicted together; every one but the last is full.
    """

    params: Params
    modality: Modality
    prepared: Prepared
    trained: Trained
    conditions: Numerics
    batches: Sequence[pd.DataFrame]


def best_checkpoint(places: Places, modality: Modality) -> Path:
    """The published best checkpoint of a modality.

    Raises:
        MissingStage: it was not trained.
    """
    file = places.saved_models(modality.name) / f"{modality.model_name}_best.pth"
    return require(file, f"radfuse train {modality.name}")


def load_trained(params: Params, places: Places, modality: Modality, file: Path | None = None) -> Trained:
    """The trained network of a modality, refused when it is not that of the data at hand.

    Args:
        params: params.yaml.
        places: of the pipeline.
        modality: whose.
        file: a checkpoint; the published best by default.

    Raises:
        MissingStage: the modality was not prepared or not trained.
        StaleError: it was trained on other images, or another split.
        DamagedCheckpoint: the file is not what was written.
    """
    prepare, prepared = params.prepare_of(modality), Prepared(places, modality.name)
    check_prepared(places, modality, prepare, prepared)
    file = file or best_checkpoint(places, modality)
    checkpoint = ckptcore.load(file)
    check_checkpoint(file.name, checkpoint.get("provenance") or {}, prepared)
    task = task_of(modality, prepare, prepared)
    network = modality.network(prepare, params.train_of(modality), task.outputs)
    key = "ema_state_dict" if checkpoint.get("ema_state_dict") else "model_state_dict"
    ckptcore.load_weights(network, file, key=key)
    return Trained(network.eval(), checkpoint, task)


def predict_split(params: Params, places: Places, name: str) -> Path:
    """Predict the held-out samples of a modality, fit the calibration, and write both.

    Computes in fp32 whatever the training did, as exports do. It may be stopped at any moment: the same call
    goes on with the batches that were not answered.

    Args:
        params: params.yaml.
        places: of the pipeline.
        name: of the modality.

    Returns:
        The table.

    Raises:
        MissingStage: the modality was not prepared or not trained.
        StaleError: the model was trained on other images, or another split.
        SettingsError: no sample is held out.
        Busy: another process is at the same prediction.
        LoaderDied: a process that loads samples was killed.
        NonFiniteAnswers: the model's answer to a sample is no number.
    """
    modality = modality_of(name)
    prepared = Prepared(places, name)
    trained = load_trained(params, places, modality)
    conditions = numerics.choose(params.predict.device, "32")
    batches = _batches(params, modality, prepared, trained.task)
    asked = Prediction(params, modality, prepared, trained, conditions, batches)
    with kept.opened(places, name, kept_answers.PART, kept_answers.recipe_of(asked)) as folder:
        finished = KeptAnswers(folder)
        _write(places, prepared, trained, answers(asked, finished))
        finished.remove()
    kept.prune(places, name, kept_answers.PART)
    return places.predictions(name)


def _write(places: Places, prepared: Prepared, trained: Trained, frame: pd.DataFrame) -> None:
    """Fit the calibration, and write it and then the table, which names it."""
    name, fitted = prepared.modality, calibration.Calibration({})
    if trained.task.kind == "classification":
        fitted = calibration.fit(frame, trained.task.names, _fitting_splits(places, name))
        frame = fitted.apply(frame)
    file = places.calibration(name)
    fitted.write(file)
    header = trained.checkpoint.header
    told = trained.task.describe()
    stamp = predictions.Stamp(
        modality=name,
        model_digest=header.model_digest or "",
        split_digest=prepared.split_digest,
        run_key=header.run_key or "",
        labels=tuple(told.get("labels") or told["regions"]),
        calibration=file_digest(file),
        prepared_digest=prepared.digest,
        twins_across_splits=prepared.stamp.get("twins_across_splits"),
    )
    predictions.write(places.predictions(name), frame, stamp)


def _batches(params: Params, modality: Modality, prepared: Prepared, task: Task) -> list[pd.DataFrame]:
    """The held-out rows of the prepared table, as they are predicted together."""
    rows = prepared.rows()
    rows = rows[rows[SPLIT].isin(HELD_OUT)].reset_index(drop=True)
    if rows.empty:
        raise SettingsError(
            f"{modality.name}: expected samples outside of the training split to predict, got none. Give the "
            "other splits patients (split.fractions)."
        )
    # Volumes may differ in size: one at a time. A training step needs several times the memory of a
    # prediction.
    size = params.train_of(modality).batch_size if task.kind == "classification" else 1
    return [rows.iloc[first : first + size] for first in range(0, len(rows), size)]


def answers(asked: Prediction, kept: KeptAnswers) -> pd.DataFrame:
    """The prediction table without calibrated columns: a row a held-out sample, sorted by its id.

    Args:
        asked: what is predicted.
        kept: what was answered before; what is answered now is added.

    Raises:
        LoaderDied: a process that loads samples was killed.
        NonFiniteAnswers: the model's answer to a sample is no number.
    """
    import pandas as pd

    left = [number for number in range(len(asked.batches)) if number not in kept.answers]
    total, missing = sum(map(len, asked.batches)), sum(len(asked.batches[number]) for number in left)
    if missing < total:
        _log.info("%d of %d samples were predicted before", total - missing, total)
    nonfinite: list[str] = []
    with killed_loaders_told("predict.workers"), closing(_predicted(asked, left)) as predicted:
        for number, (found, bad) in zip(left, predicted, strict=True):
            nonfinite += bad
            # Such answers are asked for again: the next time the machine may be in order.
            if not bad:
                kept.add(number, found)
    if nonfinite:
        raise NonFiniteAnswers(asked.modality.name, nonfinite, total)
    parts = [rows[IDS].assign(**kept.answers[number]) for number, rows in enumerate(asked.batches)]
    return pd.concat(parts, ignore_index=True)


def _predicted(asked: Prediction, left: Sequence[int]) -> Generator[tuple[Answers, list[str]], None, None]:
    """What the model answers to some batches, one after the other, and samples whose answer is no number.

    Args:
        asked: what is predicted.
        left: numbers of the batches, ascending.
    """
    import pandas as pd

    if not left:
        return
    params, modality, task = asked.params, asked.modality, asked.trained.task
    settings, device = params.train_of(modality), asked.conditions.device
    layout = numerics.memory_format(asked.trained.network)
    whole = Whole(modality.normalisation(params.prepare_of(modality)), asked.trained.network).eval()
    whole = whole.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    # Only the very last batch may be short, so these rows fall into the same batches again.
    rows = pd.concat([asked.batches[number] for number in left])
    examples = Examples(asked.prepared, rows, modality, task, settings, None)
    loader = Loader(examples, len(asked.batches[0]), None, params.predict.workers, pin=device == "cuda")
    batches = track(
        loader.epoch(),
        f"predict {modality.name}",
        len(asked.batches),
        params.train.progress,
        done=len(asked.batches) - len(left),
    )
    with closing(loader):
        for batch in batches:
            part = loader.rows.iloc[list(batch.rows)]
            with torch.inference_mode(), _exact_products():
                image = numerics.laid_out(batch.image.to(device), layout)
                logits = task.infer(whole, image, settings)
                finite = torch.isfinite(logits).flatten(1).all(dim=1).cpu().numpy()
                found = task.answers(logits, batch.target.to(device), part)
            yield found, part.loc[~finite, SAMPLE].tolist()


@contextmanager
def _exact_products() -> Iterator[None]:
    """GPUs convolve in TF32 unless told otherwise, which is not what an export answers."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _fitting_splits(places: Places, modality: str) -> tuple[str, ...] | None:
    """`val` and `calibration` where the cohort merges them; None lets the counts decide."""
    file = require(places.splits, "radfuse cohort")
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    few = told.get("few_positives", told.get("merged_calibration"))
    merged = few.get(modality) if isinstance(few, dict) else few
    return ("val", "calibration") if merged else None
