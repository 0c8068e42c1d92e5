from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from radfuse.engine.errors import ParityError
from radfuse.engine.export import onnx, torchscript
from radfuse.engine.export.graph import ExportGraph
from radfuse.engine.export.parity import Answers, Array, largest_difference, other_size, probes, resized

SIZES = st.integers(1, 40)


class OtherWhenExported(nn.Module):
    """Answers a little more while the exporter looks at it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2, 3)) + (0.01 if torch.compiler.is_compiling() else 0.0)


class OtherInLargeBatches(nn.Module):
    """Depends on the batch in Python, which a trace fixes as it was."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        means = image.mean((1, 2, 3))
        return means if int(image.shape[0]) < 5 else means + 0.01


def samples(*shape: int, count: int = 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=random) for _ in range(count)]


def exactly(graph: nn.Module) -> Answers:
    return lambda image: graph(torch.from_numpy(image)).detach().numpy()


def test_probes_are_every_sample_and_batches_of_one_two_and_five(tiny_classifier: ExportGraph) -> None:
    found = probes(tiny_classifier, samples(3, 32, 32), None)
    assert [probe.image.shape[0] for probe in found] == [1, 1, 1, 1, 2, 5]
    assert {probe.image.shape[1:] for probe in found} == {(3, 32, 32)}


def test_probes_of_a_graph_with_dynamic_sizes_have_another_size_too(tiny_segmenter: ExportGraph) -> None:
    found = probes(tiny_segmenter, samples(4, 32, 32, 32), 16)
    assert [probe.image.shape[2:] for probe in found] == [(32, 32, 32)] * 3 + [(32, 32, 48)] * 3


def test_same_answers_differ_by_nothing(tiny_classifier: ExportGraph) -> None:
    expected = probes(tiny_classifier, samples(3, 32, 32), None)
    assert largest_difference("a.onnx", exactly(tiny_classifier), expected, 1e-6) == 0


def test_answer_beyond_the_tolerance_is_refused_with_its_size(tiny_classifier: ExportGraph) -> None:
    expected = probes(tiny_classifier, samples(3, 32, 32), None)
    shifted: Answers = lambda image: exactly(tiny_classifier)(image) + np.float32(0.001)  # noqa: E731
    with pytest.raises(ParityError, match=r"xray\.onnx differs from its checkpoint by 0\.001"):
        largest_difference("xray.onnx", shifted, expected, 1e-4)
    assert largest_difference("xray.onnx", shifted, expected, 1e-2) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("wrong", [lambda image: image[:, :, 0, 0], lambda image: image[:1, :, 0, 0]])
def test_answer_of_another_shape_is_refused(
    tiny_classifier: ExportGraph, wrong: Callable[[Array], Array]
) -> None:
    expected = probes(tiny_classifier, samples(3, 32, 32), None)[-1:]
    reshaped: Answers = lambda image: wrong(image)[:, :2]  # noqa: E731
    with pytest.raises(ParityError, match="the checkpoint with"):
        largest_difference("a.onnx", reshaped, expected, 1e-4)


def test_answer_that_is_no_number_is_refused(tiny_classifier: ExportGraph) -> None:
    expected = probes(tiny_classifier, samples(3, 32, 32), None)
    nan: Answers = lambda image: exactly(tiny_classifier)(image) * np.float32(np.nan)  # noqa: E731
    with pytest.raises(ParityError, match="nan"):
        largest_difference("a.onnx", nan, expected, 1e-4)


def test_graph_that_acts_otherwise_when_exported_is_refused(tmp_path: Path) -> None:
    graph = OtherWhenExported().eval()
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx.onnx_bytes(graph, torch.stack(samples(3, 8, 8)), None, {}))
    with pytest.raises(ParityError, match=r"by 0\.01"):
        largest_difference(path.name, onnx.runner(path), probes(graph, samples(3, 8, 8), None), 1e-4)


def test_graph_that_acts_otherwise_in_a_batch_never_traced_is_refused(tmp_path: Path) -> None:
    graph = OtherInLargeBatches().eval()
    path = tmp_path / "a.pt"
    path.write_bytes(torchscript.torchscript_bytes(graph, torch.stack(samples(3, 8, 8))))
    with pytest.raises(ParityError, match=r"by 0\.01 for an input of \(5, 3, 8, 8\)"):
        largest_difference(path.name, torchscript.runner(path), probes(graph, samples(3, 8, 8), None), 1e-4)


@given(st.lists(SIZES, min_size=2, max_size=3), st.lists(SIZES, min_size=3, max_size=3))
def test_resized_image_has_that_size_and_keeps_its_middle(size: list[int], wanted: list[int]) -> None:
    wanted = wanted[: len(size)]
    image = torch.rand(2, *size) + 1
    found = resized(image, wanted)
    assert found.shape == (2, *wanted)
    kept = [min(pair) for pair in zip(size, wanted, strict=True)]
    torch.testing.assert_close(found.sum(), resized(image, kept).sum())


@given(st.lists(st.integers(1, 6), min_size=2, max_size=3), st.sampled_from([1, 8, 16]))
def test_other_size_is_another_multiple_of_the_step(factors: list[int], step: int) -> None:
    size = [factor * step for factor in factors]
    found = other_size(size, step)
    assert found != tuple(size) and len(found) == len(size)
    assert all(value % step == 0 and value >= 2 * step for value in found)
