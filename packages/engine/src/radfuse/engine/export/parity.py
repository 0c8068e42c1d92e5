"""Whether an exported file answers as its checkpoint does: real samples, in batches and sizes not traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from radfuse.engine.errors import ParityError

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[np.float32]]
Answers = Callable[[Array], Array]
"""An exported file as a function: (B, C, ...) to what its graph answers."""

BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Probe:
    """An input and what the checkpoint answers to it."""

    image: Array
    answer: Array


def probes(graph: nn.Module, samples: Sequence[Tensor], step: int | None) -> list[Probe]:
    """Real samples, one by one and in batches of 1, 2 and 5, with the checkpoint's answers.

    Args:
        graph: the graph that is exported, with the checkpoint's weights.
        samples: prepared samples as the graph takes them, (C, ...), all of one size.
        step: where the spatial sizes are dynamic, they are multiples of this; the batches then have a size
            that no sample has, cut from the samples' middle or filled up with zeros.
    """
    images = [sample[None] for sample in samples]
    batch_of = list(samples) if step is None else [resized(s, other_size(s.shape[1:], step)) for s in samples]
    images += [torch.stack(list(islice(cycle(batch_of), size))) for size in BATCHES]
    with torch.inference_mode():
        return [Probe(image.contiguous().numpy(), graph(image.contiguous()).numpy()) for image in images]


def largest_difference(
    file_name: str, answers: Answers, expected: Sequence[Probe], tolerance: float
) -> float:
    """The largest difference of any single probability between an exported file and the checkpoint.

    Args:
        file_name: of the exported file, for the message.
        answers: runs that file.
        expected: what the checkpoint answers.
        tolerance: how large the difference may be.

    Raises:
        ParityError: it is larger, or is no number, or the answer has another shape.
    """
    largest = 0.0
    for probe in expected:
        found = answers(probe.image)
        if found.shape != probe.answer.shape:
            raise ParityError(
                f"{file_name} answers an input of {probe.image.shape} with {found.shape}, the checkpoint "
                f"with {probe.answer.shape}. {_ADVICE}"
            )
        difference = float(np.abs(found - probe.answer).max(initial=0.0))
        # A comparison with NaN is false: this one refuses it, `difference > tolerance` would not.
        if not difference <= tolerance:
            raise ParityError(
                f"{file_name} differs from its checkpoint by {difference:.3g} for an input of "
                f"{probe.image.shape}; at most {tolerance:.3g} is tolerated (export.tolerance). {_ADVICE}"
            )
        largest = max(largest, difference)
    return largest


_ADVICE = (
    "Nothing was exported. Look for Python in a forward() that depends on the input's values or size: an "
    "export fixes it as it was for one example."
)


def other_size(size: Sequence[int], step: int) -> tuple[int, ...]:
    """A spatial size, small and not the given one, of which every axis is a multiple of the step."""
    small = (*(2 * step for _ in size[1:]), 3 * step)
    return small if small != tuple(size) else small[::-1]


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of an image (C, ...), with zeros around it where it is smaller than that size."""
    for axis, wanted in enumerate(size, start=1):
        have = image.shape[axis]
        if have > wanted:
            image = image.narrow(axis, (have - wanted) // 2, wanted)
        elif have < wanted:
            shape = list(image.shape)
            shape[axis] = (wanted - have) // 2
            before = image.new_zeros(shape)
            shape[axis] = wanted - have - shape[axis]
            image = torch.cat([before, image, image.new_zeros(shape)], axis)
    return image
