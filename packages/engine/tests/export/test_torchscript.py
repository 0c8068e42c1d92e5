from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from exportables import CARD
from tiny_graphs import classifier, segmenter
from torch import nn

from radfuse.engine.export import torchscript
from radfuse.engine.export.cards import UntrustedExport, card_text
from radfuse.engine.export.graph import ExportGraph, StillTraining
from radfuse.engine.export.torchscript import load_torchscript, torchscript_bytes


@pytest.fixture
def exported(tmp_path: Path, tiny_classifier: ExportGraph) -> Path:
    """A TorchScript file with its card."""
    data = torchscript_bytes(tiny_classifier, torch.rand(2, 3, 32, 32))
    path = tmp_path / "xray_torchscript.pt"
    path.write_bytes(data)
    path.with_suffix(".json").write_text(card_text(CARD, hashlib.sha256(data).hexdigest(), None, {}))
    return path


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_is_answered_as_the_network_does(
    exported: Path, tiny_classifier: ExportGraph, batch: int
) -> None:
    image = torch.rand(batch, 3, 32, 32)
    torch.testing.assert_close(load_torchscript(exported)(image), tiny_classifier(image))


def test_bytes_are_the_same_whatever_was_traced_before() -> None:
    image, volume = torch.rand(2, 3, 32, 32), torch.rand(2, 4, 32, 32, 32)
    first = torchscript_bytes(classifier(), image)
    other = torchscript_bytes(segmenter(), volume)
    assert torchscript_bytes(classifier(), image) == first
    assert torchscript_bytes(segmenter(), volume) == other
    assert torchscript_bytes(classifier(seed=1), image) != first


def test_changed_file_is_refused_before_torch_reads_it(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(exported.read_bytes())
    data[len(data) // 2] ^= 1
    exported.write_bytes(data)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("torch was given the changed file"))
    with pytest.raises(UntrustedExport, match=r"xray_torchscript\.pt: expected the file with digest"):
        load_torchscript(exported)


def test_file_without_a_card_is_refused(exported: Path) -> None:
    exported.with_suffix(".json").unlink()
    with pytest.raises(UntrustedExport, match=r"xray_torchscript\.json"):
        load_torchscript(exported)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"format": 1, "digest_sha256": 7}', b"\x00\xff", b"[" * 10**5]
)
def test_file_with_a_card_that_is_none_is_refused(exported: Path, text: bytes) -> None:
    exported.with_suffix(".json").write_bytes(text)
    with pytest.raises(UntrustedExport, match=r"xray_torchscript\.json"):
        load_torchscript(exported)


def test_network_in_training_mode_is_refused(tiny_classifier: ExportGraph) -> None:
    with pytest.raises(StillTraining):
        torchscript_bytes(tiny_classifier.train(), torch.rand(2, 3, 32, 32))


def test_nothing_warns_of_deprecation(recwarn: pytest.WarningsRecorder, exported: Path) -> None:
    load_torchscript(exported)
    torchscript.runner(exported)
    torchscript_bytes(nn.Linear(2, 1).eval(), torch.rand(2, 2))
    assert [str(warning.message) for warning in recwarn] == []
