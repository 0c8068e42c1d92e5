"""Asks every source for its samples and gives each its pseudonyms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radfuse.engine import identity, keys
from radfuse.engine.config import Params
from radfuse.engine.errors import RadfuseError, SettingsError, SourceError, TooManySkipped
from radfuse.engine.keys import Key
from radfuse.engine.places import Places
from radfuse.engine.sources import LeftOut, Record, Source, open_sources

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 5


class KeyChanged(RadfuseError):
    """The key of a source is not the one that the cohort at hand was made with."""


@dataclass(frozen=True)
class Kept:
    """A sample with its pseudonyms."""

    record: Record
    source: Source
    patient_id: str
    study_id: str
    sample_id: str


@dataclass(frozen=True)
class Lost:
    """A sample that its source lists and does not have, with its pseudonyms; ``patient_id`` may be empty."""

    item: LeftOut
    source: Source
    patient_id: str
    sample_id: str

    @property
    def shown(self) -> str:
        """The file and the reason, for the terminal alone."""
        return f"{self.item.where}: {self.item.reason}"


@dataclass(frozen=True)
class Scan:
    """What the sources have.

    Attributes:
        sources: in the order of params.yaml.
        keys: by source.
        kept: sorted by modality and sample id, so that nothing of the original order shows.
        lost: sorted alike.
    """

    sources: Sequence[Source]
    keys: Mapping[str, Key]
    kept: Sequence[Kept]
    lost: Sequence[Lost]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the keys, by source."""
        return {name: key.fingerprint for name, key in sorted(self.keys.items())}

    def private_table(self, roots: Mapping[str, str]) -> pd.DataFrame:
        """Rows of the private table; what is missing is in it too, so that `radfuse whois` finds its name.

        Args:
            roots: folder of each source, as the table is to name it.
        """
        import pandas as pd

        rows = [
            (
                one.sample_id, one.patient_id, one.study_id, one.source.name, roots[one.source.name],
                json.dumps(one.record.files), one.record.patient, one.record.study,
                None if one.record.point_mm is None else json.dumps(one.record.point_mm),
            )
            for one in self.kept
        ]  # fmt: skip
        rows += [
            (
                one.sample_id, one.patient_id, "", one.source.name, roots[one.source.name],
                json.dumps({"missing": [one.item.where]}), one.item.patient, "", None,
            )
            for one in self.lost
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=list(identity.COLUMNS)).astype("object")


def scan(params: Params, places: Places) -> Scan:
    """Every sample of every source.

    Raises:
        SettingsError: a source's options make no sense.
        SourceError: a source is not what its kind demands, or lists a sample twice.
        KeyRefused: the key file cannot be used.
        KeyChanged: the ids of the cohort at hand were made with another key.
        TooManySkipped: too many of the listed files are missing.
    """
    sources = open_sources(params.sources, places.root, params.origin)
    key_of = _keys(sources, params, places)
    kept: list[Kept] = []
    lost: list[Lost] = []
    for source in sources:
        for item in source.scan():
            if isinstance(item, Record):
                kept.append(_kept(item, source, key_of[source.name]))
            else:
                lost.append(_lost(item, source, key_of[source.name]))
    _refuse_too_many(kept, lost, params.prepare.max_skipped_fraction)
    _refuse_none(kept, lost)
    _refuse_twins(kept)
    kept.sort(key=lambda one: (one.record.modality, one.sample_id))
    lost.sort(key=lambda one: (one.item.modality, one.sample_id))
    return Scan(sources, key_of, kept, lost)


def _keys(sources: Sequence[Source], params: Params, places: Places) -> dict[str, Key]:
    kind_of: dict[str, bool] = {}
    for source in sources:
        if kind_of.setdefault(source.namespace, source.public) != source.public:
            raise SettingsError(
                f"{params.origin}: sources of patient_namespace {source.namespace!r} must be all public or "
                "all private, or their patients' ids would not match; correct `public`."
            )
    chosen = {source.name: keys.PUBLIC for source in sources if source.public}
    if len(chosen) < len(sources):
        private = keys.private_key(params.privacy.key_file, places.root)
        chosen |= {source.name: private for source in sources if not source.public}
    _refuse_another_key(chosen, places)
    return chosen


def _refuse_another_key(chosen: Mapping[str, Key], places: Places) -> None:
    """A lost key that was replaced in silence would give every patient a new id, and another split."""
    before = identity.fingerprints(places)
    for name, key in chosen.items():
        if before.get(name, key.fingerprint) != key.fingerprint:
            raise KeyChanged(
                f"source {name}: the cohort at hand was made with the key {before[name]}, and this one is "
                f"{key.fingerprint}: every id and split of its patients would change. Bring the right key "
                "back (privacy.key_file; `public` of the source), or delete "
                f"{places.relative(places.identity)} and accept that models and tables so far speak of other "
                "ids."
            )


def _kept(record: Record, source: Source, key: Key) -> Kept:
    return Kept(
        record=record,
        source=source,
        patient_id=key.patient(source.namespace, record.patient),
        study_id=key.study(source.namespace, record.patient, record.study),
        sample_id=key.sample(source.name, record.modality, record.sample),
    )


def _lost(item: LeftOut, source: Source, key: Key) -> Lost:
    return Lost(
        item=item,
        source=source,
        patient_id=key.patient(source.namespace, item.patient) if item.patient else "",
        sample_id=key.sample(source.name, item.modality, item.sample),
    )


def _refuse_none(kept: Sequence[Kept], lost: Sequence[Lost]) -> None:
    if kept:
        return
    nothing = "the sources list no sample that can be used"
    if lost:
        raise SourceError(f"{nothing}:{_listed(lost)}\n{_wrong_place(lost)}")
    raise SourceError(f"{nothing}; correct `sources` of params.yaml.")


def _listed(lost: Sequence[Lost]) -> str:
    more = f"\n  ... and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return "".join(f"\n  {one.shown}" for one in lost[:_SHOWN]) + more


def _wrong_place(lost: Sequence[Lost]) -> str:
    """What to do where not one file is found: that is hardly the files' fault."""
    roots = dict.fromkeys(f"{one.source.settings.root} of the source {one.source.name}" for one in lost)
    return (
        f"Not one was found below {', '.join(roots)}: correct `root`, or the listed names (a folder too much "
        "or too few in front, .png for .PNG)."
    )


def _refuse_twins(kept: Sequence[Kept]) -> None:
    """A sample listed twice would count twice, and might do so in two splits."""
    twice = [name for name, number in Counter(one.sample_id for one in kept).items() if number > 1]
    if twice:
        first = next(one for one in kept if one.sample_id == twice[0])
        more = f", and {len(twice) - 1} more" if len(twice) > 1 else ""
        raise SourceError(
            f"source {first.source.name} lists {first.record.sample} twice as {first.record.modality}{more}; "
            "keep one line for each image (for several nodules of one volume give their coordinates: "
            "point_mm)."
        )


def _refuse_too_many(kept: Sequence[Kept], lost: Sequence[Lost], limit: float) -> None:
    found = Counter(one.record.modality for one in kept)
    for modality, number in Counter(one.item.modality for one in lost).items():
        total = number + found[modality]
        if number > limit * total:
            absent = [one for one in lost if one.item.modality == modality]
            advice = "" if found[modality] else f"{_wrong_place(absent)}\n"
            raise TooManySkipped(
                f"{modality}: {number} of {total} listed samples cannot be had, more than "
                f"prepare.max_skipped_fraction {limit:g} allows:{_listed(absent)}\n{advice}"
                "Add the files, take them off the list, or raise the limit."
            )
