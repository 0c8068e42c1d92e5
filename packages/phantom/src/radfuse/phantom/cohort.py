"""Writes a cohort; what a killed call has finished is kept by the next one."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radfuse.phantom import ceilings, folder, patient, processes, tables
from radfuse.phantom.diseases import MODALITIES
from radfuse.phantom.errors import PhantomError
from radfuse.phantom.settings import Settings

Progress = Callable[[int, int], None]
"""Called with the number of finished patients and of all."""
Say = Callable[[str], None]
"""Called with a line for the user."""


@dataclass(frozen=True)
class Report:
    """What a call of `write` leaves.

    Attributes:
        patients: in the cohort.
        written, kept: of them by this call; finished by an earlier one.
        studies: by modality.
        nodules: in all CT series.
        files, bytes: of images.
        ceilings: means over diseases, as in ``ceilings.json``.
        digest: of what the patients' bytes follow from.
    """

    patients: int
    written: int
    kept: int
    studies: dict[str, int]
    nodules: int
    files: int
    bytes: int
    ceilings: dict[str, Any]
    digest: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def write(
    out: str | Path,
    settings: Settings | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Report:
    """Write a cohort, or what of it is not there yet.

    Patients that an earlier call finished under the same settings are kept if their files are still the same,
    byte for byte; under other settings, all that the earlier call wrote is removed first. A call that is
    still writing there is waited for, a minute at most.

    Args:
        out: folder to write to: new, empty, or written by an earlier call.
        settings: of the cohort; the defaults when None.
        progress: told after each patient.
        say: told when another call has to be waited for.

    Raises:
        ForeignFolder: the folder holds something else, or another call goes on writing it.
        PhantomError: a file could not be written.
    """
    with _system_errors(Path(out)), folder.held(Path(out), say or (lambda line: None)):
        return _write(Path(out), settings or Settings(), progress or (lambda done, of: None))


@contextmanager
def _system_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PhantomError(
            f"cannot write to {out}: {error.strerror or error}. Free some space or choose another folder "
            "(--out), then call again: finished patients are kept."
        ) from error


def _write(out: Path, settings: Settings, progress: Progress) -> Report:
    digest = settings.digest()
    folder.clear(out, settings, digest)
    folder.stamp(out, settings, digest, complete=False)
    written = 0
    progress(0, settings.patients)
    for done, new in enumerate(processes.complete(out, settings, settings.numbers), start=1):
        written += new
        progress(done, settings.patients)
    shutil.rmtree(out / patient.PARTIAL, ignore_errors=True)
    records = [_record(out, number) for number in settings.numbers]
    rows = {name: [row for record in records for row in record["rows"][name]] for name in tables.COLUMNS}
    tables.write(out, rows)
    limits = ceilings.report(settings.incomplete)
    tables.replace(out / folder.CEILINGS, (json.dumps(limits, indent=2) + "\n").encode())
    folder.stamp(out, settings, digest, complete=True)
    return _report(records, rows, limits["means"], written, digest)


def _record(out: Path, number: int) -> patient.Record:
    # Just written or compared: to read all files once more would find nothing new.
    record = patient.there(out, number)
    if record is None:
        raise PhantomError(
            f"files of patient number {number} vanished from {out} while the cohort was written. "
            "Let nothing else change that folder, and call again."
        )
    return record


def _report(
    records: Sequence[patient.Record],
    rows: dict[str, list[dict[str, Any]]],
    means: dict[str, Any],
    written: int,
    digest: str,
) -> Report:
    studies = Counter(row["modality"] for row in rows["truth"])
    sizes = [file["size"] for record in records for file in record["files"].values()]
    return Report(
        patients=len(records),
        written=written,
        kept=len(records) - written,
        studies={name: studies[name] for name in MODALITIES},
        nodules=len(rows["nodules"]),
        files=len(sizes),
        bytes=sum(sizes),
        ceilings=means,
        digest=digest,
    )
