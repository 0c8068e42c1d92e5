"""Layers with deterministic gradients compute what those that they replace compute."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from radfuse.ct.network import resnet18
from radfuse.engine.training.deterministic import Mean, SeparateMaxPool3d, replace_layers
from radfuse.engine.training.tasks.segmentation import DiceCE
from radfuse.mri.network import unet
from radfuse.xray.network import resnet50

SIZES = st.tuples(*[st.integers(4, 9)] * 3)
PADDED = st.tuples(*[st.sampled_from([(2, 0), (2, 1), (3, 0), (3, 1), (1, 0)])] * 3)


@given(SIZES, PADDED, st.tuples(*[st.integers(1, 3)] * 3), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_max_pooling_in_two_steps_gives_the_same_values_and_gradients_ties_included(
    size, windows, stride, ceil, seed
):
    kernel, padding = zip(*windows, strict=True)
    pool = nn.MaxPool3d(kernel, stride, padding, ceil_mode=ceil)
    # Whole numbers of a few values: most windows have ties.
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(-2, 3, (2, 3, *size), generator=draw).float()
    one, two = image.clone().requires_grad_(), image.clone().requires_grad_()
    expected, got = pool(one), SeparateMaxPool3d(pool)(two)
    assert torch.equal(expected, got)
    weights = torch.randn(expected.shape, generator=draw)
    (expected * weights).sum().backward()
    (got * weights).sum().backward()
    assert torch.allclose(one.grad, two.grad, atol=1e-6)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_mean_is_adaptive_pooling_to_one(axes):
    image = torch.randn(2, 3, *[5] * axes)
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1](1)
    assert torch.allclose(Mean()(image), pool(image), atol=1e-6)


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (lambda: resnet18(1, 2, 0.0), (2, 1, 32, 32, 32), ["maxpool", "avgpool"]),
        (lambda: resnet50(14, 0.0), (2, 3, 64, 64), ["avgpool"]),
        (lambda: unet(4, 4, 0.0), (2, 4, 32, 32, 32), []),
    ],
)
def test_our_networks_keep_their_weights_and_answers(network, shape, expected):
    torch.manual_seed(0)
    made = network().eval()
    names, image = list(made.state_dict()), torch.randn(shape)
    with torch.no_grad():
        before = made(image)
        assert sorted(replace_layers(made)) == sorted(expected)
        assert torch.allclose(made(image), before, atol=1e-5)
    assert list(made.state_dict()) == names
    left = {type(layer) for layer in made.modules()}
    assert not left & {nn.MaxPool3d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d}
    assert replace_layers(made) == []


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0])])
def test_the_loss_of_segmentations_keeps_its_value_and_gradient_without_what_cuda_sums_in_any_order(weights):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=draw, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 5, 6), generator=draw)
    loss = DiceCE(weights)
    expected = loss(logits, target)
    assert "NllLoss" in "".join(steps(expected))
    wanted, *_ = torch.autograd.grad(expected, logits)
    assert replace_layers(loss) == ["cross_entropy"]
    found = loss(logits, target)
    assert "NllLoss" not in "".join(steps(found))
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(found, logits)[0], wanted, atol=1e-7)


def steps(value):
    """Names of the backward passes that a value's gradient goes through."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        step = waiting.pop()
        if step is not None and step not in seen:
            seen.add(step)
            waiting += [one for one, _ in step.next_functions]
    return {step.name() for step in seen}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: deterministic gradients not shown")
def test_two_steps_on_a_gpu_have_the_same_bits():
    def gradients():
        torch.manual_seed(0)
        network = resnet18(1, 1, 0.0)
        replace_layers(network)
        network.to("cuda")
        network(torch.randn(4, 1, 32, 32, 32).cuda()).sum().backward()
        return [parameter.grad.cpu() for parameter in network.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(one, two) for one, two in zip(gradients(), gradients(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
