"""What changed between two checkpoints, without reading a tensor."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import ckptcore
from ckptcore.diffing import ABSENT, FieldChange, Reshaped, diff
from ckptcore.errors import DamagedCheckpoint, UnknownFormat


def state(epoch=1, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return {"epoch": epoch, "model_state_dict": dict(model.state_dict()), "val_metrics": {"f1": 0.5}, **more}


@pytest.fixture
def pair(tmp_path):
    a, b = state(1, note="first"), state(2, val_auc=0.9)
    weights = b["model_state_dict"]
    weights["0.weight"] = weights["0.weight"] + 1
    weights["1.weight"] = torch.zeros(2, 5)
    weights["1.bias"] = weights["1.bias"].half()
    weights["2.bias"] = torch.zeros(1)
    del a["model_state_dict"]["0.bias"]
    return ckptcore.save(tmp_path / "a.pth", a), ckptcore.save(tmp_path / "b.pth", b, {"roles": ["best"]})


def test_tensors_are_told_apart_by_name(pair):
    found = diff(*pair)
    assert found.changed == ("model_state_dict/0.weight",)
    assert found.added == ("model_state_dict/0.bias", "model_state_dict/2.bias")
    assert found.removed == () and found.same == ()
    assert found.reshaped == (
        Reshaped("model_state_dict/1.weight", "float32 (2, 4)", "float32 (2, 5)"),
        Reshaped("model_state_dict/1.bias", "float32 (2,)", "float16 (2,)"),
    )
    assert diff(pair[1], pair[0]).removed == found.added
    assert not found.identical and not found.same_model


def test_values_of_the_header_are_told_apart(pair):
    changes = {change.field: change for change in diff(*pair).metadata}
    assert changes["epoch"] == FieldChange("epoch", 1, 2)
    assert changes["note"] == FieldChange("note", "first", ABSENT)
    assert changes["val_auc"] == FieldChange("val_auc", ABSENT, 0.9)
    assert changes["metadata.roles"] == FieldChange("metadata.roles", ABSENT, ["best"])
    assert "val_metrics.f1" not in changes


def test_equal_states_are_identical_whenever_they_were_written(tmp_path):
    a, b = ckptcore.save(tmp_path / "a.pth", state()), ckptcore.save(tmp_path / "b.pth", state())
    found = diff(a, b)
    assert found.identical and found.same_model and len(found.same) == 4
    assert [change.field for change in found.metadata] == ["created"]


def test_a_changed_history_alone_is_seen(tmp_path):
    a = ckptcore.save(tmp_path / "a.pth", state(history={"loss": [1.0]}))
    b = ckptcore.save(tmp_path / "b.pth", state(history={"loss": [2.0]}))
    found = diff(a, b)
    assert found.same_model and not found.same_values and not found.identical


def test_no_torch_is_needed_and_no_tensor_is_read(pair):
    script = (
        "import sys; from ckptcore.diffing import diff; "
        "diff(*sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, *pair], check=True, timeout=60)


def test_foreign_and_damaged_files_are_refused(pair, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(UnknownFormat, match="ckpt import"):
        diff(pair[0], tmp_path / "foreign.pth")
    data = bytearray(pair[1].read_bytes())
    data[data.rindex(b"model_state_dict/0.weight")] ^= 1
    pair[1].write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="table"):
        diff(*pair)
    pair[1].write_bytes(data[:-1])
    with pytest.raises(DamagedCheckpoint):
        diff(*pair)
