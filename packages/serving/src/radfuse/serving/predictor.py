"""From image files to an answer, with nothing but the exported ONNX file and its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from radfuse.serving.card import FEATURES, SEGMENTATION
from radfuse.serving.errors import ModelError
from radfuse.serving.images.scans import VolumeReader, read_volume
from radfuse.serving.model import OnnxModel
from radfuse.serving.prediction import Prediction, of_labels, of_regions
from radfuse.serving.preprocess import Images, Prepared, input_shape, prepare, restore, to_input
from radfuse.serving.sliding_window import label_map, rounded_up

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Predictor:
    """A model for images: radiographs, CT patches or MR volumes.

    Args:
        path: the ``.onnx`` file; its card lies beside it.
        threads: that one answer uses; 0 for as many as there are cores.

    Raises:
        CardError: the card is missing or none.
        ModelError: the file is missing, is not the one on the card, or does not fit it.
        SpecError: the card's preprocessing is not known.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self._model = OnnxModel(path, threads)
        self.card = self._model.card
        if self.card.task == FEATURES:
            raise ModelError(f"{self._model.path.name}: takes features, no images; use FeaturePredictor")
        self._check_shapes()

    def predict(
        self,
        images: Images,
        point_mm: Sequence[float] | None = None,
        read: VolumeReader = read_volume,
    ) -> Prediction:
        """Answer for one sample.

        Args:
            images: sources by role (``card.inputs``): a file, a folder with a DICOM series, or the files of
                one.
            point_mm: x, y, z in patient mm (LPS) of the nodule, for CT.
            read: reads volumes; a `LastScan` reads a scan once for many points in it.

        Raises:
            UnreadableImage: a file cannot be read or does not fit.
            InputError: roles are missing, or there is a point where none is used.
            ModelError: the graph fails on the input.
        """
        return self.predict_prepared(prepare(self.card.preprocessing, images, point_mm, read))

    def predict_prepared(self, prepared: Prepared) -> Prediction:
        """Answer for a sample that was prepared by the card's recipe before."""
        array = to_input(self.card.preprocessing, prepared.array)
        if self.card.task == SEGMENTATION:
            return self._segmented(array, prepared)
        answer = self._model.run(array[None])
        labels = self.card.labels
        if answer.shape != (1, len(labels)):
            raise ModelError(f"{self._model.path.name}: answered {answer.shape} for {len(labels)} labels")
        return of_labels(self.card, dict(zip(labels, map(float, answer[0]), strict=True)))

    def _segmented(self, array: NDArray[np.float32], prepared: Prepared) -> Prediction:
        geometry = prepared.geometry
        if geometry is None:
            raise ModelError(
                f"{self._model.path.name}: segments images that have no geometry; check its card"
            )
        window, overlap = self._window(array.shape[1:])
        labels = label_map(array, self._run_window, window, overlap)
        counts = np.bincount(labels.ravel(), minlength=len(self.card.classes))
        volumes = {
            region: float(counts[list(indices)].sum()) * geometry.voxel_mm3
            for region, indices in self.card.regions.items()
        }
        return of_regions(self.card, restore(labels, geometry), volumes)

    def _run_window(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        answer = self._model.run(batch)
        wanted = (1, len(self.card.classes), *batch.shape[2:])
        if answer.shape != wanted:
            raise ModelError(
                f"{self._model.path.name}: expected an answer of shape {wanted}, got {answer.shape}"
            )
        return answer

    def _window(self, size: Sequence[int]) -> tuple[tuple[int, ...], float]:
        """Window and overlap: the card's, or the whole volume; multiples of 16 where the graph lets it."""
        given = self.card.sliding_window
        wanted = rounded_up(size if given is None else given["size"])
        fixed = self._model.input_shape[2:]
        window = tuple(length or choice for length, choice in zip(fixed, wanted, strict=True))
        return window, 0.0 if given is None else float(given["overlap"])

    def _check_shapes(self) -> None:
        """What the recipe gives must be what the graph takes; batch and dynamic axes may be anything."""
        recipe, graph = input_shape(self.card.preprocessing), self._model.input_shape[1:]
        windowed = self.card.task == SEGMENTATION
        compared = zip(recipe[:1] if windowed else recipe, graph, strict=False)
        if len(recipe) != len(graph) or any(None not in pair and pair[0] != pair[1] for pair in compared):
            raise ModelError(
                f"{self._model.path.name}: takes input of shape {graph}, its card's preprocessing gives "
                f"{recipe}; export the model again"
            )
