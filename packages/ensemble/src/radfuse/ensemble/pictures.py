"""Pictures of an ensemble for its run in MLflow; no single patient is in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from radfuse.engine.drawing import write_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DPI = 100


def weights_picture(
    path: Path, weights: NDArray[np.float64], modalities: Sequence[str], diseases: Sequence[str]
) -> None:
    """Draw how much each modality counts in the weighted average, a bar a disease.

    Args:
        path: the PNG to make.
        weights: (M, D), each disease's sum to one.
        modalities: M names.
        diseases: D names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.6 + 0.32 * len(diseases)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    begins = np.cumsum(weights, axis=0) - weights
    rows = range(len(diseases))
    for m, name in enumerate(modalities):
        colour = _COLOURS[m % len(_COLOURS)]
        axes.barh(rows, weights[m], left=begins[m], color=colour, label=name, height=0.7)
    axes.set_yticks(rows, [name.replace("_", " ") for name in diseases], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="weight in the average, of a patient who has every modality")
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(modalities))
    write_png(figure, path, _DPI)
