"""A manager over a small state, and runs of a few epochs by it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ckptcore import CheckpointManager, load
from ckptcore.layouts import Layout, plain


def state(value: float = 0.0, size: int = 4) -> dict[str, Any]:
    return {"model_state_dict": {"w": torch.full((size,), value)}, "optimizer_state_dict": {"lr": 0.1}}


def weight(path: Path) -> float:
    return float(load(path)["model_state_dict"]["w"][0])


def opened(folder: Path, layout: Layout | None = None, **more: Any) -> CheckpointManager:
    return CheckpointManager(
        folder,
        layout or plain("loss", "min", last=2),
        **{"asynchronous": False, "handle_signals": False} | more,
    )


def run(
    folder: Path, losses: list[float], layout: Layout | None = None, resume: str | Path = "auto", **more: Any
) -> str:
    """Train for as many epochs as there are losses; returns the run's key."""
    with opened(folder, layout, **more) as manager:
        found = manager.resume(resume)
        first = 0 if found is None else found.epochs_finished or 0
        for epoch, loss in enumerate(losses, first):
            manager.step(state(epoch + 1), epoch=epoch, metrics={"loss": loss})
        assert manager.run_key is not None
        return manager.run_key


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


def bytes_on_disk(folder: Path) -> int:
    found = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in (path.stat() for path in folder.glob("*.pt"))}
    return sum(found.values())


class Gate:
    """Holds the writer thread between two of its steps."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        self.entered, self.free = threading.Event(), threading.Event()
        self.running = self.most = 0

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.entered.set()
        assert self.free.wait(20)
        result = self.call(*args, **named)
        self.running -= 1
        return result
