from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from exportables import CARD, FILES, exportable, samples
from tiny_graphs import classifier
from torch import nn

from radfuse.engine.errors import MissingStage, ParityError, RadfuseError
from radfuse.engine.export.cards import names_digest
from radfuse.engine.export.graph import StillTraining
from radfuse.engine.export.torchscript import load_torchscript
from radfuse.engine.export.writing import write
from radfuse.serving.card import Card

BOTH = ("onnx", "torchscript")


class OtherInLargeBatches(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        means = image.mean((2, 3))
        return means if int(image.shape[0]) < 5 else means + 0.01


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "saved_models" / "exports"
    write(exportable(), folder, BOTH, 1e-4)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_row_4_9_onnx_and_torchscript_answer_real_batches_as_the_checkpoint_does(exports: Path) -> None:
    session = onnxruntime.InferenceSession(exports / FILES["onnx"], providers=["CPUExecutionProvider"])
    traced = load_torchscript(exports / FILES["torchscript"])
    for batch in (1, 2, 5):
        image = torch.stack((samples() * 2)[:batch])
        expected = classifier()(image)
        torch.testing.assert_close(traced(image), expected)
        found = np.asarray(session.run(["output"], {"input": image.numpy()})[0])
        torch.testing.assert_close(torch.from_numpy(found), expected)


def test_each_file_has_a_card_and_nothing_else_is_left(exports: Path) -> None:
    cards = [str(Path(name).with_suffix(".json")) for name in FILES.values()]
    assert names(exports) == sorted([*FILES.values(), *cards])


@pytest.mark.parametrize(("form", "opset"), [("onnx", 20), ("torchscript", None)])
def test_card_describes_the_file_beside_it(exports: Path, form: str, opset: int | None) -> None:
    path = exports / FILES[form]
    card = Card.read(path.with_suffix(".json"))
    assert card.digest_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card.opset == opset
    assert {name: getattr(card, name) for name in CARD} == CARD
    assert card.parity["samples"] == 3 and card.parity["tolerance"] == 1e-4
    assert 0 <= card.parity["max_abs_difference"] <= 1e-4


def test_onnx_file_says_name_version_and_labels_of_itself(exports: Path) -> None:
    session = onnxruntime.InferenceSession(exports / FILES["onnx"], providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert told == {"name": "resnet50", "version": "", "labels_sha256": names_digest(CARD["labels"])}


def test_what_is_written_is_told(tmp_path: Path) -> None:
    (found,) = write(exportable(), tmp_path, ["torchscript"], 1e-4)
    assert (found.name, found.file, found.difference) == ("xray", tmp_path / FILES["torchscript"], 0.0)
    assert found.size == found.file.stat().st_size
    assert names(tmp_path) == ["xray_torchscript.json", "xray_torchscript.pt"]


def test_export_that_answers_otherwise_leaves_no_file(tmp_path: Path) -> None:
    other = exportable(graph=OtherInLargeBatches().eval())
    with pytest.raises(ParityError, match=r"xray_torchscript\.pt differs from its checkpoint by 0\.01"):
        write(other, tmp_path, ["torchscript"], 1e-4)
    assert names(tmp_path) == []


def test_one_format_that_answers_otherwise_keeps_the_other_away_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("radfuse.engine.export.onnx.onnx_bytes", lambda *_: pytest.fail("it is tried first"))
    other = exportable(graph=OtherInLargeBatches().eval())
    with pytest.raises(ParityError):
        write(other, tmp_path, ["torchscript", "onnx"], 1e-4)
    assert names(tmp_path) == []


def test_failed_export_leaves_the_earlier_one_as_it_was(tmp_path: Path) -> None:
    write(exportable(), tmp_path, ["torchscript"], 1e-4)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(ParityError):
        write(exportable(graph=OtherInLargeBatches().eval()), tmp_path, ["torchscript"], 1e-4)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_tolerance_is_what_was_asked_for(tmp_path: Path) -> None:
    write(exportable(graph=OtherInLargeBatches().eval()), tmp_path, ["torchscript"], 0.02)
    card = json.loads((tmp_path / "xray_torchscript.json").read_text())
    assert card["parity"]["max_abs_difference"] == pytest.approx(0.01, rel=1e-3)


def test_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StillTraining):
        write(exportable(graph=classifier().train()), tmp_path, BOTH, 1e-4)
    assert names(tmp_path) == []


def test_no_sample_to_try_it_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="got none"):
        write(exportable(samples=[]), tmp_path, BOTH, 1e-4)


def test_single_sample_is_enough(tmp_path: Path) -> None:
    write(exportable(samples=samples(1)), tmp_path, ["torchscript"], 1e-4)


def test_fields_that_make_no_card_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(RadfuseError, match="is no card"):
        write(exportable(card={**CARD, "thresholds": {"Fracture": 0.5}}), tmp_path, ["torchscript"], 1e-4)
    assert names(tmp_path) == []
