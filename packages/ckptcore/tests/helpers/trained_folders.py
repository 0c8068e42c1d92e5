"""Folders of checkpoints as a manager leaves them, small and quick to make, and ways to spoil them."""

import shutil
import struct
from pathlib import Path
from typing import Any

import torch

import ckptcore
from ckptcore import layouts

SCORES = (0.60, 0.70, 0.90, 0.80, 0.75, 0.70)


def train(directory: Path, run_key: str, scores: tuple[float, ...] = SCORES, **layout: Any) -> Path:
    """A run of a few epochs, a score and a file each; all of them are kept unless ``last`` says otherwise."""
    rules = layouts.plain("val_auc", "max", **({"last": 10} | layout))
    with ckptcore.CheckpointManager(directory, rules, run_key=run_key, handle_signals=False) as manager:
        for epoch, score in enumerate(scores):
            state = {"model_state_dict": {"w": torch.full((64, 8), score), "b": torch.zeros(8)}}
            metrics = {"val_auc": score, "val_loss": 1 - score}
            manager.step(state, epoch=epoch, metrics=metrics, final=epoch == len(scores) - 1)
    return directory


def copy_run(source: Path, target: Path) -> Path:
    """A copy of a folder with its hard links."""
    copies: dict[int, Path] = {}
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            continue
        inode = path.stat().st_ino
        if inode in copies:
            place.hardlink_to(copies[inode])
        else:
            shutil.copy(path, place)
            copies[inode] = place
    return target


def flip_tensor(path: Path, score: float) -> None:
    """Change one bit in the weights of a checkpoint of `train`, under this name alone."""
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", score) * 512)] ^= 1
    path.unlink()
    path.write_bytes(data)


def names(directory: Path) -> set[str]:
    """The file names in a folder, hidden ones aside."""
    return {path.name for path in directory.iterdir() if not path.name.startswith(".")}
