"""A CSV of paths and labels: the source for a lab's own data.

A path leads to a PNG, a DICOM file, a folder with the slices of a DICOM series, or a NIfTI file, below the
source's root. What the CSV has no column for is taken from the DICOM header, where there is one. Beside the
slices a folder may hold files of other kinds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from radfuse.engine.errors import SourceError, did_you_mean
from radfuse.engine.sources import csv_file
from radfuse.engine.sources.attributes import age_years, sex, view
from radfuse.engine.sources.csv_file import Row, Table
from radfuse.engine.sources.headers import Header, is_dicom, read_header
from radfuse.engine.sources.source import (
    DEVELOPMENT,
    Attributes,
    LeftOut,
    Record,
    Source,
    SourceSettings,
    check_modality,
)
from radfuse.engine.tables import SPLITS

_log = logging.getLogger(__name__)
_NOT_DICOM = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".nrrd", ".mha", ".npy")
_SLICE = (".dcm", ".dicom", ".ima")
"""Endings of files that are kept for slices even where they are damaged, so that `prepare` says so."""
_CONTENTS = "DICOMDIR"
"""The name of a medium's table of contents, which is DICOM and no image: PS3.10 section 8.6."""
_ABSENT = "a file that the table lists is missing"
_NO_SERIES = "the folder that the table lists holds no DICOM image that can be read"


class TableSettings(SourceSettings):
    """Options of a CSV of paths and labels.

    A column option that is not given means the column of that name, where the CSV has one.

    Attributes:
        modality: that the images belong to.
        csv: the file, relative to the root.
        delimiter: between its fields.
        images: the column with the path of an image; for several sequences, one for each: {t1: t1_path}.
        mask: the column with the path of a segmentation.
        mask_classes: label in the segmentation's files to the name of its class: {1: core, 4: enhancing}.
        labels: columns with 0, 1 or nothing; {label: column} to name them otherwise.
        references: columns with numbers that tell something without a model, such as a nodule's size;
            the report compares the model with each on the same images. {reference: column} to name them
            otherwise.
        diseases: the same as labels, for diseases of the patient.
        point_mm: three columns with x, y, z of a nodule in patient coordinates, mm, LPS.
        split: a column with train, val, calibration, test, or development for any but test.
        patient_id: column; without one, PatientID of the DICOM header.
        study_id: column; without one, StudyInstanceUID of the DICOM header, else the patient's id.
        age, sex, view, site, scanner_model: columns.
    """

    modality: str
    csv: str
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    images: str | dict[str, str] = "path"
    mask: str | None = None
    mask_classes: dict[int, str] = Field(default_factory=dict)
    labels: tuple[str, ...] | dict[str, str] = ()
    references: tuple[str, ...] | dict[str, str] = ()
    diseases: tuple[str, ...] | dict[str, str] = ()
    point_mm: tuple[str, str, str] | None = None
    split: str | None = None
    patient_id: str | None = None
    study_id: str | None = None
    age: str | None = None
    sex: str | None = None
    view: str | None = None
    site: str | None = None
    scanner_model: str | None = None

    @field_validator("images")
    @classmethod
    def _not_a_mask(cls, images: str | dict[str, str]) -> str | dict[str, str]:
        if isinstance(images, dict) and (not images or "mask" in images):
            raise ValueError("expected columns by sequence, and the segmentation's column as `mask`")
        return images

    @field_validator("mask_classes")
    @classmethod
    def _no_background(cls, classes: dict[int, str]) -> dict[int, str]:
        if any(label <= 0 for label in classes):
            raise ValueError("expected labels from 1; 0 is the background")
        return classes


