"""Answers of an exported model as rows of a table, straight from the files of a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.engine.errors import SettingsError
from radfuse.engine.tables import (
    CALIBRATED,
    DICE,
    LABEL,
    PATIENT,
    SAMPLE,
    SPLIT,
    STUDY,
    TRUE_VOLUME,
    VOLUME,
)
from radfuse.serving import UnreadableImage
from radfuse.serving.card import SEGMENTATION
from radfuse.serving.images.scans import read_volume
from radfuse.serving.images.volume import Volume, reorient, same_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radfuse.engine.scanning import Kept
    from radfuse.serving import Card, Prediction, Predictor

EXTERNAL = "external"
"""Stands where a table of the pipeline has the split."""
MASK = "mask"


@dataclass(frozen=True)
class Unread:
    """A sample without an answer.

    Attributes:
        sample_id: pseudonym.
        reason: without names and paths.
        shown: with them, for the terminal.
    """

    sample_id: str
    reason: str
    shown: str


def answered(predictor: Predictor, samples: Iterable[Kept]) -> Iterator[dict[str, Any] | Unread]:
    """A row of the prediction table for each sample, or why there is none.

    Raises:
        SettingsError: the source does not have the images that the model takes.
        ModelError: the model fails.
    """
    for one in samples:
        images = _images(one, predictor.card)
        try:
            prediction = predictor.predict(images, one.record.point_mm)
            told = _told(prediction, one, predictor.card)
        except UnreadableImage as error:
            yield Unread(one.sample_id, error.reason, str(error))
        else:
            yield {**_about(one), **told}


def _images(one: Kept, card: Card) -> dict[str, Path | list[Path]]:
    files, root = one.record.files, one.source.root
    missing = [role for role in card.inputs if role not in files]
    if missing:
        have = ", ".join(role for role in files if role != MASK)
        raise SettingsError(
            f"the model takes {', '.join(card.inputs)}, and the source {one.source.name} has {have}; make "
            "the names match in the source's options."
        )
    paths = {role: [root / name for name in files[role]] for role in card.inputs}
    return {role: found[0] if len(found) == 1 else found for role, found in paths.items()}


def _about(one: Kept) -> dict[str, Any]:
    ids = {PATIENT: one.patient_id, STUDY: one.study_id, SAMPLE: one.sample_id, SPLIT: EXTERNAL}
    return {**ids, "source": one.source.name, **asdict(one.record.attributes)}


def _told(prediction: Prediction, one: Kept, card: Card) -> dict[str, Any]:
    if card.task != SEGMENTATION:
        labels = {LABEL + name: one.record.labels.get(name, np.nan) for name in card.labels}
        return {**labels, **{CALIBRATED + name: value for name, value in prediction.probabilities.items()}}
    found: dict[str, Any] = {VOLUME + name: volume for name, volume in prediction.volumes_mm3.items()}
    if prediction.label_map is None or MASK not in one.record.files:
        unknown = dict.fromkeys([prefix + name for prefix in (TRUE_VOLUME, DICE) for name in card.regions])
        return {**found, **{name: np.nan for name in unknown}}
    path = one.source.root / one.record.files[MASK][0]
    return {
        **found,
        **_overlap(prediction.label_map, path, one.source.conventions(card.modality), card.regions),
    }


def _overlap(
    predicted: Volume,
    mask: Path,
    conventions: Sequence[Mapping[int, int]],
    regions: Mapping[str, Sequence[int]],
) -> dict[str, float]:
    """True volume and Dice of each region, on the grid of the files.

    A region that is in neither has Dice 1, by the convention of BraTS (Bakas et al., arXiv 1811.02629).
    """
    answer, truth = reorient(predicted), reorient(read_volume(mask))
    if not same_grid(answer, truth):
        raise UnreadableImage(mask, "the segmentation lies on another grid than its image; resample it")
    classes = _classes(mask, truth.voxels, conventions)
    voxel_mm3 = float(np.prod(truth.spacing_mm))
    found: dict[str, float] = {}
    for name, indices in regions.items():
        true, said = np.isin(classes, indices), np.isin(answer.voxels, indices)
        both, total = int((true & said).sum()), int(true.sum()) + int(said.sum())
        found[TRUE_VOLUME + name] = int(true.sum()) * voxel_mm3
        found[DICE + name] = 2 * both / total if total else 1.0
    return found


def _classes(path: Path, labels: NDArray[Any], conventions: Sequence[Mapping[int, int]]) -> NDArray[Any]:
    """Labels as files write them, as class indices."""
    if not conventions:
        return labels
    there = {float(label) for label in np.unique(labels)}
    for convention in conventions:
        if there <= set(convention):
            found = np.zeros(labels.shape, np.uint8)
            for label, index in convention.items():
                found[labels == label] = index
            return found
    known = " or ".join(", ".join(map(str, sorted(convention))) for convention in conventions)
    reason = f"expected a segmentation with the labels {known}, got others"
    raise UnreadableImage(path, reason)
