"""The prepare stage of one modality: what is left to do is done, and the manifest says what there is."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ckptcore import durable
from radfuse.engine import cohort, counts
from radfuse.engine.config import Params
from radfuse.engine.errors import MissingStage, RadfuseError, TooManySkipped
from radfuse.engine.identity import Images
from radfuse.engine.modality import Modality
from radfuse.engine.places import Places, require
from radfuse.engine.prepared import ARRAY_SUFFIX, LEARNT, MASK_SUFFIX, SPACING, digest_of
from radfuse.engine.preparing.decoding import Finished, Job, Skipped
from radfuse.engine.preparing.jobs import images_of, jobs_of
from radfuse.engine.preparing.journal import Journal
from radfuse.engine.preparing.workers import carry_out_all, cores
from radfuse.engine.progress import Mode, track
from radfuse.engine.table_bytes import csv_text, parquet
from radfuse.engine.tables import LABEL, MODALITY, REFERENCE, SAMPLE, SPLIT, SPLITS, columns

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)
FORMAT = 1
LONGEST_WAIT = 60.0
"""Seconds that another process, such as one whose DVC was just killed, is given to end."""
_SHOWN = 5


class Busy(RadfuseError):
    """Another process prepares the same modality."""


@dataclass(frozen=True)
class Result:
    """What a run of the stage came to.

    Attributes:
        prepared: samples that have arrays.
        kept: of these, as many were there from before.
        skipped: ``file: reason`` of each sample that could not be read, with the file that is at fault, for
            the terminal alone.
        digest: of the manifest.
    """

    prepared: int
    kept: int
    skipped: Sequence[str]
    digest: str


def prepare(modality: Modality, params: Params, places: Places, progress: Mode = "auto") -> Result:
    """Make the arrays of every sample of a modality, and the manifest.

    It may be stopped at any moment: what is finished is not done again, and nothing half-written has a name.

    Raises:
        MissingStage: there is no finished cohort, or it has no sample of the modality.
        SettingsError: the preprocessing asks for images that a source does not have.
        TooManySkipped: more samples than ``prepare.max_skipped_fraction`` cannot be read.
        Busy: another process is at it, and does not end.
    """
    samples = _samples(modality.name, places)
    spec = modality.preprocessing(params.prepare_of(modality))
    images = images_of(samples, places)
    durable.make_folder(places.arrays(modality.name))
    with _alone(places, modality.name):
        journal = Journal(_beside(places, modality.name, "journal.jsonl"))
        jobs = jobs_of(samples, images, spec, modality.name, params, places, journal)
        _withdraw_manifest(places, modality.name)
        outcomes = _outcomes(jobs, journal, modality.name, params.prepare.workers or cores(), progress)
        finished = {one.sample_id: one for one in outcomes if isinstance(one, Finished)}
        unread = sorted((one for one in outcomes if isinstance(one, Skipped)), key=lambda one: one.sample_id)
        skipped = {one.sample_id: one.reason for one in unread}
        shown = [f"{_place(images[one.sample_id], one.path)}: {one.reason}" for one in unread]
        total = len(samples) + _write_skipped(skipped, modality.name, places)
        _refuse_too_many(
            modality.name, total - len(finished), total, shown, params.prepare.max_skipped_fraction
        )
        digest = _write_manifest(samples, finished, spec, modality.name, places, total - len(finished))
        _tidy(places, modality.name, finished)
        journal.replace(finished[name] for name in sorted(finished))
    kept = sum(1 for job in jobs if job.before is not None and finished.get(job.sample_id) == job.before)
    return Result(len(finished), kept, shown, digest)


def _samples(modality: str, places: Places) -> pd.DataFrame:
    table = cohort.read(places)
    samples = table.loc[table[MODALITY] == modality]
    if samples.empty:
        raise MissingStage(
            f"the cohort has no sample of {modality}; add a source that has some to `sources` of params.yaml "
            "and run `radfuse cohort`."
        )
    known = counts.labels_of(table, modality)
    unused = [LABEL + name for name in columns(samples, LABEL) if name not in known]
    # The evaluation takes them from the cohort; in the manifest a new one would start training again.
    unused += [REFERENCE + name for name in columns(samples, REFERENCE)]
    return samples.drop(columns=unused).sort_values(SAMPLE).reset_index(drop=True)


@contextmanager
def _alone(places: Places, modality: str) -> Iterator[None]:
    lock = FileLock(_beside(places, modality, "lock"))
    other = f"another process prepares {modality} in {places.relative(places.prepared(modality))}"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("%s; waiting for it to end, %g s at the most", other, LONGEST_WAIT)
        try:
            lock.acquire(timeout=LONGEST_WAIT)
        except Timeout:
            raise Busy(f"{other}; wait for it, or end it.") from None
    try:
        yield
    finally:
        lock.release()


def _beside(places: Places, modality: str, name: str) -> Any:
    """Files that are no output stand beside a modality's folder, which a pipeline may delete as a whole."""
    return places.prepared(modality).with_name(f".{modality}.{name}")


def _withdraw_manifest(places: Places, modality: str) -> None:
    """A manifest must never speak of arrays that are being replaced."""
    durable.remove(places.manifest_stamp(modality))
    durable.remove(places.learnt(modality))
    durable.remove(places.manifest(modality))


