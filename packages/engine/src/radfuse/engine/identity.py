"""The private table: which file and which patient a pseudonymous id stands for.

It is the only output with names, original ids and paths. Its folder is open to its owner alone, git ignores
it, and pipelines neither cache nor push it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckptcore import durable
from radfuse.engine.places import Places, require
from radfuse.engine.tables import PATIENT, SAMPLE, STUDY

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    SAMPLE, PATIENT, STUDY, "source", "source_root", "files",
    "original_patient_id", "original_study_id", "point_mm",
)  # fmt: skip
_METADATA = b"radfuse"


@dataclass(frozen=True)
class Images:
    """The files behind one sample.

    Attributes:
        root: the folder of the source.
        files: paths below it by role: ``image``, a sequence's name, ``mask``. One path is a file, several are
            the slices of a series.
        point_mm: (x, y, z) of a nodule in patient coordinates, LPS.
    """

    root: Path
    files: Mapping[str, tuple[str, ...]]
    point_mm: tuple[float, float, float] | None

    def path(self, role: str) -> Path | list[Path]:
        """The file of a role, or the files of its series."""
        paths = [self.root / name for name in self.files[role]]
        return paths[0] if len(paths) == 1 else paths

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role but the segmentation's."""
        return tuple(role for role in self.files if role != "mask")


def write(places: Places, rows: pd.DataFrame, fingerprints: Mapping[str, str]) -> None:
    """Replace the private table, whole or not at all.

    Args:
        places: of the pipeline.
        rows: with `COLUMNS`; ``files`` and ``point_mm`` as JSON text.
        fingerprints: of each source's key.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(rows[list(COLUMNS)], preserve_index=False)
    stamp = json.dumps({"key_fingerprints": dict(fingerprints)}, sort_keys=True).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA: stamp})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    durable.make_folder(places.private)
    os.chmod(places.private, 0o700)
    with durable.staged(places.identity, buffer.tell(), mode=0o600) as (fd, temporary):
        # Before the first byte: the file must not be readable even while it is written.
        os.fchmod(fd, 0o600)
        durable.write_all(fd, buffer.getbuffer())
    durable.publish(temporary, [places.identity])


def read(places: Places) -> pd.DataFrame:
    """The private table, one row a sample.

    Raises:
        MissingStage: `radfuse cohort` has not made it.
    """
    import pandas as pd

    table = pd.read_parquet(require(places.identity, "radfuse cohort")).astype(object)
    return table.where(table.notna(), None)


def fingerprints(places: Places) -> dict[str, str]:
    """Fingerprints of the keys by source, as the private table was made; empty where there is none."""
    import pyarrow.parquet as pq

    if not places.identity.exists():
        return {}
    stamp = (pq.read_schema(places.identity).metadata or {}).get(_METADATA, b"{}")
    return dict(json.loads(stamp).get("key_fingerprints", {}))


def images(places: Places, row: Mapping[str, str | None]) -> Images:
    """The files of one row of the private table.

    Args:
        places: of the pipeline; a relative ``source_root`` begins there.
        row: with ``source_root``, ``files`` and ``point_mm``.
    """
    files = {role: tuple(names) for role, names in json.loads(row["files"] or "{}").items()}
    point = json.loads(row["point_mm"]) if row["point_mm"] else None
    return Images(places.root / (row["source_root"] or ""), files, None if point is None else tuple(point))


def who_is(places: Places, ids: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows behind pseudonymous ids.

    Args:
        places: of the pipeline.
        ids: of patients, studies or samples, in any mixture.

    Returns:
        The rows of the private table, and the ids that nobody has.
    """
    table = read(places)
    hit = table[[SAMPLE, PATIENT, STUDY]].isin(list(ids))
    found = set(table[[SAMPLE, PATIENT, STUDY]].to_numpy()[hit.to_numpy()])
    return table[hit.any(axis=1)], [name for name in ids if name not in found]
