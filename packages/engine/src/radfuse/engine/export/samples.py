"""Real samples that exports are tried on: prepared arrays, as the graph takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from radfuse.engine.errors import MissingStage
from radfuse.engine.export.parity import resized

if TYPE_CHECKING:
    from torch import Tensor

    from radfuse.engine.prepared import Prepared

_SPLITS = ("val", "calibration")
"""Where samples are taken from, in this order. Those of `train` stand in no prediction table, and those of
`test` are for `radfuse evaluate` alone."""


def sample_names(prepared: Prepared, count: int) -> list[str]:
    """Ids of samples to try an export on; the same ones every time, fewer where there are no more.

    Raises:
        MissingStage: nothing is prepared of these splits.
    """
    names = [name for split in _SPLITS for name in prepared.samples(split)][:count]
    if not names:
        raise MissingStage(
            f"expected prepared samples of {prepared.modality} in {' or '.join(_SPLITS)} to try its export "
            "on, got none; give these splits patients (split.fractions of params.yaml), or run `radfuse "
            f"prepare {prepared.modality}` first."
        )
    return names


def real_samples(
    prepared: Prepared, names: Sequence[str], window: Sequence[int] | None, step: int | None
) -> list[Tensor]:
    """Prepared samples of one size, (C, ...) float32 as the graph takes them.

    Args:
        prepared: the arrays.
        names: ids of samples.
        window: spatial size that is cut from the middle of arrays that have sizes of their own; None where
            all have one size.
        step: the window is rounded up to multiples of this, at least two.
    """
    from radfuse.serving.preprocess import to_input

    arrays = [to_input(prepared.spec, prepared.array(name)) for name in names]
    samples = [torch.from_numpy(np.array(array, np.float32, order="C")) for array in arrays]
    if window is None:
        return samples
    size = [rounded_up(length, step or 1) for length in window]
    return [resized(sample, size).contiguous() for sample in samples]


def rounded_up(length: int, step: int) -> int:
    """The smallest multiple of the step, at least two of them, that is not below the length."""
    return max(-(-length // step), 2) * step