class TableSource(Source):
    """Images that a CSV lists."""

    settings_class: ClassVar[type[SourceSettings]] = TableSettings
    settings: TableSettings

    def scan(self) -> Iterator[Record | LeftOut]:
        check_modality(self.settings.modality, self.name)
        if not self._table.rows:
            return
        if self._column("patient_id") is None:
            _log.warning(
                "%s has no column patient_id: PatientID of the DICOM header is taken, and an image without "
                "one counts as a patient of its own, so that one person may get into two splits.",
                self._table.file,
            )
        for row in self._table.rows:
            yield self._sample(row)

    def diseases(self) -> Mapping[str, Mapping[str, float]]:
        from radfuse.serving.images.errors import UnreadableImage

        columns = _by_name(self.settings.diseases)
        if not columns:
            return {}
        found: dict[str, dict[str, float]] = {}
        by_header = self._column("patient_id") is None
        for row in self._table.rows:
            try:
                patient = self._patient(row, self._header(row) if by_header else None)
            except UnreadableImage:
                continue  # The sample was left out, and says why.
            of_patient = found.setdefault(patient, {})
            for name, column in columns.items():
                value = row.label(column)
                if not math.isnan(value) and of_patient.setdefault(name, value) != value:
                    raise SourceError(
                        f"{row.place}: {column!r} is {value:g} here and not so in an earlier line of the "
                        "same patient; a disease is the patient's, so correct one of them."
                    )
        return found

    def classes(self, modality: str) -> Mapping[int, str]:
        return dict(enumerate(self.settings.mask_classes.values(), 1))

    def conventions(self, modality: str) -> tuple[Mapping[int, int], ...]:
        if not self.settings.mask_classes:
            return ()
        return ({0: 0, **{label: place for place, label in enumerate(self.settings.mask_classes, 1)}},)

    @cached_property
    def _table(self) -> Table:
        options = self.settings
        table = csv_file.read(self.root, options.csv, self.name, delimiter=options.delimiter)
        table.require([*self._paths.values(), *(options.point_mm or ())])
        for given in (options.labels, options.references, options.diseases):
            table.require(list(_by_name(given).values()))
        for option in ("split", "patient_id", "study_id", "age", "sex", "view", "site", "scanner_model"):
            column = getattr(options, option)
            table.require([column] if column else [])
        return table

    @property
    def _paths(self) -> dict[str, str]:
        """Columns with paths by role."""
        images = self.settings.images
        roles = {"image": images} if isinstance(images, str) else dict(images)
        return roles | ({"mask": self.settings.mask} if self.settings.mask else {})

    def _sample(self, row: Row) -> Record | LeftOut:
        from radfuse.serving.images.errors import UnreadableImage

        point = self._point(row)
        sample = self._sample_name(row)
        sample += "" if point is None else "#" + ",".join(f"{value:g}" for value in point)
        try:
            files, absent, reason = self._files(row)
            header = None if absent else self._header(row)
        except UnreadableImage as error:
            # Without its header an image of a known patient would count as one of somebody else.
            return self._left_out(row, sample, error.reason, self._below_root(error.path))
        if absent:
            return self._left_out(row, sample, reason, row[self._paths[absent]])
        patient = self._patient(row, header)
        return Record(
            patient=patient,
            study=self._text(row, "study_id") or (header.study if header else "") or patient,
            sample=sample,
            modality=self.settings.modality,
            files=files,
            point_mm=point,
            labels={name: row.label(column) for name, column in _by_name(self.settings.labels).items()},
            attributes=self._attributes(row, header),
            split=self._split(row),
            references={
                name: row.number(column) for name, column in _by_name(self.settings.references).items()
            },
        )

    def _left_out(self, row: Row, sample: str, reason: str, path: str) -> LeftOut:
        patient = self._text(row, "patient_id")
        return LeftOut(sample, self.settings.modality, reason, f"{row.place}: {path}", patient)

    def _below_root(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def _files(self, row: Row) -> tuple[dict[str, tuple[str, ...]], str, str]:
        """Files by role; the first role that has none, and why. Raises `UnreadableImage` as `is_dicom`."""
        files: dict[str, tuple[str, ...]] = {}
        for role, column in self._paths.items():
            if not row[column]:
                return {}, role, f"the table has no path for {role}"
            path = self._path(row, column)
            files[role] = self._files_at(path)
            if not files[role] or (len(files[role]) > 1 and self._header_at(path) is None):
                return {}, role, _NO_SERIES if (self.root / path).is_dir() else _ABSENT
        return files, "", ""

    def _sample_name(self, row: Row) -> str:
        """The paths in one spelling: two spellings of one path must not pass for two samples."""
        return "|".join(self._path(row, column) if row[column] else "" for column in self._paths.values())

    def _path(self, row: Row, column: str) -> str:
        """A path below the root, in one spelling."""
        path = PurePosixPath(row[column])
        if path.is_absolute() and path.is_relative_to(self.root.absolute().as_posix()):
            path = path.relative_to(self.root.absolute().as_posix())
        if path.is_absolute() or ".." in path.parts:
            raise SourceError(
                f"{row.place}: expected a path below the source's root in column {column!r}, "
                f"got {row[column]!r}."
            )
        return str(path)

    def _point(self, row: Row) -> tuple[float, float, float] | None:
        if self.settings.point_mm is None:
            return None
        x, y, z = (row.number(column) for column in self.settings.point_mm)
        if not all(map(math.isfinite, (x, y, z))):
            raise SourceError(
                f"{row.place}: expected x, y and z in mm in columns {', '.join(self.settings.point_mm)}."
            )
        return x, y, z

    def _header(self, row: Row) -> Header | None:
        """The DICOM header of a row's first image; None for what is no DICOM or is damaged.

        Raises:
            UnreadableImage: the file cannot be read at all.
        """
        column = next(iter(self._paths.values()))
        return self._header_at(self._path(row, column)) if row[column] else None

    def _header_at(self, path: str) -> Header | None:
        """The DICOM header of a file, or of the first image in a folder that has one."""
        if path not in self._headers:
            files = () if path.lower().endswith(_NOT_DICOM) else self._files_at(path)
            found = (read_header(self.root / name) for name in files)
            several = len(files) > 1
            self._headers[path] = next((one for one in found if one and (one.image or not several)), None)
        return self._headers[path]

    def _files_at(self, path: str) -> tuple[str, ...]:
        if path not in self._known:
            self._known[path] = _files_at(self.root, path)
        return self._known[path]

    @cached_property
    def _headers(self) -> dict[str, Header | None]:
        """By path: a series is listed once for each nodule in it."""
        return {}

    @cached_property
    def _known(self) -> dict[str, tuple[str, ...]]:
        """Files by path, as `_headers`."""
        return {}

    def _patient(self, row: Row, header: Header | None) -> str:
        column = self._column("patient_id")
        if column is not None:
            if not row.text(column):
                got = repr(row[column]) if row[column] else "nothing"
                raise SourceError(f"{row.place}: expected the patient's id in {column!r}, got {got}.")
            return row[column]
        return (header.patient if header else "") or self._sample_name(row)

    def _attributes(self, row: Row, header: Header | None) -> Attributes:
        found = header.attributes if header else Attributes()
        age = age_years(self._text(row, "age"))
        return Attributes(
            age_years=found.age_years if math.isnan(age) else age,
            sex=sex(self._text(row, "sex")) or found.sex,
            view=view(self._text(row, "view")) or found.view,
            scanner_model=self._text(row, "scanner_model") or found.scanner_model,
            site=self._text(row, "site"),
        )

    def _split(self, row: Row) -> str | None:
        if self.settings.split is None or not row.text(self.settings.split):
            return None
        split, known = row[self.settings.split].lower(), (*SPLITS, DEVELOPMENT)
        if split not in known:
            raise SourceError(
                f"{row.place}: expected a split in column {self.settings.split!r}, got {split!r}"
                f"{did_you_mean(split, known)}"
            )
        return split

    def _column(self, option: _Option) -> str | None:
        """The column that an option names, or that has the option's own name."""
        given: str | None = getattr(self.settings, option)
        return given or (option if option in self._table.columns else None)

    def _text(self, row: Row, option: _Option) -> str:
        column = self._column(option)
        return row.text(column) if column else ""


_Option = Literal["patient_id", "study_id", "age", "sex", "view", "site", "scanner_model"]


def _by_name(given: tuple[str, ...] | dict[str, str]) -> dict[str, str]:
    return given if isinstance(given, dict) else {column: column for column in given}


def _files_at(root: Path, path: str) -> tuple[str, ...]:
    """The file at a path, or the slices in the folder there; nothing where there is neither.

    A folder's only file may be of any kind.

    Raises:
        UnreadableImage: nobody may look there, or the disk does not answer.
    """
    from radfuse.serving.images.errors import guarded

    place = root / path
    with guarded(place, "it cannot be looked into"):
        if place.is_file():
            return (path,)
        if not place.is_dir():
            return ()
        names = [item.name for item in place.iterdir() if item.is_file() and not item.name.startswith(".")]
    if len(names) > 1:
        names = [name for name in names if _is_slice(place / name)]
    return tuple(f"{path}/{name}" for name in sorted(names))


def _is_slice(file: Path) -> bool:
    """Whether a file may be a slice of a series, and no licence, table of contents or preview beside it."""
    return file.name.lower().endswith(_SLICE) or (file.name != _CONTENTS and is_dicom(file))
