"""Exported weights are what the checkpoint holds, as the safetensors library reads them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import ckptcore
from ckptcore import durable
from ckptcore.errors import DamagedCheckpoint, DiskFull, UnknownFormat, UnsavableValue, UsageError
from ckptcore.exporting import export_weights
from ckptcore.weights import load_weights, model_digest

safe = pytest.importorskip("safetensors", reason="the safetensors library is the judge of these files")


def make(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model.tied = nn.Linear(4, 2)
    model.tied.weight = model[2].weight
    model.narrow = nn.Parameter(torch.randn(3, 5).to(torch.bfloat16))
    model.register_buffer("mask", torch.tensor([True, False, True]))
    return model


@pytest.fixture
def checkpoint(tmp_path):
    model = make(1)
    state = {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": torch.optim.AdamW(model.parameters()).state_dict(),
        "epoch": 4,
        "val_auc": 0.9,
    }
    return ckptcore.save(tmp_path / "net_best.pth", state)


def test_the_real_library_reads_every_tensor_of_the_model_and_nothing_else(checkpoint, tmp_path):
    from safetensors.torch import load_file

    report = export_weights(checkpoint, tmp_path / "out.safetensors")
    found, expected = load_file(tmp_path / "out.safetensors"), make(1).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert report.tensors == len(expected)
    assert report.nbytes == sum(t.numel() * t.element_size() for t in expected.values())
    assert report.model_digest == model_digest(make(1))


def test_tied_weights_are_written_twice_and_listed(checkpoint, tmp_path):
    report = export_weights(checkpoint, tmp_path / "out.safetensors")
    assert report.tied == (("2.weight", "tied.weight"),)
    with safe.safe_open(tmp_path / "out.safetensors", "pt") as file:
        told = json.loads(file.metadata()["ckptcore"])
        assert list(file.metadata()) == ["ckptcore"]
        assert torch.equal(file.get_tensor("2.weight"), file.get_tensor("tied.weight"))
    assert told["tied"] == [["2.weight", "tied.weight"]]
    assert told["epochs_finished"] == 5 and told["metrics"]["val_auc"] == 0.9
    assert told["model_digest"] == report.model_digest and told["source"] == "net_best.pth"


def test_exported_weights_give_the_same_model_back(checkpoint, tmp_path):
    export_weights(checkpoint, tmp_path / "out.safetensors")
    model = make(2)
    assert load_weights(model, tmp_path / "out.safetensors").fits
    assert model_digest(model) == ckptcore.read_header(checkpoint).model_digest
    assert ckptcore.verify(tmp_path / "out.safetensors").ok


def test_the_same_weights_make_the_same_bytes(checkpoint, tmp_path):
    export_weights(checkpoint, tmp_path / "a.safetensors")
    export_weights(checkpoint, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("layout", ["plain", "checkpoint", "safetensors"])
def test_foreign_weights_are_exported_too(tmp_path, layout):
    from safetensors.torch import load_file, save_file

    state = {name: value for name, value in make(1).state_dict().items() if not name.startswith("tied")}
    path = tmp_path / ("in.safetensors" if layout == "safetensors" else "in.pth")
    if layout == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if layout == "plain" else {"model": state, "epoch": 1}, path)
    report = export_weights(path, tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors").keys() == state.keys()
    assert report.model_digest == model_digest(state)


def test_a_native_file_is_exported_without_torch(checkpoint, tmp_path):
    script = (
        "import sys; from ckptcore.exporting import export_weights; "
        "export_weights(*sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    target = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", script, checkpoint, target], check=True, timeout=60)
    assert ckptcore.verify(target).ok


def test_an_existing_file_is_replaced_only_when_told(checkpoint, tmp_path):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        export_weights(checkpoint, target)
    assert target.read_bytes() == b"mine"
    export_weights(checkpoint, target, overwrite=True)
    assert ckptcore.verify(target).ok


def test_a_damaged_tensor_stops_the_export_and_leaves_nothing(checkpoint, tmp_path):
    data = bytearray(checkpoint.read_bytes())
    data[data.index(make(1)[0].weight.detach().numpy().tobytes()) + 5] ^= 64
    checkpoint.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=r"0\.weight"):
        export_weights(checkpoint, tmp_path / "out" / "a.safetensors")
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))


def test_what_cannot_be_exported_is_said(checkpoint, tmp_path):
    with pytest.raises(UsageError, match=r"\.safetensors"):
        export_weights(checkpoint, tmp_path / "out.pth")
    ckptcore.save(tmp_path / "none.pth", {"epoch": 1, "tensor": torch.zeros(2)})
    with pytest.raises(UnknownFormat, match="no model"):
        export_weights(tmp_path / "none.pth", tmp_path / "out.safetensors")
    ckptcore.save(tmp_path / "odd.pth", {"model_state_dict": {"w": torch.zeros(2, dtype=torch.complex128)}})
    with pytest.raises(UnsavableValue, match="complex128"):
        export_weights(tmp_path / "odd.pth", tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["net_best.pth", "none.pth", "odd.pth"]


def test_a_full_disk_leaves_nothing_behind(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 10)
    with pytest.raises(DiskFull):
        export_weights(checkpoint, tmp_path / "out.safetensors")
    assert os.listdir(tmp_path) == ["net_best.pth"]
