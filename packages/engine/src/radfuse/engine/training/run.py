"""A training under way: its parts, where it stands, and how that becomes a checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import ckptcore
from ckptcore.signals import TrainingInterrupted
from radfuse.engine.errors import NonFiniteLoss
from radfuse.engine.tables import SAMPLE
from radfuse.engine.tracking import FINISHED_AT
from radfuse.engine.training import stages
from radfuse.engine.training.distributed import World
from radfuse.engine.training.numerics import laid_out

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.optim import Optimizer
    from torch.optim.swa_utils import AveragedModel

    from radfuse.engine.progress import Mode
    from radfuse.engine.recording import Recorder
    from radfuse.engine.settings import TrainSettings
    from radfuse.engine.training.loaders import Batch, Loader
    from radfuse.engine.training.numerics import Numerics
    from radfuse.engine.training.schedules import Rates
    from radfuse.engine.training.stages import Plan
    from radfuse.engine.training.tasks import Task, Validated

_log = logging.getLogger(__name__)
MOST_SKIPPED = 10
"""Steps in a row that may be skipped; a network that gives no number ten times does not recover."""


class Whole(nn.Module):
    """Normalisation and network as one.

    Args:
        normalisation: from what the graph takes to what the network takes.
        network: to logits.
    """

    def __init__(self, normalisation: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalisation = normalisation
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, ...) to logits."""
        logits: Tensor = self.network(self.normalisation(image))
        return logits


@dataclass
class Position:
    """Where a training stands; all of it is in every checkpoint.

    Attributes:
        epoch: the one under way, from 0.
        batch: batches of it that are done.
        step: optimizer steps since the start.
        loss_sum: over the epoch's samples so far.
        samples: that the sum is over.
        skipped: steps in a row whose loss was no number.
        skipped_in_epoch: such steps of the epoch under way.
        stopped: nothing got better for too long, and the training ended early.
        began: the epoch, from 0, at which this training took over from another one; 0 where it began itself.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    samples: int = 0
    skipped: int = 0
    skipped_in_epoch: int = 0
    stopped: bool = False
    began: int = 0

    @property
    def mean_loss(self) -> float:
        """Mean loss of the epoch so far."""
        return self.loss_sum / self.samples if self.samples else math.nan

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.samples, self.skipped_in_epoch = 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another training stood."""
        for one in fields(self):
            # A checkpoint may be older than a field; what is new begins with its default.
            setattr(self, one.name, state.get(one.name, one.default))


