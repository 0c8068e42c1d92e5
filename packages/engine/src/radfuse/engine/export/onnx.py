"""A graph as one ONNX file whose bytes depend on the checkpoint alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from radfuse.engine.export.graph import INPUT, OUTPUT, require_evaluation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from radfuse.engine.export.parity import Answers

OPSET = 20
SPATIAL_NAMES = {2: ("height", "width"), 3: ("depth", "height", "width")}
_NOISE = "torch.onnx._internal.exporter._registration"


def onnx_bytes(graph: nn.Module, example: Tensor, step: int | None, metadata: Mapping[str, str]) -> bytes:
    """The graph as ONNX, checked by ONNX's own checker; the same bytes each time, on whatever path it lies.

    Args:
        graph: in evaluation mode, from (B, C, ...) to whatever it answers.
        example: (B, C, ...) with B of at least 2, and with spatial sizes of at least two steps where they are
            dynamic: a size of 1 would be taken for a constant.
        step: the spatial sizes are any multiples of this; fixed to the example's when None.
        metadata: what the file says of itself, see `onnxruntime.ModelMetadata.custom_metadata_map`.

    Raises:
        StillTraining: a layer of the graph is in training mode.
        ValueError: the example is too small to be told from constants.
        onnx.checker.ValidationError: the exporter wrote what is no valid ONNX.
    """
    require_evaluation(graph)
    shapes = dynamic_shapes(example, step)
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(shapes,),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export made no program.")
    model = program.model_proto
    strip(model)
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    data: bytes = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(data, full_check=True)
    return data


def dynamic_shapes(example: Tensor, step: int | None) -> dict[int, Any]:
    """Which axes of the input may have other sizes than the example's.

    Raises:
        ValueError: the example is too small to be told from constants.
    """
    sizes = example.shape
    if sizes[0] < 2 or (step is not None and any(size < 2 * step or size % step for size in sizes[2:])):
        wanted = (
            "" if step is None else f" and spatial sizes that are multiples of {step}, {2 * step} or more"
        )
        raise ValueError(f"expected an example with a batch of 2 or more{wanted}; got {tuple(sizes)}.")
    shapes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if step is not None:
        for axis, name in enumerate(SPATIAL_NAMES[len(sizes) - 2], start=2):
            shapes[axis] = step * torch.export.Dim(name)
    return shapes


def strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes for debugging: stack traces with the paths of this machine, and names.

    The numbers stay as they are. Without this, an export in another folder has other bytes.
    """
    model.doc_string = ""
    del model.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        for part in (function, *function.value_info):
            del part.metadata_props[:]
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def runner(path: Any) -> Answers:
    """What an ONNX file answers, by onnxruntime on the CPU.

    Args:
        path: the file.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def answer(batch: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.asarray(session.run([OUTPUT], {INPUT: batch})[0])

    return answer


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip_graph(attribute.g)
            for graph in attribute.graphs:
                _strip_graph(graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself and of torchvision, which is not installed and not needed."""
    logger = logging.getLogger(_NOISE)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch's own call of a function that torch has deprecated; there is nothing to change here.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        logger.setLevel(before)
