"""Samples from their files to their arrays; runs in a worker process.

An array appears under its name whole or not at all. It is not synced to disk one by one: a restart compares
every array with its digest, and makes anew what a power cut took.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radfuse.engine.digests import file_digest
from radfuse.engine.prepared import ARRAY_SUFFIX, MASK_SUFFIX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from radfuse.serving.images.scans import VolumeReader
    from radfuse.serving.preprocess import Geometry

TEMPORARY = ".unfinished-"


@dataclass(frozen=True)
class Finished:
    """What is known of a sample's arrays; also one line of the journal.

    Attributes:
        sample_id: pseudonym.
        recipe: digest of everything that the arrays were made from.
        sha256: of the array's file.
        mask_sha256: of the segmentation's file; empty where there is none.
        spacing_mm: (d, h, w) of a volume; None for a radiograph.
    """

    sample_id: str
    recipe: str
    sha256: str
    mask_sha256: str = ""
    spacing_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read.

    Attributes:
        sample_id: pseudonym.
        reason: without names and paths.
        path: the file, or the folder of a series, that is at fault, where that is known; for the terminal
            alone.
    """

    sample_id: str
    reason: str
    path: Path | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Job:
    """A sample to be prepared.

    Attributes:
        sample_id: pseudonym.
        recipe: digest of everything that the arrays are made from.
        spec: as `radfuse.serving.preprocess` takes it.
        images: files by role.
        mask: the segmentation's file, where there is one.
        conventions: `Source.conventions`: ways in which files write classes.
        point_mm: of a nodule.
        folder: where the arrays go.
        before: what an earlier run made, if its recipe was the same.
    """

    sample_id: str
    recipe: str
    spec: Mapping[str, Any]
    images: Mapping[str, Path | list[Path]]
    mask: Path | None
    conventions: Sequence[Mapping[int, int]]
    point_mm: tuple[float, float, float] | None
    folder: Path
    before: Finished | None = None


def carry_out(jobs: Sequence[Job]) -> list[Finished | Skipped]:
    """Make the arrays of samples, unless they are there already, byte for byte.

    Args:
        jobs: best of one scan, such as the nodules in it: it is then read once.

    Raises:
        OSError: an array cannot be written.
    """
    from radfuse.serving.preprocess import LastScan

    read = LastScan()
    return [_carry_out(job, read) for job in jobs]


def _carry_out(job: Job, read: VolumeReader) -> Finished | Skipped:
    from radfuse.serving.images.errors import UnreadableImage

    if job.before is not None and _as_they_were(job.folder, job.before):
        return job.before
    try:
        return _decode(job, read)
    except UnreadableImage as error:
        return Skipped(job.sample_id, error.reason, error.path)


def _decode(job: Job, read: VolumeReader) -> Finished:
    from radfuse.serving import preprocess
    from radfuse.serving.images.volume import spacing_of

    made = preprocess.prepare(job.spec, job.images, job.point_mm, read)
    mask_sha256 = ""
    if job.mask is not None and made.geometry is not None:
        mask = _classes(job, made.geometry)
        mask_sha256 = _write(job.folder / f"{job.sample_id}{MASK_SUFFIX}", mask)
    sha256 = _write(job.folder / f"{job.sample_id}{ARRAY_SUFFIX}", made.array)
    spacing = None if made.geometry is None else spacing_of(made.geometry.affine)
    return Finished(job.sample_id, job.recipe, sha256, mask_sha256, spacing)


def _classes(job: Job, geometry: Geometry) -> NDArray[np.uint8]:
    """The segmentation in class indices: by the first convention that has all its labels.

    Raises:
        UnreadableImage: no convention has, or the segmentation lies on another grid than the image.
    """
    import numpy as np

    from radfuse.serving import preprocess
    from radfuse.serving.images.errors import UnreadableImage

    path = job.mask or Path()
    labels = preprocess.prepare_mask(job.spec, path, geometry)
    if not job.conventions:
        return labels
    found = {int(label) for label in np.unique(labels)}
    for convention in job.conventions:
        if found <= set(convention):
            table = np.zeros(256, np.uint8)
            for label, index in convention.items():
                table[label] = index
            return table[labels]
    known = " or ".join(", ".join(map(str, sorted(convention))) for convention in job.conventions)
    raise UnreadableImage(
        path, f"expected a segmentation with the labels {known}, got {', '.join(map(str, sorted(found)))}"
    )


def _as_they_were(folder: Path, before: Finished) -> bool:
    wanted = {ARRAY_SUFFIX: before.sha256}
    if before.mask_sha256:
        wanted[MASK_SUFFIX] = before.mask_sha256
    return all(_digest(folder / f"{before.sample_id}{suffix}") == sha256 for suffix, sha256 in wanted.items())


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except FileNotFoundError:
        return ""


def _write(path: Path, array: NDArray[Any]) -> str:
    """Write an array in the format of NumPy; returns the SHA-256 of the file."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return hashlib.sha256(buffer.getbuffer()).hexdigest()
