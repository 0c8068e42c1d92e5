"""Every tool that reads a checkpoint, tried on one file."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch

import ckptcore
from ckptcore.cards import check_version
from ckptcore.comparing import compare
from ckptcore.diffing import diff
from ckptcore.errors import CheckpointError
from ckptcore.exporting import export_weights
from ckptcore.importing import import_checkpoint


def make_bench(folder: Path) -> Path:
    """A folder with a good file, for `use_every_tool`."""
    ckptcore.save(folder / "good.pt", {"model_state_dict": torch.nn.Linear(2, 2).state_dict()})
    return folder


def use_every_tool(bench: Path, data: bytes) -> None:
    """Import, export, compare, promote and load the weights of a file; what comes out is whole."""
    path, out = bench / "victim.pt", bench / "out"
    path.write_bytes(data)
    with suppress(CheckpointError):
        assert ckptcore.verify(import_checkpoint(path, out)).ok
    with suppress(CheckpointError):
        assert ckptcore.verify(export_weights(path, out / "x.safetensors", overwrite=True).path).ok
    for a, b in ((path, bench / "good.pt"), (bench / "good.pt", path)):
        with suppress(CheckpointError):
            assert not diff(a, b).identical
    model = torch.nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        ckptcore.load_weights(model, path)
    except CheckpointError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with suppress(CheckpointError):
        assert check_version(ckptcore.promote(path, bump="minor", directory=out)) == ()
    assert len(compare([path]).rows) == 1
    assert not out.exists() or not any(name.startswith(".") for name in os.listdir(out))
    shutil.rmtree(out, ignore_errors=True)
