"""The blocks of params.yaml that are the same for every modality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from radfuse.engine.settings import Settings
from radfuse.engine.tables import SPLITS

Share = Annotated[float, Field(ge=0, le=1)]


class ModalityBlocks(Settings):
    """A block with keys of its own and one block for each modality, which the modality's package checks."""

    model_config = ConfigDict(extra="allow")

    def of(self, modality: str) -> dict[str, Any]:
        """What params.yaml says for one modality; empty when it says nothing."""
        return dict((self.model_extra or {}).get(modality) or {})

    @property
    def named(self) -> tuple[str, ...]:
        """Modalities that params.yaml has a block for."""
        return tuple(self.model_extra or ())


class Fractions(Settings):
    """Shares of the patients in each split; they add up to one."""

    train: Share = 0.6
    val: Share = 0.1
    calibration: Share = 0.15
    test: Share = 0.15

    def items(self) -> list[tuple[str, float]]:
        """Splits and shares, in the order in which the hash is cut."""
        return [(name, getattr(self, name)) for name in SPLITS]


def _adds_up_to_one(fractions: Fractions) -> Fractions:
    total = sum(share for _, share in fractions.items())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"expected shares that add up to 1, got {total:g}")
    return fractions


class MinimumPatients(Settings):
    """Fewest patients that each split must have, in each modality."""

    train: NonNegativeInt = 1
    val: NonNegativeInt = 1
    calibration: NonNegativeInt = 0
    test: NonNegativeInt = 1


class SplitSettings(Settings):
    """How patients are divided.

    Attributes:
        seed: another one deals all patients anew.
        fractions: shares of the splits.
        lock: a CSV (patient_id, split) that fixes the split of the patients in it, relative to params.yaml;
            list it among the deps of dvc.yaml's stage cohort, so that its content is followed.
        minimum_patients: fewer are an error.
        minimum_positives: fewest patients with a label, in each split; 0 for no check.
    """

    seed: int = 0
    fractions: Annotated[Fractions, AfterValidator(_adds_up_to_one)] = Fractions()
    lock: Path | None = None
    minimum_patients: MinimumPatients = MinimumPatients()
    minimum_positives: NonNegativeInt = 1


class PrivacySettings(Settings):
    """Who may see what.

    Attributes:
        key_file: the key that turns the ids of private sources into pseudonyms; made on first use.
        push_patient_tables: allow dvc.yaml to let ``dvc push`` send tables with rows about patients.
    """

    key_file: Path = Path("~/.config/radfuse/key")
    push_patient_tables: bool = False


class PrepareBlock(ModalityBlocks):
    """How files become arrays.

    Attributes:
        max_skipped_fraction: the stage fails when a larger share of the samples cannot be read.
        workers: processes at work; 0 for one a core.
    """

    max_skipped_fraction: Share = 0.05
    workers: NonNegativeInt = 0


class TrainBlock(ModalityBlocks):
    """How trainings run; of these ``deterministic``, ``device`` and ``precision`` can change a result.

    ``on_nonfinite: skip`` can, too, once a loss is no number.

    Attributes:
        deterministic: only algorithms that give the same bits every time; slower on a GPU.
        on_nonfinite: what to do when the loss is NaN or infinite.
        save_every_steps: extra saves within an epoch; 0 for none.
        save_every_minutes: the same by time; 0 for none.
        workers: processes that load samples; 0 loads in the training process.
        device: where it runs; ``auto`` takes a GPU when there is one.
        precision: ``auto`` takes bf16 where the machine has it.
        progress: a bar on a terminal, plain lines elsewhere, unless told otherwise.
        mlflow: write a run.
    """

    deterministic: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    save_every_steps: NonNegativeInt = 0
    save_every_minutes: Annotated[float, Field(ge=0)] = 10.0
    workers: NonNegativeInt = 0
    device: str = "auto"
    precision: Annotated[Literal["auto", "32", "bf16"], BeforeValidator(str)] = "auto"
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    mlflow: bool = True


class PredictSettings(Settings):
    """How prediction tables are made; ``device`` can change last digits, ``workers`` nothing.

    Attributes:
        workers: processes that load samples.
        device: where it runs; ``auto`` takes a GPU when there is one.
    """

    workers: NonNegativeInt = 0
    device: str = "auto"


class EvaluateSettings(Settings):
    """What the report shows.

    Attributes:
        bootstrap: resamples of the patients behind each interval.
        confidence: of the intervals.
        subgroups: columns of the cohort that get tables of their own.
    """

    bootstrap: PositiveInt = 1000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    subgroups: tuple[str, ...] = ("sex", "age", "view", "scanner_model", "site")


class ExportSettings(Settings):
    """What is exported, and how exactly it must answer.

    Attributes:
        formats: ``onnx`` first; it is what `radfuse.serving` loads. A format that is left out is to be taken
            out of the outs of dvc.yaml's stage export, too, as nobody writes it.
        tolerance: largest difference from the checkpoint's own output.
        samples: prepared samples that the difference is measured on.
    """

    formats: tuple[Literal["onnx", "torchscript"], ...] = ("onnx", "torchscript")
    tolerance: PositiveFloat = 1e-4
    samples: PositiveInt = 4
