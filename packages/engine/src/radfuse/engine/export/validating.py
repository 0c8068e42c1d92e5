"""Tests an exported model on a source of data that it has never seen, from the ONNX file alone.

Nothing is split and nothing is prepared: files are read as `radfuse predict` reads them. What is written
holds pseudonyms; whose they are stands in a private table beside it, as in a pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore import durable
from radfuse.engine import identity, predictions
from radfuse.engine.cohort import read_patients
from radfuse.engine.errors import SettingsError, SourceError, TooManySkipped
from radfuse.engine.export.external_report import external_report
from radfuse.engine.export.external_rows import Unread, answered
from radfuse.engine.places import Places
from radfuse.engine.progress import track
from radfuse.engine.scanning import Scan, scan
from radfuse.engine.table_bytes import csv_text
from radfuse.engine.tables import PATIENT, SAMPLE, SPLIT
from radfuse.serving import Predictor

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.config import Params
    from radfuse.serving import Card

PREDICTIONS, METRICS, SKIPPED = "predictions.parquet", "metrics.json", "skipped.csv"
_SHOWN = 5


@dataclass(frozen=True)
class Order:
    """What to validate on what.

    Attributes:
        params: params.yaml: its sources, key, limits and evaluation.
        places: of its pipeline, whose training patients must not be among those of the source.
        modality: of the model.
        model: the exported ``.onnx``.
        source: a source of params.yaml, or a kind of source that needs no options.
        root: where its data lie.
        out: where the results go.
    """

    params: Params
    places: Places
    modality: str
    model: Path
    source: str
    root: Path
    out: Path


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        report: the figures, as in ``metrics.json``.
        answered: how many samples.
        unread: samples without an answer.
        seen: pseudonyms of patients that the pipeline's models were made with.
    """

    report: Mapping[str, Any]
    answered: int
    unread: Sequence[Unread]
    seen: Sequence[str]


def validate(order: Order) -> Outcome:
    """Answer every sample of the source, and write what was found.

    Raises:
        CardError, ModelError: the model cannot be used.
        SettingsError: it is of another modality, or the source's options make no sense.
        SourceError: the source is not what its kind demands, or has nothing of the modality.
        TooManySkipped: more samples than ``prepare.max_skipped_fraction`` cannot be read; what could be is
            written.
    """
    import pandas as pd

    predictor = Predictor(order.model)
    if predictor.card.modality != order.modality:
        raise SettingsError(
            f"{order.model.name}: expected a model of {order.modality}, got one of {predictor.card.modality}."
        )
    found = scanned(
        order.params, order.places, source_of(order.params, order.source, order.root), order.modality
    )
    rows: list[dict[str, Any]] = []
    unread = [Unread(one.sample_id, one.item.reason, one.shown) for one in found.lost]
    samples = track(answered(predictor, found.kept), f"validate {order.modality}", len(found.kept))
    for one in samples:
        if isinstance(one, Unread):
            unread.append(one)
        else:
            rows.append(one)
    _write_what_was_not_read(order.out, found, unread)
    if not rows:
        raise TooManySkipped(_too_many(order, len(found.kept), unread))
    frame = pd.DataFrame(rows)
    outcome = _judged(order, predictor.card, frame, unread)
    _write(order.out, predictor.card, frame, outcome)
    if len(unread) > order.params.prepare.max_skipped_fraction * (len(rows) + len(unread)):
        raise TooManySkipped(_too_many(order, len(rows) + len(unread), unread))
    return outcome


def source_of(params: Params, name: str, root: Path) -> dict[str, Any]:
    """The options of the source to validate on.

    Args:
        params: params.yaml; the options of the source of that name in it are used, with another root.
        name: of a source of params.yaml, or a kind of source that needs no options.
        root: where the data lie.

    Raises:
        SettingsError: there is no source and no kind of that name.
    """
    from radfuse.engine.sources import kinds

    for item in params.sources:
        if name == (item.get("name") or item.get("kind")):
            return {**item, "root": str(root.absolute())}
    if name not in kinds():
        named = [str(item.get("name") or item.get("kind")) for item in params.sources]
        raise SettingsError(
            f"--source {name}: expected the name of a source in {params.origin} "
            f"({', '.join(named) or 'none'}) or a kind of source ({', '.join(kinds())})."
        )
    return {"kind": name, "root": str(root.absolute())}


def scanned(params: Params, places: Places, source: Mapping[str, Any], modality: str) -> Scan:
    """The samples of one source with their pseudonyms, those of other modalities left out.

    Raises:
        SettingsError: the source's options make no sense.
        SourceError: the source is not what its kind demands, or has nothing of the modality.
    """
    found = scan(params.model_copy(update={"sources": (dict(source),)}), places)
    kept = [one for one in found.kept if one.record.modality == modality]
    if not kept:
        others = ", ".join(sorted({one.record.modality for one in found.kept})) or "nothing"
        raise SourceError(f"source {found.sources[0].name}: expected samples of {modality}, got {others}.")
    lost = [one for one in found.lost if one.item.modality == modality]
    return Scan(found.sources, found.keys, kept, lost)


def trained_on(places: Places, samples: pd.DataFrame) -> list[str]:
    """Patients that the pipeline's models have seen, though they are to be validated on them."""
    if not places.patients.is_file():
        return []
    patients = read_patients(places)
    seen = set(patients.loc[patients[SPLIT] != "test", PATIENT])
    return sorted(seen & set(samples[PATIENT]))


def _judged(order: Order, card: Card, frame: pd.DataFrame, unread: Sequence[Unread]) -> Outcome:
    seen = trained_on(order.places, frame)
    report = {
        "model": {name: getattr(card, name) for name in ("modality", "name", "version", "model_digest")},
        "source": str(frame["source"].iloc[0]),
        "answered": len(frame),
        "unread": len(unread),
        "patients_of_the_training": len(seen),
        **external_report(frame, card, order.params.evaluate),
    }
    return Outcome(report, len(frame), unread, seen)


def _write(out: Path, card: Card, frame: pd.DataFrame, outcome: Outcome) -> None:
    stamp = predictions.Stamp(
        modality=card.modality,
        model_digest=card.model_digest,
        split_digest="",
        run_key="",
        labels=card.labels or tuple(card.regions),
    )
    predictions.write(out / PREDICTIONS, frame, stamp)
    durable.write_text(out / METRICS, json.dumps(outcome.report, indent=2, allow_nan=False) + "\n")


def _write_what_was_not_read(out: Path, found: Scan, unread: Sequence[Unread]) -> None:
    """The list of samples without an answer, and the private table, which every other output needs."""
    import pandas as pd

    durable.make_folder(out)
    listed = [(one.sample_id, one.reason) for one in unread]
    durable.write_text(out / SKIPPED, csv_text(pd.DataFrame(listed, columns=[SAMPLE, "reason"])))
    places = Places(out)
    durable.make_folder(places.private)
    # The folder may lie in a repository whose author thought of no private table here.
    durable.write_text(places.private / ".gitignore", "*\n")
    roots = {source.name: str(source.root.absolute()) for source in found.sources}
    identity.write(places, found.private_table(roots), found.fingerprints)


def _too_many(order: Order, total: int, unread: Sequence[Unread]) -> str:
    shown = "\n  ".join(one.shown for one in unread[:_SHOWN])
    more = f"\n  ... and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
    limit = order.params.prepare.max_skipped_fraction
    return (
        f"{order.source}: {len(unread)} of {total} samples cannot be read; prepare.max_skipped_fraction "
        f"allows {limit:g}:\n  {shown}{more}\n{SKIPPED} in {order.out} lists all of them."
    )
