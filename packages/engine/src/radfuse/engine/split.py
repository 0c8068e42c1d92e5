"""Which patient is in which split: by a hash, so that one stays where it is whoever else comes or goes."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from radfuse.engine.blocks import Fractions, SplitSettings
from radfuse.engine.errors import LeakageError, SettingsError, did_you_mean
from radfuse.engine.sources.source import DEVELOPMENT
from radfuse.engine.tables import PATIENT, SPLIT, SPLITS

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10


def place(patient_id: str, seed: int, fractions: Fractions, among: Sequence[str] = SPLITS) -> str:
    """The split of a patient: a point in [0, 1) that the hash gives, on a line cut by the shares.

    Args:
        patient_id: pseudonym.
        seed: another one deals all patients anew.
        fractions: shares of the splits.
        among: splits that may be had; their shares are scaled up to one.

    Raises:
        SettingsError: none of them has a share.
    """
    message = hashlib.sha256(f"radfuse split {seed} {patient_id}".encode()).digest()
    point = int.from_bytes(message[:8], "big") / 2**64
    shares = [(name, share) for name, share in fractions.items() if name in among and share > 0]
    if not shares:
        raise SettingsError(
            f"split.fractions: expected a share above 0 for one of {', '.join(among)}, got none."
        )
    point *= sum(share for _, share in shares)
    for name, share in shares:
        point -= share
        if point < 0:
            return name
    return shares[-1][0]


def assign(
    wishes: Mapping[str, str | None], settings: SplitSettings, lock: Mapping[str, str]
) -> dict[str, str]:
    """The split of every patient.

    Args:
        wishes: patient to what its source says: a split, `DEVELOPMENT` for any but test, or None.
        settings: of the split.
        lock: patient to split, above everything else.
    """
    development = [name for name in SPLITS if name != "test"]
    assigned = {}
    for patient, wish in wishes.items():
        if patient in lock:
            assigned[patient] = lock[patient]
        elif wish in SPLITS:
            assigned[patient] = str(wish)
        else:
            among = development if wish == DEVELOPMENT else list(SPLITS)
            assigned[patient] = place(patient, settings.seed, settings.fractions, among)
    return assigned


def read_lock(path: Path) -> dict[str, str]:
    """A committed assignment: CSV with the columns patient_id (pseudonyms) and split.

    Raises:
        SettingsError: it is missing or no such CSV.
        LeakageError: it has a patient in two splits.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"split.lock: {path.name} cannot be read: {error}.") from error
    lock: dict[str, str] = {}
    twice: dict[str, set[str]] = defaultdict(set)
    for number, row in enumerate(rows, 2):
        patient, split = (row.get(PATIENT) or "").strip(), (row.get(SPLIT) or "").strip()
        _check_lock_row(path.name, number, patient, split)
        if lock.setdefault(patient, split) != split:
            twice[patient] |= {lock[patient], split}
    if twice:
        raise LeakageError(f"{path.name}: {_listed(twice)}; keep one line for each patient.")
    return lock


def _check_lock_row(file: str, number: int, patient: str, split: str) -> None:
    if not patient or len(patient) != 13 or patient[0] != "p":
        raise SettingsError(
            f"{file}, line {number}: expected a pseudonymous id such as p0123456789ab in the column "
            f"{PATIENT}, got {patient!r}; cohort.parquet has them, and `radfuse whois` tells whose they are."
        )
    if split not in SPLITS:
        raise SettingsError(
            f"{file}, line {number}: expected a split in the column {SPLIT}, got {split!r}"
            f"{did_you_mean(split, SPLITS)}"
        )


def agreed(wishes: Iterable[tuple[str, str, str | None]]) -> dict[str, str | None]:
    """What the sources together say of each patient.

    Args:
        wishes: patient, where it is said (a modality), and the split that is asked for, None for no wish.

    Raises:
        LeakageError: a patient is asked to be in two splits.
    """
    asked: dict[str, dict[str, str]] = defaultdict(dict)
    found: dict[str, str | None] = {}
    for patient, where, wish in wishes:
        found.setdefault(patient, None)
        if wish is not None:
            asked[patient].setdefault(wish, where)
    clashes = {}
    for patient, splits in asked.items():
        if len(splits) == 1:
            found[patient] = next(iter(splits))
        elif "test" in splits or len(set(splits) - {DEVELOPMENT}) > 1:
            clashes[patient] = {f"{split} ({where})" for split, where in splits.items()}
        else:
            found[patient] = next(iter(set(splits) - {DEVELOPMENT}))
    if clashes:
        raise LeakageError(
            f"the sources put {_listed(clashes)}. A model would be tested on patients that it has seen; "
            "correct the split column or the official lists."
        )
    return found


def check_disjoint(tables: Mapping[str, pd.DataFrame]) -> None:
    """Stop when a patient is in two splits, within one table or across them.

    Args:
        tables: by name (a modality), each with the columns patient_id and split.

    Raises:
        LeakageError: names the patients, and where each is in which split.
    """
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for name, table in tables.items():
        for patient, split in table[[PATIENT, SPLIT]].drop_duplicates().itertuples(index=False):
            seen[patient].setdefault(split, name)
    leaks = {
        patient: {f"{split} ({name})" for split, name in splits.items()}
        for patient, splits in seen.items()
        if len(splits) > 1
    }
    if leaks:
        raise LeakageError(
            f"{_listed(leaks)}. A model would be tested on patients that it has seen. Make the tables anew "
            "from one cohort: `radfuse cohort`, then `prepare` and what follows."
        )


def digest(assigned: Mapping[str, str]) -> str:
    """SHA-256 over the sorted patients and their splits: the same whatever else is in the tables."""
    text = "".join(f"{patient},{assigned[patient]}\n" for patient in sorted(assigned))
    return hashlib.sha256(text.encode()).hexdigest()


def _listed(patients: Mapping[str, Iterable[str]]) -> str:
    names = sorted(patients)
    shown = ", ".join(f"{name} in {' and '.join(sorted(patients[name]))}" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    noun = "patient" if len(names) == 1 else "patients"
    return f"{len(names)} {noun} in more than one split: {shown}{more}"
