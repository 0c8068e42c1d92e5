"""What there is to prepare: each sample with its files, and a digest of all that its arrays are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from radfuse.engine import code, identity
from radfuse.engine.config import Params, digest
from radfuse.engine.errors import MissingStage, SettingsError
from radfuse.engine.identity import Images
from radfuse.engine.places import Places
from radfuse.engine.preparing.decoding import Job
from radfuse.engine.preparing.journal import Journal
from radfuse.engine.sources import Source, sources_by_name
from radfuse.engine.tables import SAMPLE

if TYPE_CHECKING:
    import pandas as pd

MASK = "mask"


def images_of(samples: pd.DataFrame, places: Places) -> dict[str, Images]:
    """The files of samples, from the private table.

    Raises:
        MissingStage: the private table is missing, or of another cohort.
    """
    table = identity.read(places).set_index(SAMPLE)
    unknown = [name for name in samples[SAMPLE] if name not in table.index]
    if unknown:
        raise MissingStage(
            f"{places.relative(places.identity)} does not know {len(unknown)} samples of the cohort, "
            f"{unknown[0]} for one; run `radfuse cohort` again on the machine with the data."
        )
    rows = table.loc[list(samples[SAMPLE])].to_dict("index")
    return {str(name): identity.images(places, cast(dict[str, Any], row)) for name, row in rows.items()}


def jobs_of(
    samples: pd.DataFrame,
    images: Mapping[str, Images],
    spec: Mapping[str, Any],
    modality: str,
    params: Params,
    places: Places,
    journal: Journal,
) -> list[Job]:
    """A job a sample.

    Raises:
        SettingsError: the preprocessing asks for images that a source does not have.
    """
    from radfuse.serving import preprocess

    wanted = preprocess.roles(spec)
    # A kind of preprocessing may be another package's, such as a modality's own.
    made_by = _code(code.package_of(type(preprocess.kind_of(spec)).__module__))
    sources = sources_by_name(params.sources, places.root, params.origin)
    jobs = []
    for sample_id, name in zip(samples[SAMPLE], samples["source"], strict=True):
        source, files = _known(sources, name, params), images[sample_id]
        _check_roles(files, wanted, name, modality)
        conventions = source.conventions(modality)
        recipe = _recipe(files, spec, conventions, made_by)
        jobs.append(
            Job(
                sample_id=sample_id,
                recipe=recipe,
                spec=spec,
                images={role: files.path(role) for role in wanted},
                mask=files.root / files.files[MASK][0] if MASK in files.files else None,
                conventions=conventions,
                point_mm=files.point_mm,
                folder=places.arrays(modality),
                before=journal.find(sample_id, recipe),
            )
        )
    return jobs


def _known(sources: Mapping[str, Source], name: str, params: Params) -> Source:
    if name not in sources:
        raise MissingStage(
            f"the cohort has samples of the source {name}, which is not in {params.origin}; run `radfuse "
            "cohort` again."
        )
    return sources[name]


def _check_roles(files: Images, wanted: Sequence[str], source: str, modality: str) -> None:
    missing = [role for role in wanted if role not in files.files]
    if missing:
        raise SettingsError(
            f"prepare.{modality} asks for images called {', '.join(wanted)}, and those of the source "
            f"{source} are called {', '.join(files.roles)}; make the names match, in prepare.{modality} or "
            "in the source."
        )


def _recipe(
    files: Images, spec: Mapping[str, Any], conventions: Sequence[Mapping[int, int]], made_by: str
) -> str:
    """Digest of everything that a sample's arrays are made from; of files, their sizes and times."""
    found = [
        (role, [_size_and_time(files.root / name) for name in names])
        for role, names in sorted(files.files.items())
    ]
    classes = [sorted(convention.items()) for convention in conventions]
    return digest([spec, classes, files.point_mm, found, made_by])


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@cache
def _code(kind: str) -> str:
    """Digest of the code that reads and prepares images: arrays of an older one are made anew.

    Args:
        kind: the package with the kind of preprocessing.
    """
    return digest(code.digests(*code.DECODING, kind))
