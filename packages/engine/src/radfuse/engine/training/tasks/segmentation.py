"""Segmentation: a class for every voxel, judged by regions that are made of one or more classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from radfuse.engine.errors import SettingsError
from radfuse.engine.tables import DICE, SAMPLE, TRUE_VOLUME, VOLUME
from radfuse.engine.training.tasks.classification import mean
from radfuse.engine.training.tasks.task import Validated

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.prepared import Prepared

SPACING = ("spacing_mm_d", "spacing_mm_h", "spacing_mm_w")
"""Columns of the prepared table: millimetres between voxels along (D, H, W)."""
MASK_DIGEST = "mask_sha256"
"""Column of the prepared table; "" where a volume has no segmentation."""
UNKNOWN = -1
"""Class of every voxel of a volume that nobody outlined."""


class DiceCE(nn.Module):
    """Dice loss over the foreground classes plus cross entropy over all of them.

    Args:
        weights: (classes,) of the cross entropy; None for 1.
    """

    def __init__(self, weights: Tensor | None = None) -> None:
        super().__init__()
        from monai.losses import DiceLoss

        # Squared denominators and small smoothing: a volume without a region must not drown the others.
        self.dice = DiceLoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            smooth_nr=1e-5,
            smooth_dr=1e-5,
        )
        self.cross_entropy = nn.CrossEntropyLoss(weight=weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B, classes, D, H, W) logits and (B, D, H, W) class indices to a scalar."""
        dice: Tensor = self.dice(logits, target[:, None])
        entropy: Tensor = self.cross_entropy(logits, target)
        return dice + entropy


