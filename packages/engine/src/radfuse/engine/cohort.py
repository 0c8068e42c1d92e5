"""The cohort: every sample of every source, pseudonymous, and each patient's split."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptcore import durable
from radfuse.engine import counts, identity, pushing, split
from radfuse.engine.config import Params
from radfuse.engine.errors import SettingsError
from radfuse.engine.places import Places, require
from radfuse.engine.scanning import Kept, Lost, Scan, scan
from radfuse.engine.table_bytes import csv_text, parquet
from radfuse.engine.tables import DISEASE, LABEL, MODALITY, PATIENT, REFERENCE, SAMPLE, SPLIT, STUDY

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
_COMMAND = "radfuse cohort"
_OF_PATIENT = ("age_years", "sex", "site")


@dataclass(frozen=True)
class Cohort:
    """What the cohort stage makes.

    Attributes:
        samples: one row a sample, sorted by modality and sample id.
        patients: one row a patient, sorted by patient id.
        identity: the private table, of samples and of what was left out.
        left_out: sample_id, modality, source, reason.
        stamp: what ``splits.json`` says.
        scan: what the tables were made of; with original names, for the terminal alone.
    """

    samples: pd.DataFrame
    patients: pd.DataFrame
    identity: pd.DataFrame
    left_out: pd.DataFrame
    stamp: dict[str, Any]
    scan: Scan


def build(params: Params, places: Places) -> Cohort:
    """Scan every source and split the patients; nothing is written but, on first use, the key file.

    Raises:
        SettingsError: a source's options, or the lock, make no sense.
        SourceError: a source is not what its kind demands.
        LeakageError: a patient is to be in two splits.
        TooManySkipped: too many of the listed files are missing.
        TooFewPatients: a split is smaller than its minimum.
        PushedTables: ``dvc push`` would send rows about patients.
    """
    pushing.check(places, params.privacy.push_patient_tables)
    found = scan(params, places)
    lock_path = None if params.split.lock is None else places.root / params.split.lock
    wishes = split.agreed(
        (one.patient_id, f"{one.record.modality} of {one.source.name}", one.record.split)
        for one in found.kept
    )
    assigned = split.assign(wishes, params.split, {} if lock_path is None else split.read_lock(lock_path))
    samples, patients = _samples(found.kept, assigned), _patients(found, assigned)
    split.check_disjoint({str(name): rows for name, rows in samples.groupby(MODALITY)})
    numbers = counts.count(samples, patients)
    counts.check(numbers, params.split)
    few = counts.few_positives(numbers)
    stamp = {
        "format": FORMAT,
        "digest": split.digest(assigned),
        "seed": params.split.seed,
        "fractions": dict(params.split.fractions.items()),
        "lock_sha256": None if lock_path is None else hashlib.sha256(lock_path.read_bytes()).hexdigest(),
        "key_fingerprints": found.fingerprints,
        "counts": numbers,
        "few_positives": few,
        "merged_calibration": bool(few),
        "classes": _classes(found),
    }
    roots = {source.name: str(source.settings.root.expanduser()) for source in found.sources}
    return Cohort(samples, patients, found.private_table(roots), _left_out(found.lost), stamp, found)


def write(cohort: Cohort, places: Places) -> None:
    """Write every table of the cohort, each whole or not at all; same cohort, same bytes.

    The stamp goes first and comes last: without it there is no cohort.
    """
    durable.make_folder(places.cohort_folder)
    _withdraw_stamp(places)
    identity.write(places, cohort.identity, cohort.scan.fingerprints)
    durable.write_bytes(places.cohort, parquet(cohort.samples))
    durable.write_bytes(places.patients, parquet(cohort.patients))
    durable.write_text(places.left_out, csv_text(cohort.left_out))
    durable.write_text(places.splits, json.dumps(cohort.stamp, indent=2) + "\n")


def read(places: Places) -> pd.DataFrame:
    """The cohort table: one row a sample.

    Raises:
        MissingStage: `radfuse cohort` has not made it, or was stopped while it did.
    """
    import pandas as pd

    require(places.splits, _COMMAND)
    return pd.read_parquet(require(places.cohort, _COMMAND))


def read_patients(places: Places) -> pd.DataFrame:
    """The patients' table: one row a patient, with split, diseases, age, sex and site.

    Raises:
        MissingStage: `radfuse cohort` has not made it.
    """
    import pandas as pd

    return pd.read_parquet(require(places.patients, _COMMAND))


def read_stamp(places: Places) -> dict[str, Any]:
    """What ``splits.json`` says: ``digest``, ``counts``, ``merged_calibration``, ``few_positives``, ...

    Raises:
        MissingStage: `radfuse cohort` has not made it.
    """
    return dict(json.loads(require(places.splits, _COMMAND).read_text(encoding="utf-8")))


def _withdraw_stamp(places: Places) -> None:
    """A split's digest must never stand beside tables of another split."""
    durable.remove(places.splits)


