"""A patient's chart: who it is, what is true, where the files go, and the rows of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from radfuse.phantom import keys, model, people
from radfuse.phantom.people import Study
from radfuse.phantom.settings import Settings
from radfuse.phantom.tables import COLUMNS

Row = dict[str, Any]


class Chart:
    """What the examinations of one patient need and add to.

    Attributes:
        settings: of the cohort.
        folder: that the patient's files are written into; paths in the tables start there.
        truth: what the pictures follow from.
        person: the invented identity.
        rows: of each table by its name.
    """

    def __init__(self, settings: Settings, number: int, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._number = number
        self.truth = model.draw(
            settings.seed, number, incomplete=settings.incomplete, repeats=settings.repeats
        )
        self.person = people.person(settings.seed, number)
        self.rows: dict[str, list[Row]] = {name: [] for name in COLUMNS}

    def rng(self, *purpose: object) -> np.random.Generator:
        """This patient's random numbers for a purpose."""
        return keys.stream(self.settings.seed, self._number, *purpose)

    def studies(self, modality: str) -> list[Study]:
        """The patient's examinations of a modality."""
        count = self.truth.studies[modality]
        return people.studies(self.settings.seed, self._number, modality, count)

    def place(self, name: str) -> Path:
        """The path of a file or folder to be written; the folder around it exists then."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def ids(self, study: Study) -> Row:
        """The columns that name a study."""
        return {
            "original_patient_id": self.person.patient_id,
            "accession_number": study.accession_number,
        }

    def add_patient(self, first_day: date) -> None:
        """Add the patient's own row."""
        person = self.person
        self.rows["patients"].append(
            {
                "original_patient_id": person.patient_id,
                "patient_name": person.name,
                "birth_date": person.birth_date.isoformat(),
                "sex": person.sex,
                "age_years": person.age_years(first_day),
                "site": person.site,
                **self._diseases(),
            }
        )

    def add_study(self, modality: str, study: Study, path: Path, more: Row, true: Mapping[str, Any]) -> None:
        """Add a study's row to its modality's table and to the truth.

        Args:
            modality: names the table.
            study: the examination.
            path: of its file or folder.
            more: further columns of the table.
            true: further columns of the truth.
        """
        common = {
            "path": path.relative_to(self.folder).as_posix(),
            "study_date": study.day.isoformat(),
            "age_years": self.person.age_years(study.day),
            "sex": self.person.sex,
            "site": self.person.site,
            "scanner_model": study.model,
        }
        self.rows[modality].append({**self.ids(study), **common, **more})
        number = {"patient": self._number, "modality": modality, "repeat": study.repeat}
        expressions = self.truth.expressions[modality].items()
        expressed = {f"expression:{name}": value for name, value in expressions}
        self.rows["truth"].append({**self.ids(study), **number, **self._diseases(), **expressed, **true})

    def _diseases(self) -> Row:
        return {f"disease:{name}": value for name, value in self.truth.diseases.items()}
