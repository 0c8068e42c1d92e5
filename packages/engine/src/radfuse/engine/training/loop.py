"""The training loop: for each epoch train, validate, save. What surrounds it is in `training` and `run`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from radfuse.engine.errors import SettingsError
from radfuse.engine.progress import track
from radfuse.engine.training.killed_loaders import killed_loaders_told
from radfuse.engine.training.randomness import reseed
from radfuse.engine.training.stages import training_mode

if TYPE_CHECKING:
    from torch import Tensor

    from radfuse.engine.training.loaders import Batch
    from radfuse.engine.training.run import Run
    from radfuse.engine.training.tasks import Validated


def train(run: Run) -> None:
    """Train from where the run stands to its end.

    Raises:
        LoaderDied: a process that loads samples was killed.
        NonFiniteLoss: the loss is NaN or infinite.
        SettingsError: a layer has no deterministic algorithm here, and no other is wanted.
        TrainingInterrupted: a signal asked for an end; the state is saved.
    """
    try:
        with killed_loaders_told("train.workers"):
            while not run.done:
                run.enter_epoch()
                train_epoch(run)
                run.end_epoch(validate(run))
    except RuntimeError as error:
        limit, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise SettingsError(
            f"train.deterministic: of {limit} torch has no algorithm that gives the same bits every time on "
            "this device. Replace the layer that uses it, or set train.deterministic to false."
        ) from error


def train_epoch(run: Run) -> None:
    """Train on the batches of the epoch that are still to come."""
    training_mode(run.network, run.groups, run.learning)
    batches = run.training.epoch(run.at.epoch, run.at.batch)
    steps = track(batches, run.title("train"), run.training.batches, run.progress, done=run.at.batch)
    for batch in steps:
        run.count(batch, step(run, batch))
        steps.note = f"loss {run.at.mean_loss:.4f}"
        run.checkpoint()


def step(run: Run, batch: Batch) -> float:
    """One step of the optimizer, unless loss or gradient are no numbers; returns the loss before it."""
    reseed(run.seed, "step", run.at.step, *([run.world.rank] if run.world.size > 1 else []))
    run.rates.set(run.at.step)
    run.keep_buffers()
    image, target = run.on_device(batch)
    loss: Tensor = run.loss(run.module(image), target)
    run.fabric.backward(loss)
    run.world.average([p.grad for p in run.network.parameters() if p.grad is not None])
    length = torch.nn.utils.clip_grad_norm_(
        run.network.parameters(), run.settings.clip_gradient or float("inf")
    )
    found = run.world.mean(float(loss.detach()))
    if math.isfinite(found) and torch.isfinite(length):
        run.optimizer.step()
        run.at.skipped = 0
        if run.ema is not None:
            run.ema.update_parameters(run.network)
    else:
        run.meet_nonfinite(found, float(length), batch)
    run.optimizer.zero_grad(set_to_none=True)
    return found


@torch.no_grad()
def validate(run: Run) -> Validated:
    """Judge the network, or its average where one is kept, on the validation split."""
    network = run.judged
    network.eval()
    gathered = run.task.validation(run.settings)
    for number, batch in enumerate(track(run.validation.epoch(), run.title("validate"), mode=run.progress)):
        image, target = run.on_device(batch)
        logits = run.task.infer(network, image, run.settings)
        rows = run.validation.rows.iloc[list(batch.rows)]
        gathered.add(logits, target, rows, float(run.loss(logits, target)))
        if number == 0:
            run.draw(batch, logits)
        run.checkpoint()
    return run.world.told(gathered.result())
