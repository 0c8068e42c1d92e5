from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_graphs import classifier
from torch import nn

from radfuse.engine.export.graph import ExportGraph, StillTraining
from radfuse.engine.export.onnx import OPSET, dynamic_shapes, onnx_bytes

METADATA = {"name": "xray", "version": "1.0.0", "labels_sha256": "ab"}
EXAMPLE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SAME_AGAIN = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from tiny_graphs import classifier
from radfuse.engine.export.onnx import onnx_bytes
metadata = {"version": "1.0.0", "name": "xray", "labels_sha256": "ab"}
print(hashlib.sha256(onnx_bytes(classifier(), torch.ones(2, 3, 32, 32), None, metadata)).hexdigest())
"""


@pytest.fixture(scope="module")
def classifier_onnx() -> bytes:
    return onnx_bytes(classifier(), EXAMPLE, None, METADATA)


@pytest.fixture(scope="module")
def segmenter_onnx(tiny_segmenter: ExportGraph) -> bytes:
    return onnx_bytes(tiny_segmenter, torch.rand(2, 4, 32, 32, 32), 16, {})


def session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def answer(data: bytes, image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(session(data).run(["output"], {"input": image.numpy()})[0]))


def test_file_has_one_input_and_one_output_of_opset_20(classifier_onnx: bytes) -> None:
    model = onnx.load_from_string(classifier_onnx)
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert OPSET == 20


def test_weights_are_in_the_one_file(classifier_onnx: bytes) -> None:
    model = onnx.load_from_string(classifier_onnx)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_any_batch_is_answered_as_the_network_does(classifier_onnx: bytes, batch: int) -> None:
    image = torch.rand(batch, 3, 32, 32)
    torch.testing.assert_close(answer(classifier_onnx, image), classifier()(image))


@pytest.mark.parametrize("size", [(32, 32, 32), (32, 48, 64), (48, 32, 16)])
def test_any_multiple_of_the_step_is_answered_as_the_network_does(
    segmenter_onnx: bytes, tiny_segmenter: ExportGraph, size: tuple[int, ...]
) -> None:
    image = torch.rand(1, 4, *size)
    torch.testing.assert_close(answer(segmenter_onnx, image), tiny_segmenter(image), atol=1e-4, rtol=0)


def test_dynamic_axes_are_named_with_their_step(segmenter_onnx: bytes) -> None:
    shape = onnx.load_from_string(segmenter_onnx).graph.input[0].type.tensor_type.shape
    names = [dim.dim_param or dim.dim_value for dim in shape.dim]
    assert names == ["batch", 4, "16*depth", "16*height", "16*width"]


def test_file_holds_no_path_and_no_source_code(classifier_onnx: bytes, segmenter_onnx: bytes) -> None:
    here = Path(__file__).resolve()
    traces = [
        here.parent,
        Path.cwd(),
        Path.home(),
        tempfile.gettempdir(),
        sys.prefix,
        "site-packages",
        ".py",
        "forward",
    ]
    for data in (classifier_onnx, segmenter_onnx):
        assert [trace for trace in traces if os.fsencode(str(trace)) in data] == []


def test_metadata_is_what_was_given_and_nothing_else(classifier_onnx: bytes) -> None:
    assert session(classifier_onnx).get_modelmeta().custom_metadata_map == METADATA
    model = onnx.load_from_string(classifier_onnx)
    values = [
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
        model.graph,
    ]
    assert [value.name for value in values if value.metadata_props or value.doc_string] == []


def test_bytes_are_identical_for_two_exports_whatever_the_example(classifier_onnx: bytes) -> None:
    assert onnx_bytes(classifier(), torch.zeros(3, 3, 32, 32), None, METADATA) == classifier_onnx


def test_bytes_are_identical_in_another_process_and_folder(classifier_onnx: bytes, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", SAME_AGAIN, str(Path(__file__).parent / "helpers")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == hashlib.sha256(classifier_onnx).hexdigest()


def test_network_in_training_mode_is_refused(tiny_classifier: ExportGraph) -> None:
    tiny_classifier.get_submodule("network.3").train()
    with pytest.raises(StillTraining, match=r"network\.3"):
        onnx_bytes(tiny_classifier, EXAMPLE, None, {})


@pytest.mark.parametrize(
    ("shape", "step"),
    [((1, 3, 32, 32), None), ((1, 4, 32, 32, 32), 16), ((2, 4, 16, 32, 32), 16), ((2, 4, 32, 40, 32), 16)],
)
def test_example_that_would_fix_an_axis_is_refused(shape: tuple[int, ...], step: int | None) -> None:
    with pytest.raises(ValueError, match="expected an example with a batch of 2 or more"):
        dynamic_shapes(torch.zeros(shape), step)


def test_export_warns_of_nothing_and_logs_nothing(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx_bytes(nn.Linear(2, 1).eval(), torch.rand(2, 2), None, {})
    assert [str(warning.message) for warning in recwarn] == []
    assert [record.message for record in caplog.records if record.levelno >= logging.INFO] == []
    assert capfd.readouterr() == ("", "")
