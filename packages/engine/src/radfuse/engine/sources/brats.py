"""Brain tumours in the layout of the BraTS challenges: one folder a case, a file a sequence, a segmentation.

Source:
    Menze et al., The Multimodal Brain Tumor Image Segmentation Benchmark, IEEE TMI 2015; Bakas et al. 2017.
    Names and labels changed in 2023: ``t1c``, ``t1n``, ``t2w``, ``t2f``, and 3 instead of 4 for enhancing
    tumour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from radfuse.engine.errors import SourceError
from radfuse.engine.sources.source import LeftOut, Record, Source, SourceSettings, check_modality

MODALITY = "mri"
CLASSES = {1: "core", 2: "oedema", 3: "enhancing"}
"""Classes of a prepared segmentation: necrotic and solid core, oedema, enhancing tumour."""
CONVENTIONS = ({0: 0, 1: 1, 2: 2, 4: 3}, {0: 0, 1: 1, 2: 2, 3: 3})
_ENDINGS = {
    "t1": ("_t1", "-t1n"),
    "t1ce": ("_t1ce", "-t1c"),
    "t2": ("_t2", "-t2w"),
    "flair": ("_flair", "-t2f"),
    "mask": ("_seg", "-seg"),
}
_SUFFIXES = (".nii.gz", ".nii")
_PATIENT = re.compile(r"(?P<patient>(?:Brats1[789]_.+|BraTS-[A-Za-z]+-\d+))[_-]\d+")
"""Cases whose name ends in the number of the visit: Brats18_2013_11_1, BraTS-GLI-00000-000."""


class BratsSettings(SourceSettings):
    """Options of a folder in BraTS layout.

    Attributes:
        modality: that the cases belong to.
        patient_pattern: a regular expression with a group ``patient`` that finds the patient in a case's
            name; by default the names of the challenges are understood, and any other case is a patient of
            its own.
    """

    name: str = "brats"
    modality: str = MODALITY
    patient_pattern: str | None = None

    @field_validator("patient_pattern")
    @classmethod
    def _has_a_patient(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern or "(?P<patient>)").groupindex
        except re.error as error:
            raise ValueError(f"expected a regular expression: {error}") from None
        if "patient" not in groups:
            raise ValueError("expected a group (?P<patient>...) in the regular expression")
        return pattern


class BratsSource(Source):
    """Case folders, in the root or in folders of it such as ``HGG`` and ``LGG``."""

    settings_class: ClassVar[type[SourceSettings]] = BratsSettings

    def scan(self) -> Iterator[Record | LeftOut]:
        modality = check_modality(self.settings.modality, self.name)
        cases = list(_case_folders(self.root))
        if not cases:
            raise SourceError(
                f"source {self.name}: expected folders with files such as CASE/CASE_flair.nii.gz, and there "
                "are none; correct `root` of the source."
            )
        for folder in cases:
            path = str(folder.relative_to(self.root))
            patient = self._patient(folder.name)
            files, missing = files_of(self.root, path, folder.name)
            if missing:
                names = ["segmentation" if role == "mask" else f"{role} sequence" for role in missing]
                yield LeftOut(path, modality, f"the case has no {', no '.join(names)}", path, patient)
            else:
                yield Record(patient, folder.name, path, modality, files)

    def classes(self, modality: str) -> Mapping[int, str]:
        return CLASSES

    def conventions(self, modality: str) -> tuple[Mapping[int, int], ...]:
        return CONVENTIONS

    def _patient(self, case: str) -> str:
        pattern = self.settings.patient_pattern
        if pattern is None:
            found = _PATIENT.fullmatch(case)
            return found["patient"] if found else case
        found = re.search(pattern, case)
        if found is None:
            raise SourceError(
                f"source {self.name}: patient_pattern {pattern!r} does not match the case {case}; "
                "make it match every case's name."
            )
        return str(found["patient"])


def files_of(root: Path, folder: str, case: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The files of a case by role, and the roles that have none.

    Args:
        root: of the source.
        folder: of the case, relative to it.
        case: what its file names begin with.
    """
    files: dict[str, tuple[str, ...]] = {}
    for role, endings in _ENDINGS.items():
        names = (f"{folder}/{case}{ending}{suffix}" for ending in endings for suffix in _SUFFIXES)
        found = next((name for name in names if (root / name).is_file()), None)
        if found is not None:
            files[role] = (found,)
    return files, [role for role in _ENDINGS if role not in files]


def _case_folders(root: Path) -> Iterator[Path]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if files_of(root, folder.name, folder.name)[0]:
            yield folder
        else:
            inside = sorted(path for path in folder.iterdir() if path.is_dir())
            yield from (path for path in inside if files_of(folder, path.name, path.name)[0])
