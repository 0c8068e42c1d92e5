"""A task of the Medical Segmentation Decathlon: a ``dataset.json`` and the NIfTI files that it lists.

Source:
    Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

from radfuse.engine.errors import SourceError
from radfuse.engine.sources.brats import MODALITY
from radfuse.engine.sources.source import LeftOut, Record, Source, SourceSettings, check_modality

_FILE = "dataset.json"


class DecathlonSettings(SourceSettings):
    """Options of a Decathlon task.

    Attributes:
        modality: that the images belong to.
        sequence: the role of its images, as in ``prepare.mri.sequences``; by default what dataset.json calls
            it, in lower case.
    """

    name: str = "decathlon"
    modality: str = MODALITY
    sequence: str | None = None


class DecathlonSource(Source):
    """The training images of a task with one sequence; each image is a patient of its own, as published."""

    settings_class: ClassVar[type[SourceSettings]] = DecathlonSettings

    def scan(self) -> Iterator[Record | LeftOut]:
        modality = check_modality(self.settings.modality, self.name)
        role = self._sequence()
        for item in self._entry("training", list):
            image, mask = self._path(item, "image"), self._path(item, "label")
            patient = posixpath.basename(image).removesuffix(".gz").removesuffix(".nii")
            absent = [name for name in (image, mask) if not (self.root / name).is_file()]
            if absent:
                yield LeftOut(image, modality, f"a file that {_FILE} lists is missing", absent[0], patient)
            else:
                yield Record(patient, patient, image, modality, {role: (image,), "mask": (mask,)})

    def classes(self, modality: str) -> Mapping[int, str]:
        return {place: name for place, (_, name) in enumerate(self._labels()) if place > 0}

    def conventions(self, modality: str) -> tuple[Mapping[int, int], ...]:
        return ({label: place for place, (label, _) in enumerate(self._labels())},)

    def _labels(self) -> list[tuple[int, str]]:
        """Labels in files with their names, the background first."""
        try:
            found = sorted(
                (int(label), _identifier(name)) for label, name in self._entry("labels", dict).items()
            )
        except ValueError:
            raise self._odd("numbers as the keys of 'labels'") from None
        if not found or found[0][0] != 0:
            raise self._odd("a label 0 for the background")
        return found

    def _sequence(self) -> str:
        sequences = list(self._entry("modality", dict).values())
        if len(sequences) != 1:
            raise SourceError(
                f"source {self.name}: {_FILE} lists {len(sequences)} sequences in one file; expected one. "
                "Split the files by sequence, and read them with a source of kind 'table' or 'brats'."
            )
        return str(self.settings.sequence or _identifier(sequences[0]))

    def _path(self, item: Any, key: str) -> str:
        path = posixpath.normpath(str(item.get(key, ""))) if isinstance(item, dict) else ""
        if path in ("", ".") or path.startswith(("/", "..")):
            raise self._odd(f"a path below its folder as {key!r} of each item of 'training'")
        return path

    def _entry(self, key: str, kind: type) -> Any:
        value = self._dataset.get(key)
        if not isinstance(value, kind) or not value:
            raise self._odd(f"{key!r} with something in it")
        return value

    @cached_property
    def _dataset(self) -> dict[str, Any]:
        try:
            dataset = json.loads((self.root / _FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SourceError(
                f"source {self.name}: expected {_FILE} in the source's root, and there is none; correct "
                "`root`."
            ) from None
        except (OSError, ValueError) as error:
            raise SourceError(
                f"source {self.name}: {_FILE} is no JSON: {error}; download it again."
            ) from None
        if not isinstance(dataset, dict):
            raise self._odd("an object")
        return dataset

    def _odd(self, expected: str) -> SourceError:
        return SourceError(
            f"source {self.name}: expected {expected} in {_FILE}; compare it with the publisher's."
        )


def _identifier(name: Any) -> str:
    return "_".join(str(name).lower().split())
