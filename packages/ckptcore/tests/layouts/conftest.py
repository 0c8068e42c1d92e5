"""A small real training, driven through a manager epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptcore
from ckptcore.layouts import Layout
from ckptcore.manager import CheckpointManager

Metrics = Callable[[int], Mapping[str, float]]
INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))
TARGETS = INPUTS.sum(1, keepdim=True).sin()


@dataclass
class Training:
    """Model, optimizer and scheduler; the epochs are real steps with random noise."""

    model: nn.Module = field(default_factory=lambda: nn.Linear(4, 1))
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.5)

    def state(self) -> dict[str, Any]:
        return ckptcore.capture(model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        ckptcore.restore(checkpoint, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)

    def epoch(self) -> float:
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(INPUTS + 0.01 * torch.randn(INPUTS.shape)), TARGETS)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def run(
        self,
        directory: Path | str | None,
        layout: Layout,
        epochs: int,
        metrics: Metrics | None = None,
        *,
        stages: Mapping[int, str] | None = None,
        after_save: Callable[[int, CheckpointManager], None] | None = None,
        **options: Any,
    ) -> CheckpointManager:
        """Train to ``epochs`` in all, resuming what the folder holds; stages are told by their last epoch."""
        options.setdefault("total_epochs", epochs)
        resume = options.pop("resume", "auto")
        with CheckpointManager(directory, layout, **options) as manager:
            found = manager.resume(resume)
            if found is not None:
                self.restore(found)
            for epoch in range((found.epochs_finished or 0) if found is not None else 0, epochs):
                loss = self.epoch()
                self.seen.append(epoch)
                stage = next((name for last, name in (stages or {}).items() if epoch < last), None)
                manager.step(
                    self.state,
                    epoch=epoch,
                    metrics={"loss": loss} if metrics is None else metrics(epoch),
                    stage=stage,
                    stage_end=epoch + 1 in (stages or {}),
                )
                if after_save is not None:
                    manager.wait()
                    after_save(epoch, manager)
        return manager


@pytest.fixture
def training() -> Iterator[Training]:
    torch.manual_seed(0)
    yield Training()


@pytest.fixture
def new_training() -> Callable[[], Training]:
    def make(seed: int = 0) -> Training:
        torch.manual_seed(seed)
        return Training()

    return make


@pytest.fixture
def names_in() -> Callable[[Path], set[str]]:
    """The files that a person sees in a folder."""

    def visible(folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir() if not path.name.startswith(".")}

    return visible
