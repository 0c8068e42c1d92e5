"""Heads and weighted average: what each modality says of a disease, and what they say together.

For each modality a regularised logistic *head* turns its outputs into the log odds of each disease. What
these add to the log odds that everybody has (the *prior*) is the modality's *evidence*. The weighted average
is

    log odds = prior + n^g * sum of w_m * evidence_m

over the modalities that the patient has: weights of each disease are positive and sum to one over them, and n
= 1 / sum of w_m^2 is how many modalities the average effectively rests on. The independence g in [0, 1] says
how much more certain agreement makes: with 0 the modalities tell the same thing and the plain average of log
odds is right, with 1 each is evidence of its own and they add up. A patient with one modality gets that
modality's answer.

Source:
    Genest, Zidek: Combining probability distributions (Statistical Science, 1986), for logarithmic pools;
    Wolpert: Stacked generalization (Neural Networks, 1992), for fitting the weights on out-of-fold answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.special import logit, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from radfuse.engine.folds import folds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radfuse.ensemble.features import Outputs
    from radfuse.ensemble.settings import Recipe

CLIP = 5.0
"""Standard deviations beyond which a feature counts no more."""
_TINY = 1e-6
_FARTHEST = 6.0


@dataclass(frozen=True)
class Stack:
    """Heads and weighted average, fitted.

    Attributes:
        mean: (F,) of the features, over the patients who have the modality.
        scale: (F,) their standard deviations.
        coefficients: (F, M, D) of the heads; zero where a feature is another modality's.
        intercepts: (M, D) of the heads' evidence.
        prior: (D,) log odds of each disease among the patients it was fitted on.
        weights: (M, D) of the average; positive, each disease's sum to one.
        independence: 0 to 1.
        strengths: (M,) the heads' regularisation that was chosen, as scikit-learn's C.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    prior: NDArray[np.float64]
    weights: NDArray[np.float64]
    independence: float
    strengths: NDArray[np.float64]

    def scaled(self, outputs: Outputs) -> NDArray[np.float64]:
        """(P, F) features in standard deviations, 0 where the patient lacks the modality."""
        return _scaled(outputs, self.mean, self.scale)

    def evidence(self, outputs: Outputs) -> NDArray[np.float64]:
        """(P, M, D) what each modality adds to the prior log odds, 0 where the patient lacks it."""
        raw = np.einsum("pf,fmd->pmd", self.scaled(outputs), self.coefficients) + self.intercepts
        return np.asarray(raw * outputs.mask[:, :, None])

    def average(self, outputs: Outputs) -> NDArray[np.float64]:
        """(P, D) log odds of the weighted average."""
        return self.prior + pooled(self.evidence(outputs), outputs.mask, self.weights, self.independence)


@dataclass(frozen=True)
class Fitted:
    """A stack and what it was fitted from.

    Attributes:
        stack: fitted on all patients given.
        evidence: (P, M, D) of the same patients, each from heads that were fitted on others.
    """

    stack: Stack
    evidence: NDArray[np.float64]


def fit(outputs: Outputs, truth: NDArray[np.float64], recipe: Recipe) -> Fitted:
    """Fit heads and weights.

    Args:
        outputs: of the patients to fit on.
        truth: (P, D) 0, 1 or NaN.
        recipe: folds, strengths, decay, seed.
    """
    # Matrices so small gain nothing by threads, and lose much by them on a busy machine.
    with threadpool_limits(limits=1):
        return _fit(outputs, truth, recipe)


def _fit(outputs: Outputs, truth: NDArray[np.float64], recipe: Recipe) -> Fitted:
    mean, scale = _moments(outputs)
    scaled = _scaled(outputs, mean, scale)
    prior = _prior(truth)
    fold_of = folds_of(outputs.patients, recipe.folds, recipe.seed)
    coefficients = np.zeros((len(outputs.features), len(outputs.modalities), truth.shape[1]))
    intercepts = np.zeros(coefficients.shape[1:])
    evidence = np.zeros((len(truth), *intercepts.shape))
    strengths = np.zeros(len(outputs.modalities))
    for m in range(len(outputs.modalities)):
        own, has = outputs.owner == m, outputs.mask[:, m] == 1
        x, y = scaled[np.ix_(has, own)], truth[has]
        strengths[m], evidence[has, m] = _strength(x, y, prior, fold_of[has], recipe.strengths)
        coefficients[own, m], intercepts[m] = _head(x, y, prior, strengths[m])
    weights, independence = _weights(evidence, outputs.mask, truth, prior, recipe.weight_decay)
    stack = Stack(mean, scale, coefficients, intercepts, prior, weights, independence, strengths)
    return Fitted(stack, evidence)


def pooled(
    evidence: NDArray[np.float64],
    mask: NDArray[np.float64],
    weights: NDArray[np.float64],
    independence: float,
) -> NDArray[np.float64]:
    """(P, D) the evidence of all modalities together, 0 for a patient who has none.

    Args:
        evidence: (P, M, D).
        mask: (P, M).
        weights: (M, D).
        independence: 0 to 1.
    """
    there = weights * mask[:, :, None]
    share = there / np.maximum(there.sum(axis=1, keepdims=True), _TINY)
    effective = 1 / np.maximum((share**2).sum(axis=1), _TINY)
    return np.asarray((share * evidence).sum(axis=1) * effective**independence)


def cross_entropy(log_odds: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Mean over what is known, in nats.

    Args:
        log_odds: (P, D).
        truth: (P, D) 0, 1 or NaN.
    """
    known = np.isfinite(truth)
    return float(np.mean(np.logaddexp(0.0, log_odds[known]) - truth[known] * log_odds[known]))


def _moments(outputs: Outputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    has = outputs.mask[:, outputs.owner]
    count = np.maximum(has.sum(axis=0), 1)
    mean = (outputs.values * has).sum(axis=0) / count
    scale = np.sqrt((((outputs.values - mean) * has) ** 2).sum(axis=0) / count)
    # A feature that never varies says nothing, whatever it is divided by.
    return mean, np.where(scale > _TINY, scale, 1.0)


def _scaled(outputs: Outputs, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled = np.clip((outputs.values - mean) / scale, -CLIP, CLIP)
    return np.asarray(scaled * outputs.mask[:, outputs.owner])


def _prior(truth: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(truth).sum(axis=0)
    return np.asarray(logit((np.nansum(truth, axis=0) + 0.5) / (known + 1)))


def _head(
    x: NDArray[np.float64], truth: NDArray[np.float64], prior: NDArray[np.float64], strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients (f, D) and intercepts (D,) of a modality's evidence; zero with one class alone."""
    coefficients, intercepts = np.zeros((x.shape[1], truth.shape[1])), np.zeros(truth.shape[1])
    for d in range(truth.shape[1]):
        known = np.isfinite(truth[:, d])
        if len(np.unique(truth[known, d])) == 2:
            model = LogisticRegression(C=strength, max_iter=1000).fit(x[known], truth[known, d])
            coefficients[:, d] = model.coef_[0]
            intercepts[d] = model.intercept_[0] - prior[d]
    return coefficients, intercepts


def _strength(
    x: NDArray[np.float64],
    truth: NDArray[np.float64],
    prior: NDArray[np.float64],
    fold_of: NDArray[np.int64],
    strengths: Sequence[float],
) -> tuple[float, NDArray[np.float64]]:
    """The strength of least out-of-fold cross-entropy, and the evidence (P, D) out of fold with it."""
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for strength in sorted(strengths):
        evidence = np.zeros(truth.shape)
        for fold in np.unique(fold_of):
            inside = fold_of == fold
            coefficients, intercepts = _head(x[~inside], truth[~inside], prior, strength)
            evidence[inside] = x[inside] @ coefficients + intercepts
        loss = cross_entropy(prior + evidence, truth)
        if best is None or loss < best[0]:
            best = (loss, strength, evidence)
    if best is None:
        raise ValueError("expected at least one strength to choose from")
    return best[1], best[2]


def _weights(
    evidence: NDArray[np.float64],
    mask: NDArray[np.float64],
    truth: NDArray[np.float64],
    prior: NDArray[np.float64],
    decay: float,
) -> tuple[NDArray[np.float64], float]:
    """Weights (M, D) and independence of least cross-entropy, pulled towards equal weights."""
    shape = evidence.shape[1:]
    known = int(np.isfinite(truth).sum())

    def loss(at: NDArray[np.float64]) -> float:
        free = at[:-1].reshape(shape)
        log_odds = prior + pooled(evidence, mask, softmax(free, axis=0), at[-1])
        return known * cross_entropy(log_odds, truth) + decay * float((free**2).sum())

    start = np.append(np.zeros(shape), 0.5)
    bounds = [(-_FARTHEST, _FARTHEST)] * (start.size - 1) + [(0.0, 1.0)]
    best = minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    return np.asarray(softmax(best.x[:-1].reshape(shape), axis=0)), float(best.x[-1])
