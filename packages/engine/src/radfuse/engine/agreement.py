"""Prediction tables that belong together: of the models and the split at hand, and no patient in two splits.

What is computed from tables that do not agree looks like any other result and means nothing: it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore import read_header
from ckptcore.semver import is_version
from radfuse.engine import predictions
from radfuse.engine.cohort import read_patients
from radfuse.engine.errors import MissingStage, StaleError
from radfuse.engine.freshness import difference
from radfuse.engine.places import Places, require
from radfuse.engine.split import check_disjoint
from radfuse.engine.tables import DICE, LABEL, columns

if TYPE_CHECKING:
    import pandas as pd

ENSEMBLE = "ensemble"
"""By this name the ensemble reads them."""


@dataclass(frozen=True)
class Table:
    """The predictions of one modality.

    Attributes:
        modality: its name.
        frame: one row a sample.
        stamp: which model and split it was made from.
    """

    modality: str
    frame: pd.DataFrame
    stamp: predictions.Stamp

    @property
    def segments(self) -> bool:
        """Whether it tells of regions and not of labels."""
        return bool(columns(self.frame, DICE)) and not columns(self.frame, LABEL)


def agreeing_tables(places: Places) -> dict[str, Table]:
    """The prediction table of every modality that has one, all of one split, each of the model published now.

    Raises:
        MissingStage: there is no table, or no split.
        StaleError: a table was made from another model, split or cohort than those at hand.
        LeakageError: a patient is in more than one split.
    """
    digest = split_digest(places)
    paths = sorted(path for path in places.predictions_folder.glob("*.parquet") if path.stem != ENSEMBLE)
    if not paths:
        raise MissingStage(
            f"expected prediction tables in {places.relative(places.predictions_folder)}, which has none; "
            "run `radfuse predict-split MODALITY` first."
        )
    tables = {}
    for path in paths:
        frame, stamp = predictions.read(path)
        tables[path.stem] = Table(path.stem, frame, stamp)
        _check_split(stamp.split_digest, digest, path.stem)
        check_model(places, path.stem, stamp.model_digest, f"radfuse predict-split {path.stem}")
    known = {"patients": read_patients(places)}
    check_disjoint(known | {name: table.frame for name, table in tables.items()})
    _check_truth(places, tables)
    return tables


def split_digest(places: Places) -> str:
    """The digest of the split at hand.

    Raises:
        MissingStage: nothing has been split yet.
    """
    found = json.loads(require(places.splits, "radfuse cohort").read_text(encoding="utf-8"))
    return str(found["digest"])


def published_digests(places: Places, modality: str) -> dict[str, str | None]:
    """Model digests of the best in ``saved_models/<modality>`` by file name; versions stand aside."""
    files = sorted(places.saved_models(modality).glob("*_best.pth"))
    return {file.name: read_header(file).model_digest for file in files if not is_version(file.name)}


def check_model(places: Places, modality: str, digest: str | None, command: str) -> None:
    """Refuse a table whose model is not the one published now.

    Args:
        places: of the pipeline.
        modality: whose model.
        digest: the model digest that the table is stamped with.
        command: what makes the table anew.

    Raises:
        MissingStage: no model of the modality is published.
        StaleError: another one is.
    """
    published = published_digests(places, modality)
    folder = places.relative(places.saved_models(modality))
    if not published:
        raise MissingStage(
            f"the predictions of {modality} are there, but not the model they came from: expected one "
            f"*_best.pth in {folder}; run `radfuse train {modality}`, or delete a table nobody needs."
        )
    if digest not in published.values():
        now = ", ".join(f"{name} is {(found or 'none')[:12]}" for name, found in published.items())
        raise StaleError(
            f"the predictions of {modality} are stale: they came from the model {(digest or 'none')[:12]}, "
            f"and in {folder} {now}; run `{command}` again."
        )


def _check_split(stamped: str, digest: str, modality: str) -> None:
    if stamped != digest:
        raise StaleError(
            f"the predictions of {modality} were made on the split {stamped[:12]}, and the split at hand is "
            f"{digest[:12]}; {_anew(modality)}"
        )


def _check_truth(places: Places, tables: Mapping[str, Table]) -> None:
    """Labels may have been corrected since; figures and ensembles must be of those at hand."""
    import pandas as pd

    if not places.cohort.is_file():
        return
    cohort = pd.read_parquet(places.cohort)
    for name, table in tables.items():
        found = difference(table.frame, cohort, name, labels=not table.segments)
        if found:
            raise StaleError(f"the predictions of {name} are stale: {found}; {_anew(name)}")


def _anew(modality: str) -> str:
    return (
        f"run `radfuse prepare {modality}`, `radfuse train {modality}` and "
        f"`radfuse predict-split {modality}` again."
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of an earlier stage."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return dict(found)
