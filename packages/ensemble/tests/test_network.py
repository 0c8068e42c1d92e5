from __future__ import annotations

import numpy as np
import pytest
import torch
from said_and_true import RECIPE, patients

from radfuse.ensemble import stacking
from radfuse.ensemble.network import EnsembleNetwork, MetaLearner


def network() -> EnsembleNetwork:
    outputs, truth = patients(100)
    found = EnsembleNetwork(5, 3, 2, 500)
    found.take(stacking.fit(outputs, truth, RECIPE).stack, outputs.owner)
    return found.eval()


def test_row_4_6_the_meta_learner_has_two_layers_and_about_50_000_parameters() -> None:
    """Fourteen findings, three of the nodules, three volumes; three modalities; four diseases."""
    meta = MetaLearner(20, 3, 4, 50_000)
    layers = [layer for layer in meta.modules() if isinstance(layer, torch.nn.Linear)]
    count = sum(parameter.numel() for parameter in meta.parameters())
    assert len(layers) == 2
    assert abs(count - 50_000) < 50
    assert count == meta.width * (20 + 3 + 12 + 1) + (meta.width + 1) * 4


@pytest.mark.parametrize("shape", [(1, 1, 1), (14, 2, 7), (200, 5, 30)])
def test_whatever_the_inputs_the_count_stays(shape: tuple[int, int, int]) -> None:
    count = sum(parameter.numel() for parameter in MetaLearner(*shape, 50_000).parameters())
    assert count == pytest.approx(50_000, rel=0.01)


def test_the_graph_answers_as_the_fitted_stack_does() -> None:
    outputs, truth = patients(100)
    stack = stacking.fit(outputs, truth, RECIPE).stack
    with torch.no_grad():
        scaled, evidence, mask = network().said(torch.as_tensor(outputs.inputs, dtype=torch.float32))
        average = network().average(evidence, mask)
    assert scaled.numpy() == pytest.approx(stack.scaled(outputs), abs=1e-5)
    assert evidence.numpy() == pytest.approx(stack.evidence(outputs), abs=1e-5)
    assert average.numpy() == pytest.approx(stack.average(outputs), abs=1e-5)


def test_an_untrained_meta_learner_changes_nothing() -> None:
    found, inputs = network(), torch.as_tensor(patients(20)[0].inputs, dtype=torch.float32)
    with torch.no_grad():
        without = found(inputs)
        found.corrects.fill_(1.0)
        assert torch.equal(found(inputs), without)


def test_what_a_lacking_modality_holds_changes_nothing() -> None:
    outputs, _ = patients(50)
    inputs = torch.as_tensor(outputs.inputs, dtype=torch.float32)
    garbage = inputs.clone()
    lacking = torch.as_tensor(outputs.mask[:, outputs.owner] == 0)
    garbage[:, :5][lacking] = 1e6
    found = network()
    torch.nn.init.normal_(found.meta.output.weight)
    found.corrects.fill_(1.0)
    with torch.no_grad():
        assert torch.equal(found(garbage), found(inputs))


def test_extreme_numbers_stay_probabilities() -> None:
    inputs = torch.tensor([[1e30, -1e30, 1e30, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.float32)
    with torch.no_grad():
        found = network()(inputs).numpy()
    assert np.isfinite(found).all() and (found > 0).all() and (found < 1).all()