class SegmentationTask:
    """Regions to outline.

    Args:
        classes: names by index, the background first: the network's outputs.
        regions: class indices by region, as they are reported.
    """

    kind: Literal["classification", "segmentation"] = "segmentation"
    metric = "val_dice"

    def __init__(self, classes: Sequence[str], regions: Mapping[str, Sequence[int]]) -> None:
        if len(classes) < 2 or not regions:
            raise SettingsError(
                f"expected the background and at least one class to segment, got {list(classes)}."
            )
        outside = [
            name for name, indices in regions.items() if not set(indices) <= set(range(1, len(classes)))
        ]
        if outside:
            raise SettingsError(
                f"the region {outside[0]!r} has classes {list(regions[outside[0]])}; "
                f"expected indices 1 to {len(classes) - 1}, which are {', '.join(classes[1:])}."
            )
        self.classes = tuple(classes)
        self.regions = {name: tuple(indices) for name, indices in regions.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def describe(self) -> dict[str, Any]:
        regions = {name: list(indices) for name, indices in self.regions.items()}
        return {"kind": self.kind, "classes": list(self.classes), "regions": regions}

    def check(self, training: pd.DataFrame, validation: pd.DataFrame) -> None:
        for split, rows in (("train", training), ("val", validation)):
            without = list(rows.loc[rows[MASK_DIGEST] == "", SAMPLE])
            if without:
                raise SettingsError(
                    f"expected a segmentation for every volume of the split {split!r}, got none for "
                    f"{len(without)} of {len(rows)}, the first of them {without[0]}. Leave them out of the "
                    "source."
                )

    def repeats(self, settings: Any) -> int:
        return int(settings.patches_per_volume)

    def example(
        self, prepared: Prepared, row: pd.Series[Any], random: np.random.Generator | None, settings: Any
    ) -> tuple[np.ndarray[Any, Any], Tensor]:
        array = prepared.array(str(row[SAMPLE]))
        if row.get(MASK_DIGEST) == "":
            return array, torch.full(array.shape[1:], UNKNOWN)
        mask = prepared.mask(str(row[SAMPLE]))
        if random is not None:
            array, mask = cut_patch(array, mask, settings.patch_size, settings.foreground, random)
        return array, torch.from_numpy(np.array(mask, dtype=np.int64))

    def target_is_mask(self) -> bool:
        return True

    def class_weights(self, prepared: Prepared, training: pd.DataFrame) -> Tensor:
        """(classes,) inverse square roots of the classes' shares of the training voxels, with mean 1."""
        counts = np.zeros(len(self.classes))
        for sample in training[SAMPLE]:
            counts += np.bincount(prepared.mask(str(sample)).ravel(), minlength=len(counts))[: len(counts)]
        weights = np.where(counts > 0, 1.0 / np.sqrt(np.maximum(counts, 1.0)), 0.0)
        weights[weights == 0] = weights.max()
        return torch.tensor(weights / weights.mean(), dtype=torch.float32)

    def loss(self, weights: Tensor | None) -> nn.Module:
        return DiceCE(weights)

    def infer(self, network: nn.Module, image: Tensor, settings: Any) -> Tensor:
        """(B, C, D, H, W) to logits of the same grid, window by window where the volume is larger than one.

        Only one window and the sums of its answers are in memory beside the volume.
        """
        from monai.inferers import sliding_window_inference

        if all(have <= window for have, window in zip(image.shape[2:], settings.patch_size, strict=True)):
            return _in_one_window(network, image, settings.patch_size)
        logits: Tensor = sliding_window_inference(
            image,
            roi_size=settings.patch_size,
            sw_batch_size=settings.windows_at_once,
            predictor=lambda windows: network(windows).float(),
            overlap=settings.overlap,
            mode="gaussian",
        )
        return logits

    def window(self, settings: Any) -> dict[str, Any]:
        """Size and overlap of the windows, as a card tells them."""
        return {"size": list(settings.patch_size), "overlap": settings.overlap}

    def validation(self, settings: Any) -> SegmentationValidation:
        return SegmentationValidation(self.regions)

    def activation(self) -> nn.Module:
        return nn.Softmax(dim=1)

    def answers(self, logits: Tensor, target: Tensor, rows: pd.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
        predicted, known = logits.argmax(dim=1), (target != UNKNOWN).flatten(1).all(dim=1).cpu().numpy()
        voxel = rows[list(SPACING)].to_numpy(dtype=np.float64).prod(axis=1)
        dices = dice_by_region(predicted, target, self.regions)
        found: dict[str, np.ndarray[Any, Any]] = {}
        for prefix, labels in ((VOLUME, predicted), (TRUE_VOLUME, target)):
            for name, indices in self.regions.items():
                voxels = in_region(labels, indices).flatten(1).sum(dim=1)
                found[prefix + name] = voxels.double().cpu().numpy() * voxel
        found |= {DICE + name: dices[:, index] for index, name in enumerate(self.regions)}
        return {
            name: values if name.startswith(VOLUME) else np.where(known, values, np.nan)
            for name, values in found.items()
        }

    def picture(
        self, path: Path, image: Tensor, target: Tensor, logits: Tensor, rows: pd.DataFrame, title: str
    ) -> None:
        from radfuse.engine.pictures import segmentation_picture

        predicted = logits.argmax(dim=1).cpu().numpy()
        segmentation_picture(
            path,
            image.float().cpu().numpy(),
            target.cpu().numpy(),
            predicted,
            self.classes,
            list(rows[SAMPLE]),
            title,
        )


def _in_one_window(network: nn.Module, image: Tensor, size: Sequence[int]) -> Tensor:
    """Logits for volumes (B, C, D, H, W) no larger than a window, with zeros around them to fill it."""
    short = [window - have for window, have in zip(size, image.shape[2:], strict=True)]
    pads = [(missing // 2, missing - missing // 2) for missing in short]
    # torch counts the sides from the last axis on.
    padded = nn.functional.pad(image, [side for pair in reversed(pads) for side in pair])
    logits: Tensor = network(padded).float()
    for axis, (before, _) in enumerate(pads, start=2):
        logits = logits.narrow(axis, before, image.shape[axis])
    return logits


class SegmentationValidation:
    """Gathers Dice by volume and region.

    Args:
        regions: class indices by region.
    """

    def __init__(self, regions: Mapping[str, Sequence[int]]) -> None:
        self._regions = regions
        self._dices: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self._loss = 0.0

    def add(self, logits: Tensor, target: Tensor, rows: pd.DataFrame, loss: float) -> None:
        self._dices.append(dice_by_region(logits.argmax(dim=1), target, self._regions))
        self._loss += loss * len(rows)

    def result(self) -> Validated:
        dices = np.concatenate(self._dices)
        means = {name: mean(list(dices[:, index])) for index, name in enumerate(self._regions)}
        metrics = {"val_loss": self._loss / len(dices), "val_dice": mean(list(means.values()))}
        metrics |= {f"val_dice_{name}": value for name, value in means.items()}
        return Validated(metrics, {"dice": metrics["val_dice"], "regions": means})


def in_region(labels: Tensor, indices: Sequence[int]) -> Tensor:
    """Where the class is one of the region's."""
    return torch.isin(labels, torch.tensor(list(indices), device=labels.device, dtype=labels.dtype))


def dice_by_region(
    predicted: Tensor, target: Tensor, regions: Mapping[str, Sequence[int]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Dice of each volume and region.

    Args:
        predicted: (B, D, H, W) class indices.
        target: (B, D, H, W) class indices.
        regions: class indices by region.

    Returns:
        (B, regions). Where a region is in neither it is 1, where it is in one of them alone 0.

    Source: the convention of BraTS: Bakas et al., arXiv 1811.02629.
    """
    from monai.metrics import compute_dice

    found = [
        compute_dice(in_region(predicted, i)[:, None], in_region(target, i)[:, None], ignore_empty=False)[
            :, 0
        ]
        for i in regions.values()
    ]
    return torch.stack(found, dim=1).double().cpu().numpy()


def cut_patch(
    array: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any],
    size: Sequence[int],
    foreground: float,
    random: np.random.Generator,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A patch of a volume and of its segmentation, padded with zeros where the volume is smaller.

    Args:
        array: (C, D, H, W); of a mapped file only the patch is read.
        mask: (D, H, W) class indices.
        size: (D, H, W) of the patch.
        foreground: how likely the patch is centred on a voxel that is not background.
        random: chooses.
    """
    centre: Sequence[int] | None = None
    # Both are always drawn, so that what is drawn later does not hang on what the mask holds.
    wants_foreground, place = random.random() < foreground, random.random(4)
    if wants_foreground:
        inside = np.flatnonzero(mask)
        if len(inside):
            voxel = inside[int(place[3] * len(inside))]
            centre = [int(i) for i in np.unravel_index(voxel, mask.shape)]
    parts, pads = [], []
    for axis, (have, want) in enumerate(zip(mask.shape, size, strict=True)):
        room = max(have - want, 0)
        start = (
            int(place[axis] * (room + 1)) if centre is None else min(max(centre[axis] - want // 2, 0), room)
        )
        parts.append(slice(start, start + want))
        short = max(want - have, 0)
        pads.append((short // 2, short - short // 2))
    patch, part = np.asarray(array[(slice(None), *parts)]), np.asarray(mask[tuple(parts)])
    if any(before or after for before, after in pads):
        patch, part = np.pad(patch, [(0, 0), *pads]), np.pad(part, pads)
    return patch, part
