"""Prepared arrays of a modality, as training and prediction read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ckptcore.canonical import canonical_json
from radfuse.engine.digests import file_digest
from radfuse.engine.errors import DamagedArray
from radfuse.engine.places import Places, require
from radfuse.engine.tables import LABEL, PATIENT, SAMPLE, SPLIT

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

ARRAY_SUFFIX = ".npy"
MASK_SUFFIX = ".mask.npy"
SPACING = ("spacing_mm_d", "spacing_mm_h", "spacing_mm_w")
"""Columns with millimetres between voxels along (D, H, W)."""
LEARNT = ("train", "val")
"""Splits that decide what a network becomes."""


@dataclass(frozen=True)
class Prepared:
    """What `radfuse prepare` made of one modality. It may be sent to another process; nothing is held open.

    A file is compared with the manifest's SHA-256 before it is read for the first time, once in each process.
    Where the manifest has none for it (its column is missing or empty), nothing can be compared.

    Attributes:
        places: of the pipeline.
        modality: its name.
    """

    places: Places
    modality: str

    def rows(self) -> pd.DataFrame:
        """One row a sample, sorted by sample id.

        The columns are those of the cohort, but for references, then ``sha256`` and ``mask_sha256`` of the
        files ("" for none) and, for volumes, ``spacing_mm_d``, ``spacing_mm_h``, ``spacing_mm_w`` of the
        prepared array (NaN otherwise).

        Raises:
            MissingStage: the modality has not been prepared.
        """
        import pandas as pd

        return pd.read_parquet(require(self.places.manifest(self.modality), self._command))

    def array(self, sample_id: str) -> NDArray[Any]:
        """The array of a sample, mapped read-only from its file: only what is touched takes memory.

        Raises:
            DamagedArray: it is missing, cut, or not the one that was prepared.
        """
        mapped: NDArray[Any] = self._mapped(sample_id, ARRAY_SUFFIX)
        return mapped

    def mask(self, sample_id: str) -> NDArray[np.uint8]:
        """The segmentation of a sample, mapped read-only: (D, H, W) class indices.

        Raises:
            DamagedArray: it is missing, cut, or not the one that was prepared.
        """
        mapped: NDArray[np.uint8] = self._mapped(sample_id, MASK_SUFFIX)
        return mapped

    @property
    def stamp(self) -> Mapping[str, Any]:
        """What ``manifest.json`` says.

        Its keys are ``digest``, ``learnt_digest``, ``spec``, ``labels``, ``classes``, ``counts``,
        ``split_digest``, ``skipped``, ``twins_across_splits``.

        Raises:
            MissingStage: the modality has not been prepared.
        """
        return self._stamp

    @property
    def digest(self) -> str:
        """SHA-256 over every array, label, patient and split and the preprocessing."""
        return str(self._stamp["digest"])

    @property
    def learnt_digest(self) -> str:
        """SHA-256 as `digest`, of training and validation alone: all that decides a trained network.

        New test patients, or patients of other modalities, leave it as it is.
        """
        return str(self._stamp["learnt_digest"])

    @property
    def split_digest(self) -> str:
        """Digest of the split that the rows have."""
        return str(self._stamp["split_digest"])

    @property
    def spec(self) -> dict[str, Any]:
        """The preprocessing, as `radfuse.serving.preprocess` takes it."""
        return dict(self._stamp["spec"])

    @property
    def labels(self) -> list[str]:
        """Names of the labels that the rows have, in the cohort's order."""
        return list(self._stamp["labels"])

    @property
    def classes(self) -> dict[int, str]:
        """Names of the classes that masks have, by index; empty where there are no masks."""
        return {int(index): name for index, name in self._stamp["classes"].items()}

    def samples(self, split: str) -> list[str]:
        """Sample ids of a split, sorted."""
        rows = self.rows()
        return [str(name) for name in rows.loc[rows["split"] == split, SAMPLE]]

    @cached_property
    def _stamp(self) -> dict[str, Any]:
        path = require(self.places.manifest_stamp(self.modality), self._command)
        return dict(json.loads(path.read_text(encoding="utf-8")))

    @cached_property
    def _digests(self) -> dict[str, str]:
        """SHA-256 by file name, of all files that the manifest has one for."""
        rows = self.rows()
        columns = {"sha256": ARRAY_SUFFIX, "mask_sha256": MASK_SUFFIX}
        return {
            f"{sample}{suffix}": digest
            for column, suffix in columns.items()
            if column in rows
            for sample, digest in zip(rows[SAMPLE], rows[column], strict=True)
            if digest
        }

    @cached_property
    def _checked(self) -> set[str]:
        """Names of the files that have been compared."""
        return set()

    def _mapped(self, sample_id: str, suffix: str) -> Any:
        """Raises `DamagedArray` where there is no whole array."""
        import numpy as np

        path = self.places.arrays(self.modality) / f"{sample_id}{suffix}"
        digest = self._digests.get(path.name)
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if digest is not None and path.name not in self._checked:
                if file_digest(path) != digest:
                    raise ValueError("its bytes are not those that were prepared")
                self._checked.add(path.name)
            return mapped
        # What NumPy raises for a file that was cut depends on where.
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            reason = "it is missing" if isinstance(error, FileNotFoundError) else f"it is damaged: {error}"
            raise DamagedArray(
                f"the array {path.name} of the sample {sample_id} cannot be read: {reason}. "
                f"`{self._command}` makes anew what is missing or damaged."
            ) from error

    @property
    def _command(self) -> str:
        return f"radfuse prepare {self.modality}"


def digest_of(
    rows: pd.DataFrame, spec: Mapping[str, Any], labels: Sequence[str], classes: Mapping[Any, str]
) -> str:
    """SHA-256 over each sample's arrays, labels, patient and split, and over preprocessing and classes.

    Args:
        rows: with the columns sample_id, patient_id, sha256, mask_sha256, split, and those of the labels.
        spec: the preprocessing.
        labels: their names.
        classes: names of the classes of masks, by index.
    """
    named = [LABEL + name for name in labels]
    lines = [
        [
            *(str(row[name]) for name in (SAMPLE, PATIENT, "sha256", "mask_sha256", SPLIT)),
            *(repr(row[name]) for name in named),
        ]
        for row in rows.to_dict("records")
    ]
    about = [dict(spec), list(labels), {str(index): name for index, name in classes.items()}]
    return hashlib.sha256(canonical_json([about, lines])).hexdigest()