def _outcomes(
    jobs: Sequence[Job], journal: Journal, modality: str, workers: int, progress: Mode
) -> list[Finished | Skipped]:
    outcomes: list[Finished | Skipped] = []
    shown = track(carry_out_all(jobs, workers), f"prepare {modality}", len(jobs), progress)
    skipped = 0
    for outcome in shown:
        outcomes.append(outcome)
        if isinstance(outcome, Finished):
            journal.add(outcome)
        else:
            skipped += 1
            shown.note = f"{skipped} skipped"
    return outcomes


def _write_skipped(skipped: Mapping[str, str], modality: str, places: Places) -> int:
    """Write ``skipped.csv``; returns how many the cohort stage had left out, which are in it too."""
    import pandas as pd

    left_out = pd.read_csv(require(places.left_out, "radfuse cohort"), dtype=str)
    before = left_out.loc[left_out[MODALITY] == modality]
    rows = [*skipped.items(), *zip(before[SAMPLE], before["reason"], strict=True)]
    table = pd.DataFrame(sorted(rows), columns=[SAMPLE, "reason"])
    durable.write_text(places.skipped(modality), csv_text(table))
    return len(before)


def _refuse_too_many(modality: str, skipped: int, total: int, shown: Sequence[str], limit: float) -> None:
    if skipped <= limit * total and skipped < total:
        return
    more = f"\n  ... and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    raise TooManySkipped(
        f"{modality}: {skipped} of {total} samples cannot be read, more than prepare.max_skipped_fraction "
        f"{limit:g} allows:\n  " + "\n  ".join(shown[:_SHOWN]) + f"{more}\n"
        "skipped.csv lists all of them (`radfuse whois` finds the files). Mend or remove them, or raise the "
        "limit; what was read is kept."
    )


def _write_manifest(
    samples: pd.DataFrame,
    finished: Mapping[str, Finished],
    spec: Mapping[str, Any],
    modality: str,
    places: Places,
    skipped: int,
) -> str:
    """Write the manifest, its stamp last; returns its digest."""
    rows = samples.loc[samples[SAMPLE].isin(finished.keys())].reset_index(drop=True)
    made = [finished[name] for name in rows[SAMPLE]]
    rows["sha256"] = [one.sha256 for one in made]
    rows["mask_sha256"] = [one.mask_sha256 for one in made]
    for axis, name in enumerate(SPACING):
        rows[name] = [math.nan if one.spacing_mm is None else one.spacing_mm[axis] for one in made]
    twins = _twins_across_splits(rows)
    _warn_of_twins(twins, modality)
    split_stamp = cohort.read_stamp(places)
    masks = all(one.mask_sha256 for one in made)
    stamp: dict[str, Any] = {
        "format": FORMAT,
        "modality": modality,
        "spec": dict(spec),
        "labels": columns(rows, LABEL),
        "classes": split_stamp["classes"].get(modality, {}) if masks else {},
        "counts": {name: Counter(rows[SPLIT])[name] for name in SPLITS},
        "split_digest": split_stamp["digest"],
        "skipped": skipped,
        "twins_across_splits": len(twins),
    }
    about = stamp["spec"], stamp["labels"], stamp["classes"]
    learnt = digest_of(rows[rows[SPLIT].isin(LEARNT)], *about)
    stamp = {"digest": digest_of(rows, *about), "learnt_digest": learnt, **stamp}
    durable.write_bytes(places.manifest(modality), parquet(rows))
    durable.write_text(places.learnt(modality), json.dumps({"digest": learnt}) + "\n")
    durable.write_text(places.manifest_stamp(modality), json.dumps(stamp, indent=2) + "\n")
    return str(stamp["digest"])


def _twins_across_splits(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """A pair for each array that samples of several splits share: two of them, each with its split."""
    twins = []
    for _, same in rows[rows.duplicated("sha256", keep=False)].groupby("sha256", sort=False):
        first = same.drop_duplicates(SPLIT)
        if len(first) > 1:
            one, other, *_ = (f"{sample} ({split})" for sample, split in first[[SAMPLE, SPLIT]].to_numpy())
            twins.append((one, other))
    return twins


def _warn_of_twins(twins: Sequence[tuple[str, str]], modality: str) -> None:
    """Copies of one image under two patients are likely one patient, whom no id gives away."""
    if not twins:
        return
    shown = "".join(f"\n  {one} and {other}" for one, other in twins[:_SHOWN])
    more = f"\n  ... and {len(twins) - _SHOWN} more" if len(twins) > _SHOWN else ""
    _log.warning(
        "LEAK? %s: %d prepared images are in more than one split, under other patients:%s%s\n"
        "A model is then tested on what it was trained on. Where two sources have the same people, give both "
        "one patient_namespace; else take the copies off the list (`radfuse whois` finds the files). Then "
        "run `radfuse cohort` and `radfuse prepare %s` again.",
        modality, len(twins), shown, more, modality,
    )  # fmt: skip


def _tidy(places: Places, modality: str, finished: Mapping[str, Finished]) -> None:
    """Remove arrays that the manifest does not know, and what killed writers left."""
    wanted = {f"{name}{ARRAY_SUFFIX}" for name in finished}
    wanted |= {f"{name}{MASK_SUFFIX}" for name, one in finished.items() if one.mask_sha256}
    for path in places.arrays(modality).iterdir():
        if path.name not in wanted and path.is_file():
            durable.remove(path)


def _place(images: Images, at_fault: Path | None) -> str:
    """The file at fault, relative to the source's root; else the sample's first, or its series' folder."""
    if at_fault is not None and at_fault.is_relative_to(images.root):
        return at_fault.relative_to(images.root).as_posix()
    names = next(iter(images.files.values()))
    return names[0] if len(names) == 1 else names[0].rpartition("/")[0]
