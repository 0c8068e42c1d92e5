"""ChestX-ray14 as the NIH Clinical Center publishes it.

Source:
    Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks, CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from radfuse.engine.errors import SourceError, did_you_mean
from radfuse.engine.sources import csv_file
from radfuse.engine.sources.attributes import age_years, sex, view
from radfuse.engine.sources.csv_file import Row
from radfuse.engine.sources.source import DEVELOPMENT, Attributes, LeftOut, Record, Source, SourceSettings

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
"""The 14 findings, in official spelling and order."""
_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"test_list.txt": "test", "train_val_list.txt": DEVELOPMENT}
_IMAGE, _LABELS, _VISIT, _PATIENT = "Image Index", "Finding Labels", "Follow-up #", "Patient ID"
_AGE, _SEX, _VIEW = "Patient Age", "Patient Gender", "View Position"
_NOTHING = "No Finding"


class NihSettings(SourceSettings):
    """Options of ChestX-ray14.

    Attributes:
        csv: the official table; by default whichever version of it is there.
        official: patients of ``test_list.txt`` are the test split, and the others are split by hash.
    """

    name: str = "nih_chestxray14"
    public: bool = True
    csv: str | None = None
    official: bool = False


class NihChestXray14Source(Source):
    """Frontal radiographs as PNG, in ``images``, in ``images_001`` to ``images_012``, or in the root."""

    settings_class: ClassVar[type[SourceSettings]] = NihSettings

    def scan(self) -> Iterator[Record | LeftOut]:
        columns = (_IMAGE, _LABELS, _VISIT, _PATIENT, _AGE, _SEX, _VIEW)
        table = csv_file.read(self.root, self._table_name(), self.name, columns)
        images = self._images()
        splits = self._official() if self.settings.official else {}
        for row in table.rows:
            name = row[_IMAGE]
            if name not in images:
                yield LeftOut(
                    name,
                    "xray",
                    "an image that the table lists is missing",
                    f"{row.place}: {name}",
                    row[_PATIENT],
                )
                continue
            yield Record(
                patient=row[_PATIENT],
                study=row[_VISIT],
                sample=name,
                modality="xray",
                files={"image": (images[name],)},
                labels=_labels(row),
                attributes=Attributes(age_years(row[_AGE]), sex(row[_SEX]), view(row[_VIEW])),
                split=splits.get(name),
            )

    def _table_name(self) -> str:
        if self.settings.csv:
            return str(self.settings.csv)
        return next((name for name in _TABLES if (self.root / name).is_file()), _TABLES[0])

    def _images(self) -> dict[str, str]:
        """Paths relative to the root by file name."""
        folders = [self.root / "images", *sorted(self.root.glob("images_*"))]
        folders += [folder / "images" for folder in folders[1:]]
        found: dict[str, str] = {}
        for folder in [*folders, self.root]:
            if folder.is_dir():
                for path in folder.glob("*.png"):
                    found.setdefault(path.name, str(path.relative_to(self.root)))
        return found

    def _official(self) -> dict[str, str]:
        """What the official lists say, by image."""
        splits: dict[str, str] = {}
        for name, split in _LISTS.items():
            path = self.root / name
            if not path.is_file():
                raise SourceError(
                    f"source {self.name}: expected {name} for `official: true`, and there is none; "
                    "add the publisher's list, or set `official: false`."
                )
            splits.update(dict.fromkeys(path.read_text(encoding="utf-8").split(), split))
        return splits


def _labels(row: Row) -> dict[str, float]:
    names = {name.strip() for name in row[_LABELS].split("|")} - {_NOTHING, ""}
    for name in sorted(names - set(FINDINGS)):
        raise SourceError(
            f"{row.place}: expected findings such as 'Mass|Nodule' in {_LABELS!r}, got {name!r}"
            f"{did_you_mean(name, FINDINGS)}"
        )
    return {name: float(name in names) for name in FINDINGS}
