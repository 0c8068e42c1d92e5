from __future__ import annotations

import pytest
import torch
from torch import nn

from radfuse.engine.export.graph import ExportGraph, Scaling, StillTraining, require_evaluation


def test_graph_is_normalisation_network_and_activation_in_that_order(tiny_classifier: ExportGraph) -> None:
    image = torch.rand(2, 3, 32, 32)
    graph = tiny_classifier
    logits = graph.network(graph.normalisation(image))
    expected = torch.sigmoid(logits / torch.tensor([1.0, 1.5, 2.0]) + 0.1)
    torch.testing.assert_close(graph(image), expected)


def test_temperature_one_and_bias_zero_change_nothing() -> None:
    logits = torch.linspace(-9, 9, 12).reshape(4, 3)
    torch.testing.assert_close(Scaling([1] * 3, [0] * 3)(logits), logits)


def test_calibration_is_part_of_the_graph_and_does_not_learn() -> None:
    calibration = Scaling([2.0], [0.5])
    assert list(calibration.parameters()) == []
    assert set(calibration.state_dict()) == {"temperature", "bias"}


def test_graph_in_evaluation_mode_is_accepted(tiny_classifier: ExportGraph) -> None:
    require_evaluation(tiny_classifier)


def test_graph_with_one_layer_in_training_mode_is_refused_by_name(tiny_classifier: ExportGraph) -> None:
    tiny_classifier.get_submodule("network.1").train()
    with pytest.raises(StillTraining, match=r"network\.1\. Call \.eval\(\)"):
        require_evaluation(tiny_classifier)


def test_graph_in_training_mode_names_a_few_layers_and_counts_the_rest() -> None:
    with pytest.raises(StillTraining, match=r"the graph itself, .* and 10 more"):
        require_evaluation(nn.Sequential(*(nn.ReLU() for _ in range(12))).train())
