"""What every kind of source has in common, and the records that it gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from radfuse.engine.errors import SettingsError
from radfuse.engine.settings import Settings

DEVELOPMENT = "development"
"""A split that is any but ``test``, as of a patient in the ``train_val`` list of an official division."""


@dataclass(frozen=True)
class Attributes:
    """What subgroup tables and reports need of a sample; nothing here names a person.

    Attributes:
        age_years: at the time of the study; NaN where it is not known.
        sex: ``F``, ``M``, ``O``, or empty.
        view: of a radiograph: ``PA``, ``AP``, ``LL``, or empty.
        scanner_model: ManufacturerModelName (0008,1090), or empty.
        site: where it was made, as the source says; empty by default.
    """

    age_years: float = math.nan
    sex: str = ""
    view: str = ""
    scanner_model: str = ""
    site: str = ""


@dataclass(frozen=True)
class Record:
    """One image, nodule or volume, under its original names.

    Attributes:
        patient: original patient id.
        study: original study id; unique within the patient.
        sample: what tells the sample from every other one of its source and modality.
        modality: as installed: ``xray``.
        files: paths relative to the source's root by role: ``image``, or a sequence's name, and ``mask``. A
            DICOM series has several.
        point_mm: (x, y, z) of a nodule in patient coordinates, LPS.
        labels: 0, 1 or NaN by name.
        attributes: for subgroups.
        split: where the source itself says to put the patient: a split, or `DEVELOPMENT`.
        references: scores that need no model, or NaN, by name; a model is compared with them.
    """

    patient: str
    study: str
    sample: str
    modality: str
    files: Mapping[str, tuple[str, ...]]
    point_mm: tuple[float, float, float] | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    attributes: Attributes = Attributes()
    split: str | None = None
    references: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A sample that the source lists and that cannot be had.

    Attributes:
        sample: as in `Record`.
        modality: as in `Record`.
        reason: without names and paths, as it stands in ``skipped.csv``.
        where: the file or line, relative to the source's root; for the terminal and the private table.
        patient: original id, where it is known.
    """

    sample: str
    modality: str
    reason: str
    where: str
    patient: str = ""


def _plain_name(name: str) -> str:
    if not name or not all(part.isalnum() for part in name.replace("-", "_").split("_") if part):
        raise ValueError("expected a name of letters, digits, '_' and '-'")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


class SourceSettings(Settings):
    """Options that every kind of source has.

    Attributes:
        kind: of source.
        root: its folder; a relative one begins at the folder of params.yaml.
        name: tells sources apart in tables; part of what ids are made from. By default the kind.
        public: anyone may have the data, so ids are made with the fixed key and are the same for everyone.
        patient_namespace: sources in which one number means one patient name the same; by default each its
            own. Patients of such sources are split together, and their modalities can be combined.
    """

    kind: str
    root: Path
    name: Name = ""
    public: bool = False
    patient_namespace: Name | None = None


class Source(ABC):
    """A folder of images in the layout of its publisher.

    Attributes:
        settings: its options.
        root: its folder.
    """

    settings_class: ClassVar[type[SourceSettings]] = SourceSettings
    missing_advice: ClassVar[str] = "mount or download it, or correct `root` of the source."
    """What to do where the folder is missing."""

    def __init__(self, settings: Any, root: Path) -> None:
        self.settings = settings
        self.root = root

    @property
    def name(self) -> str:
        """In tables."""
        return str(self.settings.name or self.settings.kind)

    @property
    def public(self) -> bool:
        """Whether ids are made with the fixed key."""
        return bool(self.settings.public)

    @property
    def namespace(self) -> str:
        """Within which a patient's number means one patient."""
        return str(self.settings.patient_namespace or self.name)

    @abstractmethod
    def scan(self) -> Iterator[Record | LeftOut]:
        """Every sample that the source lists. No pixel is decoded; headers of DICOM files may be read.

        Raises:
            SourceError: the layout is not that of the kind.
        """

    def diseases(self) -> Mapping[str, Mapping[str, float]]:
        """Patient-level diseases, 0, 1 or NaN, by original patient id; none by default."""
        return {}

    def classes(self, modality: str) -> Mapping[int, str]:
        """Names of the classes of segmentations by index, from 1; empty where the source names none."""
        return {}

    def conventions(self, modality: str) -> tuple[Mapping[int, int], ...]:
        """Ways in which files write classes: label in the file to class index, each with the background.

        A segmentation fits the first convention that has all labels in it. Empty: labels are indices.
        """
        return ()


def check_modality(name: str, source: str) -> str:
    """The name of a modality, if it is installed.

    Raises:
        SettingsError: it is not.
    """
    from radfuse.engine.config import installed_modalities
    from radfuse.engine.errors import did_you_mean

    installed = installed_modalities()
    if name not in installed:
        raise SettingsError(
            f"source {source}: no modality {name!r} is installed{did_you_mean(name, installed)}"
        )
    return name
