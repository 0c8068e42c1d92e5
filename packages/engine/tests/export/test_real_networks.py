"""The networks of the installed modalities, as large as they are: seconds each, so `make test-slow` alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exportables import CARD
from torch import nn

from radfuse.engine.config import Params
from radfuse.engine.export.exportable import Exportable
from radfuse.engine.export.graph import ExportGraph, Scaling
from radfuse.engine.export.writing import write
from radfuse.engine.modality import modalities

NETWORKS = {
    "xray": ((3, 224, 224), 14, None),
    "ct": ((1, 32, 32, 32), 1, None),
    "mri": ((4, 32, 48, 32), 4, 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
def test_row_4_9_network_answers_alike_in_both_formats(name: str, tmp_path: Path) -> None:
    if name not in modalities():
        pytest.skip(f"the package of {name} is not installed")
    shape, outputs, step = NETWORKS[name]
    one, params = modalities()[name], Params()
    torch.manual_seed(0)
    network = one.network(params.prepare_of(one), params.train_of(one), outputs)
    last: list[nn.Module] = [Scaling([1.5] * outputs, [0.1] * outputs), nn.Sigmoid()]
    if step is not None:
        last = [nn.Identity(), nn.Softmax(dim=1)]
    graph = ExportGraph(one.normalisation(params.prepare_of(one)), network, *last).eval()
    card = {**CARD, "labels": [f"label {i}" for i in range(outputs)], "calibration": {}, "thresholds": {}}
    files = {"onnx": f"{name}_onnx.onnx", "torchscript": f"{name}_torchscript.pt"}
    model = Exportable(name, files, graph, [torch.rand(shape) for _ in range(2)], card, step)
    written = write(model, tmp_path, ["onnx", "torchscript"], 1e-4)
    assert [one.difference < 1e-4 for one in written] == [True, True]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # Batch norms may be folded into convolutions, so ONNX may hold a little less than the checkpoint.
    assert all(3.98 * parameters < one.size < 4.1 * parameters for one in written)
