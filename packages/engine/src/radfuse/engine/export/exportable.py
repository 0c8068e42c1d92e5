"""What can be exported: a graph, real samples to try it on, and what its card says.

A package that has a model besides those of the modalities names a function under the entry-point group
``radfuse.exports``. It is called with the pipeline's `Places` and answers with what `Described` demands, or
with None where this pipeline has nothing to export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from radfuse.serving.card import FEATURES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from radfuse.engine.places import Places

GROUP = "radfuse.exports"


@dataclass(frozen=True)
class Exportable:
    """A model that is ready to be written.

    Attributes:
        name: as in commands: ``xray``.
        files: file name by format, ``{"onnx": "xray_onnx.onnx", "torchscript": "xray_torchscript.pt"}``.
        graph: in evaluation mode, on the CPU, with one input (B, C, ...) and one output.
        samples: real prepared samples as the graph takes them, (C, ...), all of one size.
        card: the fields of `radfuse.serving.card.Card` that the files themselves do not tell.
        step: the spatial sizes are any multiples of this; fixed when None.
    """

    name: str
    files: Mapping[str, str]
    graph: nn.Module
    samples: Sequence[Tensor]
    card: Mapping[str, Any]
    step: int | None = None


class Described(Protocol):
    """What a function of the group ``radfuse.exports`` answers with.

    Attributes:
        module: in evaluation mode, on the CPU.
        example: (B, C, ...) with B of 2 or more: real samples.
        card: as in `Exportable`.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def example(self) -> Tensor: ...

    @property
    def card(self) -> Mapping[str, Any]: ...


Describe = Callable[["Places"], Described | None]


def further_exports() -> dict[str, Describe]:
    """What installed packages export besides the modalities, by name."""
    return {point.name: point.load() for point in entry_points(group=GROUP)}


def files_of(name: str) -> dict[str, str]:
    """File name by format of a model besides those of the modalities."""
    return {"onnx": f"{name}_onnx.onnx", "torchscript": f"{name}_traced.pt"}


def from_description(name: str, described: Described) -> Exportable:
    """The model of another package, with the names that its files get.

    Raises:
        StillTraining: a layer of the module is in training mode.
    """
    from torch import nn

    from radfuse.engine.export.graph import ExportGraph, require_evaluation

    require_evaluation(described.module)
    card = dict(described.card)
    if card.get("task") == FEATURES:
        # `inputs` names the features, and a card of features has no recipe: there is no file to be read.
        card["preprocessing"] = {}
    return Exportable(
        name=name,
        files=files_of(name),
        # Not the module alone: torch.export fails where a part of the outermost module has a name that
        # torch's own graph modules use, such as `meta`.
        graph=ExportGraph(nn.Identity(), described.module, nn.Identity(), nn.Identity()).eval(),
        samples=list(described.example),
        card=card,
    )
