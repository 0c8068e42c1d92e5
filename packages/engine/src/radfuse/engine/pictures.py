"""Pictures of predictions, drawn while a network trains, and of its learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.engine.drawing import write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
MOST = 8
_TILE = 200
"""Pixels along a side of a tile; smaller images are enlarged, larger ones thinned out."""
_LINE = 14
_NAMED = 2
_DPI = 100
_TRUE = 1.0
_COLOURS = ((225, 87, 89), (78, 121, 167), (241, 206, 99), (89, 161, 79), (176, 122, 161), (255, 157, 167))


@dataclass(frozen=True)
class Tile:
    """An image with what is said of it.

    Attributes:
        pixels: (H, W, 3) in 0..255.
        caption: lines below it.
    """

    pixels: Array
    caption: Sequence[str]


def picture_name(epoch: int, batch: int) -> str:
    """``epoch_000_batch_001.png``: epochs count from 0, batches from 1."""
    return f"epoch_{epoch:03d}_batch_{batch:03d}.png"


def classification_picture(
    path: Path,
    images: Array,
    truth: Array,
    scores: Array,
    labels: Sequence[str],
    samples: Sequence[str],
    title: str,
) -> None:
    """Draw images with their true and predicted labels.

    Args:
        path: the PNG to make.
        images: (B, C, H, W), or (B, C, D, H, W), of which the middle slice is drawn.
        truth: (B, labels) of 0, 1 or NaN.
        scores: (B, labels) probabilities.
        labels: their names.
        samples: pseudonymous ids.
        title: of the picture.
    """
    tiles = []
    for index in range(min(len(images), MOST)):
        shown = np.argsort(-scores[index], kind="stable")[:3].tolist()
        lines = [f"{labels[i]} {scores[index, i]:.2f}{_mark(truth[index, i])}" for i in shown]
        missed = [labels[i] for i in np.flatnonzero(truth[index] == _TRUE).tolist() if i not in shown]
        more = f" + {len(missed) - _NAMED}" if len(missed) > _NAMED else ""
        also = [f"also: {', '.join(missed[:_NAMED])}{more}"] if missed else []
        tiles.append(Tile(_grey(slice_of(images[index, 0])), [samples[index], *lines, *also]))
    _mosaic(path, tiles, 4, title)


def segmentation_picture(
    path: Path,
    images: Array,
    truth: Array,
    predicted: Array,
    classes: Sequence[str],
    samples: Sequence[str],
    title: str,
) -> None:
    """Draw axial slices of each volume: the image, the truth over it, the prediction over it.

    Args:
        path: the PNG to make.
        images: (B, C, D, H, W); the last channel is drawn.
        truth: (B, D, H, W) class indices.
        predicted: (B, D, H, W) class indices.
        classes: their names, the background first.
        samples: pseudonymous ids.
        title: of the picture, below which the colours are explained.
    """
    tiles = []
    count = min(len(images), MOST // 2)
    for index in range(count):
        for depth in _telling_slices(truth[index], max(1, 3 // count)):
            base = _grey(images[index, -1, depth])
            tiles.append(Tile(base, [f"{samples[index]}, slice {depth}"]))
            for name, classed in (("truth", truth[index]), ("predicted", predicted[index])):
                tiles.append(Tile(_overlaid(base, classed[depth]), [name]))
    _mosaic(path, tiles, 3, title, [(name, _colour(i)) for i, name in enumerate(classes) if i])


def learning_curves(path: Path, history: Mapping[str, Sequence[float]], metric: str, title: str) -> None:
    """Draw losses and the metric that decides which checkpoint is best, by epoch.

    Args:
        path: the PNG to make.
        history: values by metric, one for each epoch.
        metric: ``val_auc`` or ``val_dice``.
        title: of the picture.
    """
    figure = _figure(7.2, 3.2)
    figure.suptitle(title, fontsize=9)
    for place, names in enumerate((("train_loss", "val_loss"), (metric,))):
        axes = figure.add_axes((0.08 + 0.5 * place, 0.16, 0.4, 0.7))
        for name in names:
            values = history.get(name, [])
            axes.plot(range(1, len(values) + 1), values, label=name, linewidth=1.5, marker=".")
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False)
    write_png(figure, path, _DPI)


def slice_of(image: Array) -> Array:
    """The image itself, or the middle axial slice of a volume (D, H, W)."""
    return image if image.ndim == 2 else image[image.shape[0] // 2]


def _telling_slices(truth: Array, count: int) -> list[int]:
    """Depths at equal shares of the foreground; the middle where there is none."""
    area = (truth > 0).sum(axis=(1, 2))
    if not area.any():
        return [len(truth) // 2]
    shares = (np.arange(count) + 0.5) / count * area.sum()
    return sorted({int(depth) for depth in np.searchsorted(np.cumsum(area), shares)})


def _mosaic(
    path: Path,
    tiles: Sequence[Tile],
    columns: int,
    title: str,
    legend: Sequence[tuple[str, tuple[int, ...]]] = (),
) -> None:
    """Draw tiles in rows, as one image: axes for each would take most of an epoch of small images."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    caption = 10 + _LINE * max(len(tile.caption) for tile in tiles)
    head = 28 if not legend else 46
    height, width = head + rows * (_TILE + caption), columns * (_TILE + 4)
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = _figure(width / _DPI, height / _DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(width / 2, 16, title, fontsize=9, ha="center", va="center")
    for place, (name, colour) in enumerate(legend):
        at = width * (place + 0.5) / len(legend)
        axes.text(at, 34, name, fontsize=8, ha="center", va="center", color=[part / 255 for part in colour])
    for index, tile in enumerate(tiles):
        top, left = head + index // columns * (_TILE + caption), index % columns * (_TILE + 4)
        canvas[top : top + _TILE, left : left + _TILE] = tile.pixels
        below = "\n".join(tile.caption)
        axes.text(left + 2, top + _TILE + 4, below, fontsize=7, va="top", linespacing=1.15, parse_math=False)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    write_png(figure, path, _DPI)


def _grey(image: Array) -> Array:
    """An image (H, W) as a tile, from its first to its last percentile, with its proportions kept."""
    low, high = np.percentile(image, (1, 99))
    pixels = ((image - low) / max(high - low, 1e-6) * 255).clip(0, 255).astype(np.uint8)
    return np.repeat(_fitted(pixels)[..., None], 3, axis=2)


def _overlaid(base: Array, labels: Array) -> Array:
    """A tile with classes (H, W) laid over it in colours."""
    classed = _fitted(labels)
    shown = base.astype(np.float32)
    for index in np.unique(classed[classed > 0]):
        inside = classed == index
        shown[inside] = 0.45 * shown[inside] + 0.55 * np.array(_colour(int(index)), np.float32)
    return shown.astype(np.uint8)


def _fitted(image: Array) -> Array:
    """(H, W) enlarged or thinned out to fit into a tile, by nearest neighbours, about the middle."""
    scale = _TILE / max(image.shape)
    height, width = (max(1, round(length * scale)) for length in image.shape)
    rows = np.minimum((np.arange(height) / scale).astype(int), image.shape[0] - 1)
    columns = np.minimum((np.arange(width) / scale).astype(int), image.shape[1] - 1)
    tile = np.zeros((_TILE, _TILE), image.dtype)
    top, left = (_TILE - height) // 2, (_TILE - width) // 2
    tile[top : top + height, left : left + width] = image[rows][:, columns]
    return tile


def _colour(index: int) -> tuple[int, ...]:
    return _COLOURS[(index - 1) % len(_COLOURS)]


def _mark(truth: float) -> str:
    return " (?)" if np.isnan(truth) else " (yes)" if truth == _TRUE else " (no)"


def _figure(width: float, height: float) -> Figure:
    """A figure in inches, without pyplot, which would keep it alive."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure
