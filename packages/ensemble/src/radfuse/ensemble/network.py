"""The whole ensemble as one network: from outputs of the modalities to probabilities of diseases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from radfuse.ensemble.stacking import CLIP

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from radfuse.ensemble.stacking import Stack

_TINY = 1e-6


class MetaLearner(nn.Module):
    """A perceptron of two layers that corrects the weighted average's log odds; at first by nothing.

    Args:
        features: F, numbers of all modalities.
        modalities: M.
        diseases: D.
        parameters: about how many to have; the hidden layer is as wide as that makes it.
    """

    def __init__(self, features: int, modalities: int, diseases: int, parameters: int) -> None:
        super().__init__()
        inputs = features + modalities + modalities * diseases
        self.width = max(1, round((parameters - diseases) / (inputs + 1 + diseases)))
        self.hidden = nn.Linear(inputs, self.width)
        self.output = nn.Linear(self.width, diseases)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, scaled: Tensor, evidence: Tensor, mask: Tensor) -> Tensor:
        """The correction (B, D) of the log odds.

        Args:
            scaled: (B, F) features in standard deviations, 0 where the modality is lacking.
            evidence: (B, M, D) of the heads, 0 likewise.
            mask: (B, M).
        """
        said = torch.cat([scaled, evidence.flatten(1), mask], dim=1)
        # By the root of the width, so that the decay means the same whatever the width is.
        correction: Tensor = self.output(torch.relu(self.hidden(said))) / self.width**0.5
        return correction


class EnsembleNetwork(nn.Module):
    """Scaling, heads, weighted average and meta-learner.

    Args:
        features: F, numbers of all modalities.
        modalities: M.
        diseases: D.
        parameters: about how many the meta-learner has.
    """

    mean: Tensor
    scale: Tensor
    owner: Tensor
    coefficients: Tensor
    intercepts: Tensor
    prior: Tensor
    weights: Tensor
    independence: Tensor
    corrects: Tensor

    def __init__(self, features: int, modalities: int, diseases: int, parameters: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("owner", torch.zeros(modalities, features))
        self.register_buffer("coefficients", torch.zeros(features, modalities, diseases))
        self.register_buffer("intercepts", torch.zeros(modalities, diseases))
        self.register_buffer("prior", torch.zeros(diseases))
        self.register_buffer("weights", torch.full((modalities, diseases), 1 / max(modalities, 1)))
        self.register_buffer("independence", torch.zeros(()))
        self.register_buffer("corrects", torch.zeros(()))
        self.meta = MetaLearner(features, modalities, diseases, parameters)

    def take(self, stack: Stack, owner: NDArray[np.int64]) -> None:
        """Take over what was fitted outside of torch.

        Args:
            stack: heads and weights.
            owner: (F,) index of the modality that each feature is of.
        """
        for name in ("mean", "scale", "coefficients", "intercepts", "prior", "weights", "independence"):
            getattr(self, name).copy_(torch.as_tensor(getattr(stack, name)))
        self.owner.zero_()[torch.as_tensor(owner), torch.arange(self.features)] = 1.0

    def forward(self, input: Tensor) -> Tensor:
        """Probabilities (B, D) by the method that was chosen.

        Args:
            input: (B, F + M) features, then the mask.
        """
        scaled, evidence, mask = self.said(input)
        log_odds = self.average(evidence, mask) + self.corrects * self.meta(scaled, evidence, mask)
        return torch.sigmoid(log_odds)

    def said(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled features (B, F), evidence (B, M, D) and mask (B, M), all 0 where a modality is lacking."""
        values, mask = input[:, : self.features], input[:, self.features :]
        scaled = ((values - self.mean) / self.scale).clamp(-CLIP, CLIP) * (mask @ self.owner)
        evidence = torch.einsum("bf,fmd->bmd", scaled, self.coefficients) + self.intercepts
        return scaled, evidence * mask[:, :, None], mask

    def average(self, evidence: Tensor, mask: Tensor) -> Tensor:
        """Log odds (B, D) of the weighted average, as `radfuse.ensemble.stacking` has it."""
        return self.prior + pooled(evidence, mask, self.weights, self.independence)


def pooled(evidence: Tensor, mask: Tensor, weights: Tensor, independence: Tensor) -> Tensor:
    """The evidence (B, D) of all modalities together, 0 for a patient who has none.

    Args:
        evidence: (B, M, D).
        mask: (B, M).
        weights: (M, D).
        independence: a number from 0 to 1.
    """
    there = weights * mask[:, :, None]
    share = there / there.sum(dim=1, keepdim=True).clamp(min=_TINY)
    effective = 1 / (share**2).sum(dim=1).clamp(min=_TINY)
    return (share * evidence).sum(dim=1) * effective**independence