def _samples(kept: Sequence[Kept], assigned: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    labels = list(dict.fromkeys(name for one in kept for name in one.record.labels))
    references = list(dict.fromkeys(name for one in kept for name in one.record.references))
    rows = [
        {
            PATIENT: one.patient_id,
            STUDY: one.study_id,
            SAMPLE: one.sample_id,
            MODALITY: one.record.modality,
            "source": one.source.name,
            SPLIT: assigned[one.patient_id],
            **vars(one.record.attributes),
            **{LABEL + name: one.record.labels.get(name, math.nan) for name in labels},
            **{REFERENCE + name: one.record.references.get(name, math.nan) for name in references},
        }
        for one in kept
    ]
    return pd.DataFrame(rows)


def _patients(found: Scan, assigned: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    diseases = {
        found.keys[source.name].patient(source.namespace, original): values
        for source in found.sources
        for original, values in source.diseases().items()
    }
    names = list(dict.fromkeys(name for values in diseases.values() for name in values))
    about: dict[str, dict[str, Any]] = {}
    for one in found.kept:
        _add(about.setdefault(one.patient_id, {}), vars(one.record.attributes))
    rows = [
        {
            PATIENT: patient,
            SPLIT: assigned[patient],
            **{DISEASE + name: diseases.get(patient, {}).get(name, math.nan) for name in names},
            **{name: about[patient][name] for name in _OF_PATIENT},
        }
        for patient in sorted(assigned)
    ]
    return pd.DataFrame(rows)


def _add(about: dict[str, Any], attributes: Mapping[str, Any]) -> None:
    """A patient's age is that of the first study; of the rest the first value that is known stays."""
    youngest = min(
        (age for age in (about.get("age_years", math.nan), attributes["age_years"]) if not math.isnan(age)),
        default=math.nan,
    )
    for name in ("sex", "site"):
        about[name] = about.get(name) or attributes[name]
    about["age_years"] = youngest


def _left_out(lost: Sequence[Lost]) -> pd.DataFrame:
    import pandas as pd

    rows = [(one.sample_id, one.item.modality, one.source.name, one.item.reason) for one in lost]
    return pd.DataFrame(rows, columns=[SAMPLE, MODALITY, "source", "reason"])


def _classes(found: Scan) -> dict[str, dict[str, str]]:
    """Names of the classes of segmentations by modality and index.

    Raises:
        SettingsError: two sources of one modality have other classes.
    """
    classes: dict[str, dict[str, str]] = {}
    for modality, source in dict.fromkeys((one.record.modality, one.source) for one in found.kept):
        named = {str(index): name for index, name in source.classes(modality).items()}
        if named and classes.setdefault(modality, named) != named:
            raise SettingsError(
                f"source {source.name}: its segmentations have the classes {', '.join(named.values())}, and "
                f"those of another source of {modality} {', '.join(classes[modality].values())}; use sources "
                "with the same classes, or a pipeline for each."
            )
    return classes
