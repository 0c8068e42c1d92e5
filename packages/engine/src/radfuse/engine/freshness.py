"""Whether what earlier stages made still belongs together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from radfuse.engine.config import digest
from radfuse.engine.counts import labels_of
from radfuse.engine.errors import StaleError
from radfuse.engine.modality import Modality
from radfuse.engine.places import Places
from radfuse.engine.prepared import Prepared
from radfuse.engine.tables import LABEL, MODALITY, PATIENT, SAMPLE, SPLIT, columns

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.settings import PrepareSettings


def check_prepared(places: Places, modality: Modality, settings: PrepareSettings, prepared: Prepared) -> None:
    """Refuse arrays that were made from another cohort or split, or in another way, than is asked for now.

    Args:
        places: of the pipeline.
        modality: whose arrays.
        settings: ``prepare.<modality>`` of params.yaml.
        prepared: the arrays.

    Raises:
        MissingStage: there are none.
        StaleError: they are not those of this cohort, this split and these settings.
    """
    again = f"run `radfuse prepare {modality.name}` again."
    if digest(modality.preprocessing(settings)) != digest(prepared.spec):
        raise StaleError(
            f"the prepared images of {modality.name} were made with other settings than "
            f"prepare.{modality.name}; {again}"
        )
    if places.splits.is_file():
        now = json.loads(places.splits.read_text(encoding="utf-8"))["digest"]
        if now != prepared.split_digest:
            raise StaleError(
                f"the prepared images of {modality.name} belong to the split {prepared.split_digest[:12]}, "
                f"and the split at hand is {str(now)[:12]}; {again}"
            )
    if places.cohort.is_file():
        _check_samples(places, prepared, again)


def _check_samples(places: Places, prepared: Prepared, again: str) -> None:
    """The samples, and what is said of them, must be those of the cohort, but for what could not be read."""
    import pandas as pd

    cohort, rows = pd.read_parquet(places.cohort), prepared.rows()
    skipped = places.skipped(prepared.modality)
    unread = set(pd.read_csv(skipped, dtype=str)[SAMPLE]) if skipped.is_file() else set()
    lacking = set(cohort.loc[cohort[MODALITY] == prepared.modality, SAMPLE]) - set(rows[SAMPLE]) - unread
    found = difference(rows, cohort, prepared.modality)
    if lacking and not found:
        found = f"the cohort has {len(lacking)} samples that were not prepared, {min(lacking)} for one"
    if found:
        raise StaleError(f"the prepared images of {prepared.modality} are stale: {found}; {again}")


def difference(rows: pd.DataFrame, cohort: pd.DataFrame, modality: str, labels: bool = True) -> str:
    """What a table says of samples and the cohort at hand does not; empty where they agree.

    Args:
        rows: of a modality, with the columns sample_id, patient_id, split, and its labels.
        cohort: one row a sample.
        modality: its name.
        labels: whether labels are compared.
    """
    import pandas as pd

    known = cohort.loc[cohort[MODALITY] == modality].set_index(SAMPLE)
    gone = sorted(set(rows[SAMPLE]) - set(known.index))
    if gone:
        return f"{len(gone)} of its samples are not in the cohort at hand, {gone[0]} for one"
    names = labels_of(cohort, modality) if labels else []
    had = columns(rows, LABEL) if labels else []
    if set(names) != set(had):
        return (
            f"the cohort at hand has the labels {', '.join(names) or 'none'}, and the table has "
            f"{', '.join(had) or 'none'}"
        )
    known = known.loc[rows[SAMPLE]]
    for column in (PATIENT, SPLIT, *(LABEL + name for name in names)):
        now, then = known[column].to_numpy(), rows[column].to_numpy()
        other = rows[SAMPLE].to_numpy()[(now != then) & ~(pd.isna(now) & pd.isna(then))]
        if len(other):
            return f"the cohort at hand differs in {column} of {len(other)} samples, {other[0]} for one"
    return ""


def check_checkpoint(file_name: str, provenance: Mapping[str, Any], prepared: Prepared) -> None:
    """Refuse a model that was trained on other arrays, labels or splits than those at hand.

    What it was neither trained nor validated on is not compared: a model does not age by new test patients.

    Args:
        file_name: of the checkpoint.
        provenance: as it says.
        prepared: the arrays.

    Raises:
        StaleError: naming what differs.
    """
    before, now = str(provenance.get("learnt_digest") or "none"), prepared.learnt_digest
    if before != now:
        raise StaleError(
            f"{file_name} is stale: the images, labels and patients it was trained on ({before[:12]}) are "
            f"not those at hand ({now[:12]}); run `radfuse train {prepared.modality}` again."
        )
