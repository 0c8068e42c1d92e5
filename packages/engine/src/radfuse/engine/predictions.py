"""Prediction tables: Parquet with a stamp that says from which model and which split they were made."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptcore import durable
from radfuse.engine.errors import StaleError
from radfuse.engine.places import require

if TYPE_CHECKING:
    import pandas as pd

METADATA = b"radfuse"
"""Key of the stamp in the metadata of the Parquet schema."""


@dataclass(frozen=True)
class Stamp:
    """What a table was made from.

    Attributes:
        modality: whose predictions they are; ``ensemble`` for those of all together.
        model_digest: names the model, whatever file it sits in.
        split_digest: names the split of the patients.
        run_key: names the training.
        labels: of the classification, or regions of the segmentation, in the order of the columns.
        calibration: SHA-256 of the calibration file; "" where nothing is calibrated.
        prepared_digest: names the arrays that were predicted.
        twins_across_splits: how many of all prepared arrays are in more than one split; None where nobody
            counted.
    """

    modality: str
    model_digest: str
    split_digest: str
    run_key: str
    labels: tuple[str, ...]
    calibration: str = ""
    prepared_digest: str = ""
    twins_across_splits: int | None = None


def write(path: Path, frame: pd.DataFrame, stamp: Stamp) -> None:
    """Write a table, whole or not at all.

    Args:
        path: the Parquet file; its folder is made when missing.
        frame: one row a sample; the index is not kept.
        stamp: what it was made from.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    told = json.dumps(asdict(stamp), sort_keys=True).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA: told})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    durable.make_folder(path.parent)
    durable.write_bytes(path, buffer.getvalue())


def read(path: Path, command: str = "radfuse predict-split MODALITY") -> tuple[pd.DataFrame, Stamp]:
    """A table and its stamp.

    Args:
        path: the Parquet file.
        command: what makes it, for the message when it is missing.

    Raises:
        MissingStage: it is not there.
        StaleError: it has no stamp, or one of another form.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(require(path, command))
    return table.to_pandas(), _stamp((table.schema.metadata or {}).get(METADATA), path)


def read_stamp(path: Path, command: str = "radfuse predict-split MODALITY") -> Stamp:
    """The stamp of a table alone; no row is read.

    Raises:
        MissingStage: the table is not there.
        StaleError: it has no stamp, or one of another form.
    """
    import pyarrow.parquet as pq

    return _stamp((pq.read_schema(require(path, command)).metadata or {}).get(METADATA), path)


def _stamp(told: bytes | None, path: Path) -> Stamp:
    try:
        found: dict[str, Any] = json.loads(told or b"null") or {}
        known = {field.name: found[field.name] for field in fields(Stamp) if field.name in found}
        return Stamp(**{**known, "labels": tuple(known["labels"])})
    except (ValueError, KeyError, TypeError) as error:
        raise StaleError(
            f"{path.name} does not say which model it came from; expected a table of "
            "`radfuse predict-split`. Make it again."
        ) from error
