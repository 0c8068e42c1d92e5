"""A prepared modality on disk, as `radfuse prepare` leaves it, with arrays of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from radfuse.engine.digests import file_digest
from radfuse.engine.places import Places
from radfuse.engine.prepared import Prepared

SPLIT_DIGEST = "5" * 64
PREPARED_DIGEST = "a" * 64
LEARNT_DIGEST = "b" * 64
SPACING = ("spacing_mm_d", "spacing_mm_h", "spacing_mm_w")


def prepared_folder(
    root: Path,
    modality: str,
    spec: Mapping[str, Any],
    arrays: Mapping[str, Sequence[np.ndarray[Any, Any]]],
    labels: Mapping[str, Sequence[float]],
    classes: Mapping[int, str] | None = None,
) -> Prepared:
    """Write arrays by split; sample ids are made up and in the order given, labels in the same order."""
    places = Places(root)
    places.arrays(modality).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for split, these in arrays.items():
        for array in these:
            sample = f"i{len(rows):012x}"
            path = places.arrays(modality) / f"{sample}.npy"
            np.save(path, array)
            one = {f"label:{name}": values[len(rows)] for name, values in labels.items()}
            ids = {"sample_id": sample, "patient_id": f"p{len(rows):012x}", "study_id": f"s{len(rows):012x}"}
            files = {"sha256": file_digest(path), "mask_sha256": "", **dict.fromkeys(SPACING, 1.0)}
            rows.append({**ids, "modality": modality, "split": split, **one, **files})
    pd.DataFrame(rows).to_parquet(places.manifest(modality), index=False)
    stamp = {
        "digest": PREPARED_DIGEST,
        "learnt_digest": LEARNT_DIGEST,
        "spec": dict(spec),
        "labels": list(labels),
        "classes": {str(index): name for index, name in (classes or {}).items()},
        "counts": {},
        "skipped": 0,
        "split_digest": SPLIT_DIGEST,
    }
    places.manifest_stamp(modality).write_text(json.dumps(stamp))
    return Prepared(places, modality)
