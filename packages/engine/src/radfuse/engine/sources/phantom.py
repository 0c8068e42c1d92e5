"""The synthetic cohort that `radfuse phantom` writes; its layout stands in the README of radfuse-phantom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from radfuse.engine.errors import SourceError
from radfuse.engine.sources import brats, csv_file
from radfuse.engine.sources.attributes import age_years, sex
from radfuse.engine.sources.csv_file import Row
from radfuse.engine.sources.nih_chestxray14 import FINDINGS
from radfuse.engine.sources.source import Attributes, LeftOut, Record, Source, SourceSettings
from radfuse.engine.tables import DISEASE

_STUDY = ("original_patient_id", "accession_number")
_ABOUT = ("age_years", "sex", "site", "scanner_model")


class PhantomSettings(SourceSettings):
    """Options of the phantom: none of its own."""

    name: str = "phantom"
    public: bool = True


class PhantomSource(Source):
    """Radiographs, CT series with nodules, and MR cases of invented patients."""

    settings_class: ClassVar[type[SourceSettings]] = PhantomSettings
    missing_advice: ClassVar[str] = "make it with `radfuse phantom --out` and that folder."

    def scan(self) -> Iterator[Record | LeftOut]:
        yield from self._radiographs()
        yield from self._nodules()
        yield from self._cases()

    def diseases(self) -> Mapping[str, Mapping[str, float]]:
        table = csv_file.read(self.root, "patients.csv", self.name, ["original_patient_id"])
        names = [name for name in table.columns if name.startswith(DISEASE)]
        return {
            row["original_patient_id"]: {name.removeprefix(DISEASE): row.label(name) for name in names}
            for row in table.rows
        }

    def classes(self, modality: str) -> Mapping[int, str]:
        return brats.CLASSES if modality == brats.MODALITY else {}

    def conventions(self, modality: str) -> tuple[Mapping[int, int], ...]:
        return brats.CONVENTIONS if modality == brats.MODALITY else ()

    def _radiographs(self) -> Iterator[Record | LeftOut]:
        for row in self._rows("xray/studies.csv", ("path", "view", *FINDINGS)):
            if not (self.root / row["path"]).is_file():
                yield self._absent(row, "xray", row["path"])
                continue
            labels = {name: row.label(name) for name in FINDINGS}
            yield self._record(row, "xray", row["path"], {"image": (row["path"],)}, labels)

    def _nodules(self) -> Iterator[Record | LeftOut]:
        series = {
            tuple(row[name] for name in _STUDY): row for row in self._rows("ct/series.csv", ("path", *_ABOUT))
        }
        slices = {row["path"]: _slices(self.root, row["path"]) for row in series.values()}
        needed = ("nodule", "x_mm", "y_mm", "z_mm", "malignant")
        for nodule in csv_file.read(self.root, "ct/nodules.csv", self.name, (*_STUDY, *needed)).rows:
            row = series.get(tuple(nodule[name] for name in _STUDY))
            if row is None:
                raise SourceError(
                    f"{nodule.place}: the series of this nodule is not in ct/series.csv; make it anew."
                )
            sample = f"{row['path']}#{nodule['nodule']}"
            if not slices[row["path"]]:
                yield self._absent(row, "ct", sample)
                continue
            point = (nodule.number("x_mm"), nodule.number("y_mm"), nodule.number("z_mm"))
            labels = {"malignant": nodule.label("malignant")}
            yield self._record(row, "ct", sample, {"image": slices[row["path"]]}, labels, point)

    def _cases(self) -> Iterator[Record | LeftOut]:
        for row in self._rows("mri/cases.csv", ("case", "path", *_ABOUT)):
            files, missing = brats.files_of(self.root, row["path"], row["case"])
            if missing:
                yield self._absent(row, brats.MODALITY, row["path"])
                continue
            yield self._record(row, brats.MODALITY, row["path"], files, {})

    def _rows(self, name: str, columns: tuple[str, ...]) -> list[Row]:
        return csv_file.read(self.root, name, self.name, (*_STUDY, *columns)).rows

    def _record(
        self,
        row: Row,
        modality: str,
        sample: str,
        files: Mapping[str, tuple[str, ...]],
        labels: Mapping[str, float],
        point_mm: tuple[float, float, float] | None = None,
    ) -> Record:
        about = Attributes(
            age_years=age_years(row["age_years"]),
            sex=sex(row["sex"]),
            view=row.values.get("view", ""),
            scanner_model=row["scanner_model"],
            site=row["site"],
        )
        patient, study = (row[name] for name in _STUDY)
        return Record(patient, study, sample, modality, files, point_mm, labels, about)

    def _absent(self, row: Row, modality: str, sample: str) -> LeftOut:
        return LeftOut(
            sample, modality, "a file that the table lists is missing", row["path"], row[_STUDY[0]]
        )


def _slices(root: Path, folder: str) -> tuple[str, ...]:
    found = (root / folder).glob("*.dcm")
    return tuple(sorted(str(path.relative_to(root)) for path in found))