@dataclass
class Run:
    """Everything that the loop works on.

    Attributes:
        fabric: device and precision.
        network: from normalised input to logits.
        module: normalisation and network, in the precision of the run.
        judged: what is validated: the same, or with the averaged network where one is kept.
        groups: the network's layer groups.
        loss: (logits, target) to a scalar.
        optimizer: of all parameters.
        rates: sets its learning rates.
        ema: the averaged network; None where none is kept.
        plan: the stages.
        task: what is learnt.
        settings: of the training.
        training: batches to learn from.
        validation: batches to judge by.
        manager: saves.
        recorder: tells; None in all processes but the first.
        seed: of everything that is drawn.
        facts: what every checkpoint says besides: hyperparameters and provenance.
        conditions: device, precision and the like.
        layout: how images lie in memory.
        world: the processes that train together.
        progress: how progress is shown.
        skip_nonfinite: whether a loss that is no number is passed over.
        at: where the training stands.
        learning: the layer groups that learn now.
        learnable: how many parameters these have.
        validated: what the last validation found.
    """

    fabric: Fabric
    network: nn.Module
    module: nn.Module
    judged: nn.Module
    groups: Mapping[str, Sequence[nn.Module]]
    loss: nn.Module
    optimizer: Optimizer
    rates: Rates
    ema: AveragedModel | None
    plan: Plan
    task: Task
    settings: TrainSettings
    training: Loader
    validation: Loader
    manager: ckptcore.CheckpointManager
    recorder: Recorder | None
    seed: int
    facts: dict[str, Any]
    conditions: Numerics
    layout: torch.memory_format
    world: World = field(default_factory=World)
    progress: Mode = "auto"
    skip_nonfinite: bool = False
    at: Position = field(default_factory=Position)
    learning: tuple[str, ...] = ()
    learnable: int = 0
    validated: Validated | None = None
    _began: float = 0.0
    _buffers: list[Tensor] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.at.stopped or self.at.epoch >= self.plan.epochs

    def title(self, what: str) -> str:
        """What is under way, in words."""
        return f"{what} {self.at.epoch + 1}/{self.plan.epochs}"

    def on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image and target of a batch where the network is."""
        image, target = self.fabric.to_device((batch.image, batch.target))
        return laid_out(image, self.layout), target

    def enter_epoch(self) -> None:
        """Let the layers of the epoch's stage learn, and no others."""
        _, stage = self.plan.at(self.at.epoch)
        self.learning = self.plan.learning(stage)
        self.learnable = stages.enter(stage, self.plan, self.groups)
        # What batch norms saw differs between processes; what is saved is what the first one's saw.
        self.world.copy_first(list(self.network.buffers()))
        self._began = time.monotonic()

    def count(self, batch: Batch, loss: float) -> None:
        """Take down that a step was made."""
        self.at.batch += 1
        self.at.step += 1
        if math.isfinite(loss):
            self.at.loss_sum += loss * len(batch.rows)
            self.at.samples += len(batch.rows)

    def keep_buffers(self) -> None:
        """Remember what batch norms have seen, in case that the step comes to nothing."""
        buffers = list(self.network.buffers())
        if len(self._buffers) != len(buffers):
            self._buffers = [buffer.clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self._buffers, buffers)

    def meet_nonfinite(self, loss: float, gradient: float, batch: Batch) -> None:
        """Decide what becomes of a step without a finite loss and gradient; it leaves the network unchanged.

        Raises:
            NonFiniteLoss: it is not to be skipped, or too many were; the state before it is saved.
        """
        for buffer, before in zip(self.network.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        self.at.skipped += 1
        self.at.skipped_in_epoch += 1
        samples = ", ".join(self.training.rows.iloc[list(batch.rows)][SAMPLE].astype(str))
        where = (
            f"epoch {self.at.epoch + 1}, step {self.at.step + 1}, learning rate {max(self.rates.rates):.3g}, "
            f"samples {samples}"
        )
        found = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's length is {gradient}"
        if not self.skip_nonfinite or self.at.skipped > MOST_SKIPPED:
            # The next start is not to be blamed for what this one met.
            self.at.skipped, self.at.skipped_in_epoch = 0, self.at.skipped_in_epoch - 1
            self._save_marked("nonfinite")
            raise NonFiniteLoss(
                f"{found} at {where}. Expected a number: look at these samples, or lower the learning rate. "
                "train.on_nonfinite=skip passes over single steps. The state before this step is saved: the "
                "same command goes on from it."
            )
        _log.warning("%s at %s; the step is skipped", found, where)

    def checkpoint(self) -> None:
        """Within an epoch: save if a rule or a signal says so."""
        self.manager.step(
            self.state, epoch=self.at.epoch, epoch_end=False, global_step=self.at.step, stage=self._stage
        )

    def _save_marked(self, reason: str) -> None:
        """Save now, as the latest and never as the best, with the reason in the header."""
        self.manager.step(
            self.state, epoch=self.at.epoch, epoch_end=False, global_step=self.at.step, stage=self._stage,
            reason=reason,
        )  # fmt: skip

    def end_epoch(self, validated: Validated) -> None:
        """Take down what the epoch brought, and save."""
        epoch, ended = self.at.epoch, self.plan.ends_with(self.at.epoch)
        metrics = {
            "train_loss": self.at.mean_loss,
            **validated.metrics,
            "learning_rate": max(self.rates.rates),
            "skipped_steps": float(self.at.skipped_in_epoch),
            FINISHED_AT: round(time.time(), 3),
        }
        stage, facts = self._stage, self.stage_facts()
        self.validated = validated
        self.at.stopped = self.world.told(self._is_stuck(metrics))
        self.at.next_epoch()
        try:
            self.manager.step(
                lambda: {**self.state(), "stage": facts},
                epoch=epoch,
                metrics=metrics,
                global_step=self.at.step,
                stage=stage,
                stage_end=ended or self.at.stopped,
                final=self.at.stopped,
            )
        except TrainingInterrupted:
            # Told to stop in this very moment. The epoch is saved, so nobody comes back to it.
            self._tell(epoch, metrics, facts)
            raise
        self._tell(epoch, metrics, facts)

    def _tell(self, epoch: int, metrics: Mapping[str, float], stage: Mapping[str, Any]) -> None:
        if self.recorder is not None:
            self.recorder.epoch(self, epoch, metrics, stage, time.monotonic() - self._began)

    def draw(self, batch: Batch, logits: Tensor) -> None:
        """Draw the first batch of a validation, if this epoch is to have a picture."""
        if self.recorder is not None:
            self.recorder.draw(self, batch, logits)

    def state(self) -> dict[str, Any]:
        """The whole state as a checkpoint has it; tensors are the live ones."""
        found = ckptcore.capture(
            model=self.network, optimizer=self.optimizer, scheduler=self.rates, ema=self.ema, loader=self.at
        )
        told = self.validated
        judged: dict[str, Any] = {"val_metrics": dict(told.details) if told is not None else {}}
        if told is not None and told.thresholds:
            thresholds = dict(told.thresholds)
            key = "optimal_threshold" if len(thresholds) == 1 else "optimal_thresholds"
            judged[key] = next(iter(thresholds.values())) if len(thresholds) == 1 else thresholds
        empty: dict[str, Any] = {} if self.ema is not None else {"ema_state_dict": {}}
        return {
            **found,
            "scaler_state_dict": {},
            **empty,
            "stage": self.stage_facts(),
            **judged,
            **self.facts,
        }

    def restore(self, checkpoint: ckptcore.Checkpoint) -> None:
        """Go on from a checkpoint. Random numbers are drawn by key, so no generator has a state to put back.

        Raises:
            MissingState: naming what does not fit this training.
        """
        whole = {key: value for key, value in checkpoint.items() if key != "ema_state_dict" or value}
        ckptcore.restore(
            whole, model=self.network, optimizer=self.optimizer, scheduler=self.rates, ema=self.ema,
            loader=self.at, rng=False,
        )  # fmt: skip
        self._lay_out_optimizer()

    def begin_epoch_anew(self) -> None:
        """Go to the first batch of the epoch under way: another training had other batches."""
        self.at = replace(
            self.at,
            batch=0,
            step=self.at.epoch * self.plan.steps_per_epoch,
            loss_sum=0.0,
            samples=0,
            skipped=0,
            skipped_in_epoch=0,
            stopped=False,
            began=self.at.epoch,
        )

    def close(self) -> None:
        """End the processes that load."""
        self.training.close()
        self.validation.close()

    def stage_facts(self) -> dict[str, Any]:
        """Name and number of the stage, what learns in it and how many parameters that are."""
        number, stage = self.plan.at(self.at.epoch)
        return {
            "name": stage.name,
            "index": number,
            "layers": list(self.learning),
            "learnable_parameters": self.learnable,
        }

    @property
    def _stage(self) -> str:
        return self.plan.at(self.at.epoch)[1].name

    def _is_stuck(self, metrics: Mapping[str, float]) -> bool:
        """Whether the last stage went on for too long without a better metric.

        A training that goes on from another one, of other data perhaps, is measured by its own epochs.
        """
        patience, number = self.settings.early_stopping, self.plan.at(self.at.epoch)[0]
        if not patience or number + 1 < len(self.plan.stages):
            return False
        values = [*self.manager.history.get(self.task.metric, [])[: self.at.epoch], metrics[self.task.metric]]
        finite = [value if math.isfinite(value) else -math.inf for value in values[self.at.began :]]
        best = self.at.began + finite.index(max(finite))
        return self.at.epoch - max(best, self.plan.begin(number) - 1) >= patience

    def _lay_out_optimizer(self) -> None:
        """Averages of gradients lie in memory as their parameters do; a file holds them row by row."""
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if (
                    isinstance(value, Tensor)
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    state[name] = torch.empty_like(parameter).copy_(value)
