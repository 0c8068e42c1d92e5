"""Trains the meta-learner: one network on all patients, and one a fold that never sees that fold's patients.

The networks of the folds say what the meta-learner is worth and give the out-of-fold answers; the one of all
patients is what is saved and exported. All take the same steps side by side, each on its own patients, so one
checkpoint holds them all and a training that was killed goes on to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import ckptcore
from ckptcore.rules import EveryEpochs, Final, OnSignal
from radfuse.engine import metrics
from radfuse.engine.errors import NonFiniteLoss
from radfuse.engine.tracking import FINISHED_AT
from radfuse.engine.training.numerics import one_thread
from radfuse.engine.training.randomness import number_of
from radfuse.ensemble.network import MetaLearner, pooled
from radfuse.ensemble.stacking import cross_entropy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radfuse.ensemble.features import Outputs
    from radfuse.ensemble.settings import Recipe
    from radfuse.ensemble.stacking import Stack

_SAVE_EVERY = 20
_WAIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Said:
    """What is said of some patients, as tensors.

    Attributes:
        scaled: (P, F) features in standard deviations.
        evidence: (P, M, D) of heads that were fitted on other patients.
        mask: (P, M).
    """

    scaled: Tensor
    evidence: Tensor
    mask: Tensor

    @classmethod
    def of(cls, stack: Stack, outputs: Outputs, evidence: NDArray[np.float64]) -> Said:
        """From arrays."""
        return cls(*(_float(one) for one in (stack.scaled(outputs), evidence, outputs.mask)))

    def hide(self, kept: Tensor, owner: Tensor) -> Said:
        """The same with some modalities hidden.

        Args:
            kept: (P, M) 0 for those.
            owner: (F,) the modality of each feature.
        """
        return Said(self.scaled * kept[:, owner], self.evidence * kept[:, :, None], self.mask * kept)


@dataclass(frozen=True)
class Course:
    """What one network learns from, and what it is judged on.

    Attributes:
        stack: heads and weights that were fitted on the patients it learns from.
        learns: from these.
        truth: (P, D) theirs.
        judged: other patients; None for the network of all patients.
        places: of the judged among all patients.
    """

    stack: Stack
    learns: Said
    truth: NDArray[np.float64]
    judged: Said | None
    places: NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """What came out.

    Attributes:
        meta: the network of all patients.
        crossed: (P, D) log odds of average and correction, each from networks of other patients.
        history: values by metric, one an epoch.
        state: optimizer and schedule, as a checkpoint has them.
    """

    meta: MetaLearner
    crossed: NDArray[np.float64]
    history: dict[str, list[float]]
    state: dict[str, Any]


def train(
    courses: Sequence[Course],
    truth: NDArray[np.float64],
    owner: NDArray[np.int64],
    recipe: Recipe,
    folder: Path,
    key: str,
) -> Trained:
    """Train, or go on where a training of the same key was stopped.

    Args:
        courses: of all patients first, then of the folds.
        truth: (P, D) of all patients.
        owner: (F,) the modality of each feature.
        recipe: epochs, rate, decay, dropout, seed.
        folder: work folder of this key.
        key: digest of everything that changes a number.

    Raises:
        TrainingInterrupted: a signal came; what was done is saved.
        NonFiniteLoss: a step came to something that is no number; nothing of it is saved.
        FolderBusy: another process trains the same and does not come to an end.
    """
    # So small a network gains nothing by more threads, and with one its bits are the same everywhere.
    with one_thread():
        run = _Run(courses, truth, owner, recipe)
        rules = [EveryEpochs(_SAVE_EVERY, role="latest") | Final(role="latest"), OnSignal()]
        layout = ckptcore.layouts.plain(suffix=".pth")
        with ckptcore.CheckpointManager(
            folder, layout, save=rules, run_key=key, total_epochs=recipe.epochs, wait_seconds=_WAIT_SECONDS
        ) as manager:
            found = manager.resume("auto")
            if found is not None:
                run.restore(found)
            for epoch in range(found.epochs_finished if found else 0, recipe.epochs):
                measured = run.step(epoch)
                last = epoch + 1 == recipe.epochs
                manager.step(run.state, epoch=epoch, metrics=measured, global_step=epoch + 1, final=last)
            history = {name: list(values) for name, values in manager.history.items()}
        return Trained(run.networks[0], run.crossed(), history, run.state())


class _Run:
    """The networks of all courses and their one optimizer; no course's step depends on another's."""

    def __init__(
        self,
        courses: Sequence[Course],
        truth: NDArray[np.float64],
        owner: NDArray[np.int64],
        recipe: Recipe,
    ) -> None:
        self._courses, self._truth, self._recipe = courses, truth, recipe
        self._owner = torch.as_tensor(owner)
        self.networks: Any = nn.ModuleList(self._network(at) for at in range(len(courses)))
        self._first = [parameter.detach().clone() for parameter in self.networks.parameters()]
        self._optimizer = torch.optim.Adam(self.networks.parameters(), lr=recipe.learning_rate)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, recipe.epochs)

    def _network(self, at: int) -> MetaLearner:
        learns = self._courses[at].learns
        shape = learns.scaled.shape[1], learns.mask.shape[1], learns.evidence.shape[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number_of(self._recipe.seed, "meta-learner"))
            return MetaLearner(*shape, self._recipe.parameters)

    def step(self, epoch: int) -> dict[str, float]:
        """One step of every network, and how good the networks of the folds are now.

        Raises:
            NonFiniteLoss: the step came to something that is no number.
        """
        self.networks.train()
        self._optimizer.zero_grad()
        losses = [self._loss(at, epoch) for at in range(len(self._courses))]
        total: Any = torch.stack([loss for _, loss in losses]).sum()
        total.backward()
        length = nn.utils.get_total_norm([one.grad for one in self.networks.parameters()])
        self._require_numbers(epoch, {"loss": total.detach(), "gradient's length": length})
        self._optimizer.step()
        crossed = self.crossed()
        # The next loss would show what came of this step, and of the last one nobody computes it.
        weights = nn.utils.parameters_to_vector(self.networks.parameters()).detach()
        largest = {"largest weight": weights.abs().max(), "largest answer": np.abs(crossed).max()}
        self._require_numbers(epoch, largest)
        self._schedule.step()
        return {
            "train_loss": float(losses[0][0].detach()),
            "val_loss": cross_entropy(crossed, self._truth),
            "val_auc": mean_auroc(self._truth, crossed),
            FINISHED_AT: round(time.time(), 3),
        }

    def _require_numbers(self, epoch: int, found: Mapping[str, Any]) -> None:
        (rate,) = self._schedule.get_last_lr()
        for what, value in found.items():
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"the meta-learner's {what} is {float(value)} at epoch {epoch + 1}, learning rate "
                    f"{rate:.3g}. Expected a number: lower ensemble.learning_rate. This step is not saved."
                )

    def _loss(self, at: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and the same with the decay that holds the correction back."""
        course = self._courses[at]
        said = course.learns.hide(self._kept(course.learns.mask, at, epoch), self._owner)
        truth = _float(course.truth)
        known = ~torch.isnan(truth)
        each = nn.functional.binary_cross_entropy_with_logits(
            _log_odds(course.stack, self.networks[at], said), torch.where(known, truth, 0.0), reduction="none"
        )
        loss = (each * known).sum() / known.sum()
        mine = slice(at * 4, at * 4 + 4)
        moved = zip(self.networks[at].parameters(), self._first[mine], strict=True)
        decay = sum(((now - first) ** 2).sum() for now, first in moved)
        return loss, loss + self._recipe.residual_decay / (2 * len(truth)) * decay

    def _kept(self, mask: Tensor, at: int, epoch: int) -> Tensor:
        """Which modalities are not hidden in this step; of a patient's own, one at least stays."""
        drawn = torch.Generator().manual_seed(number_of(self._recipe.seed, "hide", at, epoch))
        score = torch.rand(mask.shape, generator=drawn)
        kept = (score >= self._recipe.modality_dropout).float()
        stays = nn.functional.one_hot((score * mask).argmax(dim=1), mask.shape[1])
        return torch.maximum(kept, stays.float())

    def crossed(self) -> NDArray[np.float64]:
        """(P, D) log odds of every patient, from the network that did not learn from it."""
        self.networks.eval()
        found = np.full(self._truth.shape, np.nan)
        with torch.no_grad():
            for course, network in zip(self._courses, self.networks, strict=True):
                if course.judged is not None:
                    found[course.places] = _log_odds(course.stack, network, course.judged).double().numpy()
        return found

    def state(self) -> dict[str, Any]:
        """As a checkpoint has it; random numbers are drawn by key and need no state."""
        found: dict[str, Any] = ckptcore.capture(
            model=self.networks, optimizer=self._optimizer, scheduler=self._schedule, rng=False
        )
        return found

    def restore(self, checkpoint: ckptcore.Checkpoint) -> None:
        """Go on from a checkpoint."""
        ckptcore.restore(
            checkpoint, model=self.networks, optimizer=self._optimizer, scheduler=self._schedule, rng=False
        )


def mean_auroc(truth: NDArray[np.float64], score: NDArray[np.float64]) -> float:
    """The mean over the diseases that have both classes.

    Args:
        truth: (P, D) 0, 1 or NaN.
        score: (P, D).
    """
    each = [metrics.auroc(truth[:, d], score[:, d]) for d in range(truth.shape[1])]
    defined = [one for one in each if np.isfinite(one)]
    return float(np.mean(defined)) if defined else float("nan")


def _log_odds(stack: Stack, network: nn.Module, said: Said) -> Tensor:
    weights, independence = _float(stack.weights), torch.tensor(stack.independence)
    average = _float(stack.prior) + pooled(said.evidence, said.mask, weights, independence)
    correction: Tensor = network(said.scaled, said.evidence, said.mask)
    return average + correction


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
