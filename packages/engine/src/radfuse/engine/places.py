"""Where everything of a pipeline lies: paths relative to the folder of params.yaml."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from radfuse.engine.errors import MissingStage

WORK_ROOT = "RADFUSE_WORK_ROOT"
"""Environment variable that moves the work folders, for instance to a scratch disk."""


@dataclass(frozen=True)
class Places:
    """The folders and files of one pipeline.

    Attributes:
        root: the folder of params.yaml.
    """

    root: Path

    @classmethod
    def of(cls, params: Path) -> Places:
        """The places of the pipeline that a params.yaml describes."""
        return cls(params.parent)

    @property
    def data(self) -> Path:
        """Everything that is made from, or is, patients' data."""
        return self.root / "data"

    @property
    def cohort_folder(self) -> Path:
        """Where the cohort stage writes."""
        return self.data / "cohort"

    @property
    def cohort(self) -> Path:
        """One row a sample."""
        return self.cohort_folder / "cohort.parquet"

    @property
    def patients(self) -> Path:
        """One row a patient."""
        return self.cohort_folder / "patients.parquet"

    @property
    def splits(self) -> Path:
        """Digest, seed, shares and counts of the split."""
        return self.cohort_folder / "splits.json"

    @property
    def left_out(self) -> Path:
        """Samples that a source lists and that the cohort stage found no usable files of."""
        return self.cohort_folder / "skipped.csv"

    @property
    def private(self) -> Path:
        """The one folder with names and paths; nothing else may hold them."""
        return self.data / "private"

    @property
    def identity(self) -> Path:
        """Pseudonymous ids to paths and original ids."""
        return self.private / "identity.parquet"

    def prepared(self, modality: str) -> Path:
        """Where the prepare stage writes the arrays of a modality, and what describes them."""
        return self.data / "prepared" / modality

    def arrays(self, modality: str) -> Path:
        """One ``.npy`` a sample, and one ``.mask.npy`` where it has a segmentation."""
        return self.prepared(modality) / "arrays"

    def manifest(self, modality: str) -> Path:
        """One row a prepared sample."""
        return self.prepared(modality) / "manifest.parquet"

    def manifest_stamp(self, modality: str) -> Path:
        """Digest, preprocessing and counts of the prepared samples."""
        return self.prepared(modality) / "manifest.json"

    def learnt(self, modality: str) -> Path:
        """Digest of what training and validation see alone: the training stage depends on it."""
        return self.prepared(modality) / "learnt.json"

    def skipped(self, modality: str) -> Path:
        """Samples that could not be read, each with its reason."""
        return self.prepared(modality) / "skipped.csv"

    @property
    def predictions_folder(self) -> Path:
        """Where the prediction tables lie."""
        return self.data / "predictions"

    def predictions(self, modality: str) -> Path:
        """The prediction table of a modality, or of ``ensemble``."""
        return self.predictions_folder / f"{modality}.parquet"

    def calibration(self, modality: str) -> Path:
        """Temperatures and thresholds of a modality."""
        return self.predictions_folder / f"{modality}.calibration.json"

    @property
    def saved_models_folder(self) -> Path:
        """Published models of all modalities."""
        return self.root / "saved_models"

    def saved_models(self, modality: str) -> Path:
        """Published models of a modality, or of ``ensemble``."""
        return self.saved_models_folder / modality

    @property
    def exports(self) -> Path:
        """Exported models with their cards."""
        return self.saved_models_folder / "exports"

    @property
    def reports(self) -> Path:
        """Where the evaluation writes."""
        return self.root / "reports"

    @property
    def metrics(self) -> Path:
        """The figures that ``dvc metrics`` shows."""
        return self.reports / "metrics.json"

    def report(self, name: str) -> Path:
        """The figures of a modality, or of ``ensemble``."""
        return self.reports / f"{name}.json"

    @property
    def figures(self) -> Path:
        """Pictures of the report."""
        return self.reports / "figures"

    @property
    def plots(self) -> Path:
        """Tables that ``dvc plots`` draws."""
        return self.reports / "plots"

    def work(self, modality: str) -> Path:
        """Where the runs of a modality keep their state, one folder a key."""
        # DVC calls a stage in the pipeline's folder, a person from anywhere: both mean the same one.
        return self.root / Path(os.environ.get(WORK_ROOT) or ".work").expanduser() / modality

    @property
    def mlflow_database(self) -> Path:
        """The tracking database."""
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Files of MLflow's runs."""
        return self.root / "mlruns"

    def relative(self, path: Path) -> Path:
        """A path as messages may show it: without what lies above the pipeline's folder."""
        return path.relative_to(self.root) if path.is_relative_to(self.root) else Path(path.name)


def require(path: Path, command: str) -> Path:
    """The path itself, if an earlier stage has made it.

    Args:
        path: a file or folder that is needed.
        command: what makes it, as it is typed: ``radfuse cohort``.

    Raises:
        MissingStage: it is not there.
    """
    if not path.exists():
        raise MissingStage(f"expected {path}, which is not there; run `{command}` first.")
    return path
