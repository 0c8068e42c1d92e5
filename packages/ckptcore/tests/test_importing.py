"""Foreign checkpoints become native ones: the same weights, the same values, their origin in the header."""

import hashlib
import os
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import ckptcore
from ckptcore import durable
from ckptcore.errors import (
    DamagedCheckpoint,
    DiskFull,
    RefusedContent,
    UnknownFormat,
    UnsavableValue,
    UsageError,
)
from ckptcore.importing import import_checkpoint
from ckptcore.weights import load_weights, model_digest


def make(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    return model, optimizer, scheduler


def seeds():
    """What each training of its own wrote (staged fine-tuning, trainer node, saved_models folder, resumable
    segmentation), with what `epochs_finished` has to be.
    """
    model, optimizer, scheduler = make()
    weights, state = model.state_dict(), optimizer.state_dict()
    return {
        "staged": (
            {
                "epoch": 12,
                "model_state_dict": weights,
                "optimizer_state_dict": state,
                "val_metrics": {"f1": 0.81, "sensitivity": 0.8, "specificity": 0.9, "accuracy": 0.85},
                "optimal_threshold": 0.37,
                "history": {"train_loss": [0.7], "val_loss": [0.6], "val_f1": [0.81], "separation": [0.2]},
            },
            12,
        ),
        "node": (
            {
                "epoch": 10,
                "model_state_dict": weights,
                "optimizer_state_dict": state,
                "loss": 0.25,
                "epoch_losses": [0.5, 0.25],
            },
            10,
        ),
        "saved_models": (
            {
                "epoch": 14,
                "model_state_dict": weights,
                "optimizer_state_dict": state,
                "scheduler_state_dict": scheduler.state_dict(),
                "train_loss": 0.2,
                "val_loss": 0.3,
                "val_auc": 0.79,
                "best_metric": 0.79,
                "hyperparameters": {"lr": 1e-3},
                "timestamp": "2026-03-30T10:00:00",
            },
            15,
        ),
        "segmentation": (
            {
                "epoch": 20,
                "model_state_dict": weights,
                "optimizer_state_dict": state,
                "scheduler_state_dict": scheduler.state_dict(),
                "history": {"train_loss": [0.5], "val_dice": [0.7], "best_val_dice": 0.66, "best_epoch": 13},
            },
            20,
        ),
    }


def assert_same(left, right, path=""):
    """Deep equality that knows tensors."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right) and left.dtype == right.dtype, path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for index, item in enumerate(left):
            assert_same(item, right[index], f"{path}/{index}")
    else:
        assert left == right, path


@pytest.mark.parametrize("layout", ["staged", "node", "saved_models", "segmentation"])
def test_the_layouts_of_torch_save_come_over_with_every_value(tmp_path, layout):
    state, finished = seeds()[layout]
    source = tmp_path / "old_best.pth"
    torch.save(state, source)
    target = import_checkpoint(source, tmp_path / "native")
    assert target == tmp_path / "native" / "old_best.pth"
    found = ckptcore.load(target)
    assert_same(state, {key: found[key] for key in state})
    assert found.epochs_finished == ckptcore.load(source).epochs_finished == finished
    assert found.header.metadata["imported_from"] == {
        "format": "torch",
        "file_name": "old_best.pth",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    assert found.header.model_digest == model_digest(state["model_state_dict"])
    assert ckptcore.verify(target).ok and torch.load(target)["epoch"] == state["epoch"]
    assert str(tmp_path) not in target.read_bytes().decode("latin-1")


def test_an_imported_optimizer_and_scheduler_go_on_where_they_were(tmp_path):
    state, _ = seeds()["saved_models"]
    torch.save(state, tmp_path / "a.pth")
    found = ckptcore.load(import_checkpoint(tmp_path / "a.pth", tmp_path / "native"))
    model, optimizer, scheduler = make(5)
    model.load_state_dict(found["model_state_dict"])
    optimizer.load_state_dict(found["optimizer_state_dict"])
    scheduler.load_state_dict(found["scheduler_state_dict"])
    assert_same(optimizer.state_dict(), state["optimizer_state_dict"])


def test_row_3_7_an_imported_lightning_checkpoint_stays_loadable_by_lightning(tmp_path):
    lightning = pytest.importorskip(
        "lightning.pytorch", reason="the adapter's other side is Lightning itself"
    )

    class Module(lightning.LightningModule):
        def __init__(self, width=4):
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Linear(3, width)

        def training_step(self, batch, index):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3)), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = dict.fromkeys(
            ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
        )
        trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        module = Module(width=5)
        trainer.fit(module, data)
        trainer.save_checkpoint(tmp_path / "best-epoch02.ckpt")
    target = import_checkpoint(tmp_path / "best-epoch02.ckpt", tmp_path / "native")
    found = ckptcore.load(target)
    original = torch.load(tmp_path / "best-epoch02.ckpt")
    assert set(original) <= set(found)
    assert found.header.metadata["imported_from"]["format"] == "lightning"
    assert found.header.metadata["epoch_counts"] == "index"
    assert found.epochs_finished == original["epoch"] + 1
    again = Module.load_from_checkpoint(target)
    assert again.hparams.width == 5 and torch.equal(again.net.weight, module.net.weight)
    fresh = Module(width=5)
    assert load_weights(fresh, target).fits and torch.equal(fresh.net.weight, module.net.weight)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_plain_state_dict_goes_under_model_state_dict(tmp_path, legacy):
    model, _, _ = make()
    torch.save(model.state_dict(), tmp_path / "weights.pt", _use_new_zipfile_serialization=not legacy)
    found = ckptcore.load(import_checkpoint(tmp_path / "weights.pt", tmp_path / "native"))
    assert_same(dict(model.state_dict()), dict(found["model_state_dict"]))
    assert found.header.metadata["epoch_counts"] == "unknown" and found.epochs_finished is None
    assert found.header.metadata["imported_from"]["format"] in ("state-dict", "torch-legacy")


def test_safetensors_become_a_checkpoint_with_their_metadata(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    model, _, _ = make()
    save_file(model.state_dict(), tmp_path / "weights.safetensors", {"format": "pt", "note": "x"})
    target = import_checkpoint(tmp_path / "weights.safetensors", tmp_path / "native")
    assert target.name == "weights.pth"
    found = ckptcore.load(target)
    assert found.header.model_digest == model_digest(model)
    assert found.header.metadata["safetensors"] == {"format": "pt", "note": "x"}


def test_other_names_of_the_same_pieces_are_renamed_and_the_header_says_so(tmp_path):
    model, optimizer, scheduler = make()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": {"model": "resnet", "lr": 0.1},
    }
    torch.save(state, tmp_path / "a.pth")
    found = ckptcore.load(import_checkpoint(tmp_path / "a.pth", tmp_path / "native"))
    assert set(found) - {"ckptcore_format"} == {
        "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "epoch", "args",
    }  # fmt: skip
    assert found.header.metadata["imported_from"]["renamed"] == {
        "model_state_dict": "model",
        "optimizer_state_dict": "optimizer",
        "scheduler_state_dict": "lr_scheduler",
    }
    assert found.epochs_finished is None


@pytest.mark.parametrize(("counts", "finished"), [("index", 4), ("finished", 3), ("unknown", None)])
def test_what_epoch_counts_can_be_said(tmp_path, counts, finished):
    torch.save({"model": make()[0].state_dict(), "epoch": 3}, tmp_path / "a.pth")
    target = import_checkpoint(tmp_path / "a.pth", tmp_path / "native", epoch_counts=counts)
    assert ckptcore.read_header(target).epochs_finished == finished
    with pytest.raises(UsageError, match="index, finished, unknown"):
        import_checkpoint(tmp_path / "a.pth", tmp_path / "b", epoch_counts="from one")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_what_would_run_code_is_refused_with_the_names_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": make()[0].state_dict(), "x": Evil()}, tmp_path / "a.pth")
    with pytest.raises(RefusedContent, match=r"mkdir") as caught:
        import_checkpoint("a.pth", "native")
    assert any("mkdir" in name for name in caught.value.names)
    torch.save({"model_state_dict": make()[0].state_dict(), "p": Path("a"), "n": numpy.float64(1)}, "b.pth")
    with pytest.raises(RefusedContent, match="pathlib"):
        import_checkpoint("b.pth", "native")
    assert sorted(os.listdir()) == ["a.pth", "b.pth"]


def test_a_value_that_has_no_place_is_named(tmp_path):
    state = {"model_state_dict": make()[0].state_dict(), "cache": {"mask": torch.eye(3).to_sparse()}}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises((UnsavableValue, RefusedContent), match=r"cache/mask|sparse_tensor"):
        import_checkpoint(tmp_path / "a.pth", tmp_path / "native")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_damaged_and_unknown_files_are_refused(tmp_path):
    source = tmp_path / "a.pth"
    torch.save({"model_state_dict": OrderedDict(weight=torch.zeros(5000))}, source)
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="CRC"):
        import_checkpoint(source, tmp_path / "native")
    source.write_text("hello")
    with pytest.raises(UnknownFormat):
        import_checkpoint(source, tmp_path / "native")
    torch.save({"epoch": 3}, source)
    with pytest.raises(UnknownFormat, match="no weights"):
        import_checkpoint(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()


def test_a_native_file_is_no_import_and_a_damaged_native_file_no_foreign_one(tmp_path):
    source = ckptcore.save(tmp_path / "a.pth", {"model_state_dict": make()[0].state_dict()})
    with pytest.raises(UsageError, match="already"):
        import_checkpoint(source, tmp_path / "native")
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint):
        import_checkpoint(source, tmp_path / "native")


def test_nothing_is_overwritten_not_even_the_source(tmp_path):
    torch.save(make()[0].state_dict(), tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        import_checkpoint(tmp_path / "a.pth", tmp_path)
    assert (tmp_path / "a.pth").read_bytes() == before
    assert import_checkpoint(tmp_path / "a.pth", tmp_path, name="b.ckpt").name == "b.ckpt"


@pytest.mark.parametrize("name", ["../b.pth", "/tmp/b.pth", "b.txt", ".b.pth", "", "sub/b.pth"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    torch.save(make()[0].state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="file name"):
        import_checkpoint(tmp_path / "a.pth", tmp_path / "native", name=name)


def test_a_full_disk_and_a_rival_leave_nothing_half_made(tmp_path, monkeypatch):
    torch.save(make()[0].state_dict(), tmp_path / "a.pth")
    with monkeypatch.context() as patch:
        patch.setattr(durable, "free_bytes", lambda folder: 10)
        with pytest.raises(DiskFull):
            import_checkpoint(tmp_path / "a.pth", tmp_path / "native")
    assert os.listdir(tmp_path / "native") == []
    real = durable.claim

    def rival(temporary, target):
        target.write_bytes(b"mine")
        real(temporary, target)

    monkeypatch.setattr(durable, "claim", rival)
    with pytest.raises(UsageError, match="just now"):
        import_checkpoint(tmp_path / "a.pth", tmp_path / "native")
    assert os.listdir(tmp_path / "native") == ["a.pth"]
    assert (tmp_path / "native" / "a.pth").read_bytes() == b"mine"


def test_row_4_13_a_file_from_a_gpu_is_imported_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    torch.save(make()[0].state_dict(), tmp_path / "gpu.pth")
    monkeypatch.undo()
    found = torch.load(import_checkpoint(tmp_path / "gpu.pth", tmp_path / "native"))
    assert all(tensor.device.type == "cpu" for tensor in found["model_state_dict"].values())


def test_importing_the_module_needs_no_torch():
    script = "import sys, ckptcore.importing, ckptcore.weights; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
