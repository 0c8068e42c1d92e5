"""The best AUC anyone can reach on this cohort, from the generating model alone.

Given the expressions z of a disease in the modalities at hand, the posterior log odds are

    logit(prevalence) + sum over modalities of (d*z - d²/2)

and no score ranks patients better (Neyman and Pearson, 1933). Among the sick it is normal with mean D²/2,
among the healthy with mean -D²/2 (about the prior's logit), both with variance D² = sum of d². So a sick
patient with D_a outranks a healthy one with D_b with probability Phi(sqrt(D_a² + D_b²) / 2), which for one
set of modalities is the well-known Phi(D / sqrt 2). `monte_carlo` draws patients and counts instead, as a
check.

A finding's ceiling is the AUC of its severity, since whether it is reported depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr
from scipy.stats import rankdata

from radfuse.phantom import keys
from radfuse.phantom.diseases import (
    DISEASES,
    FINDINGS,
    MALIGNANT,
    MODALITIES,
    PREVALENCE,
    SHIFT,
    Disease,
    Finding,
)
from radfuse.phantom.model import NODULE_SHARES, NODULES, availability

FORMAT = 1
DRAWS = 100_000
"""Patients of the Monte Carlo check: its AUCs are then within about 0.003 of the truth."""

Shares = Mapping[tuple[str, ...], float]
Floats = NDArray[np.float64]


def exact(disease: Disease, shares: Shares) -> float:
    """AUC of the exact posterior over patients who have sets of modalities in the given shares."""
    squares = {having: SHIFT**2 * len(set(having) & set(disease.shows_in)) for having in shares}
    return float(
        sum(
            shares[sick] * shares[healthy] * ndtr(np.sqrt(squares[sick] + squares[healthy]) / 2)
            for sick, healthy in product(shares, repeat=2)
        )
    )


def monte_carlo(disease: Disease, shares: Shares, draws: int = DRAWS) -> float:
    """The same AUC by drawing patients, computing each one's posterior and ranking them."""
    rng = keys.stream(0, 0, "monte carlo", disease.name, *shares)
    sick = rng.random(draws) < PREVALENCE
    having = rng.choice(len(shares), size=draws, p=list(shares.values()))
    log_odds = np.full(draws, logit(PREVALENCE))
    for modality in disease.shows_in:
        expression = rng.normal(SHIFT * sick, 1.0)
        at_hand = np.array([modality in names for names in shares])[having]
        log_odds += np.where(at_hand, SHIFT * expression - SHIFT**2 / 2, 0.0)
    return area(sick, log_odds)


def area(positive: NDArray[np.bool_], score: Floats) -> float:
    """Area under the ROC curve: P(a positive outranks a negative), ties counting half."""
    ranks = rankdata(score)
    positives = int(positive.sum())
    negatives = positive.size - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def of_finding(finding: Finding, scatter: float | None = None) -> float:
    """AUC of a finding's severity for the finding, by integration.

    Args:
        finding: its law.
        scatter: standard deviation of the severity about the expression; the finding's jitter by default.
    """
    return _area_of_severity(finding, _density(finding, finding.jitter if scatter is None else scatter))


def of_malignancy() -> float:
    """AUC of a nodule's severity for its malignancy, over the nodules of all patients."""
    weights = np.array(NODULE_SHARES) * NODULES
    # Nodules scatter about their own mean, which takes 1/n off the variance.
    densities = [_density(MALIGNANT, MALIGNANT.jitter * np.sqrt(1 - 1 / count)) for count in NODULES]
    return _area_of_severity(MALIGNANT, np.average(densities, axis=0, weights=weights))


_GRID: Floats = np.linspace(-12.0, 12.0 + SHIFT, 20_001)


def _density(finding: Finding, scatter: float) -> Floats:
    if finding.disease is None:
        return _normal(0.0, scatter)
    spread = float(np.hypot(1.0, scatter))
    return (1 - PREVALENCE) * _normal(0.0, spread) + PREVALENCE * _normal(SHIFT, spread)


def _normal(mean: float, deviation: float) -> Floats:
    return np.asarray(np.exp(-0.5 * ((_GRID - mean) / deviation) ** 2) / deviation)


def _area_of_severity(finding: Finding, density: Floats) -> float:
    chance = expit(finding.steepness * (_GRID - finding.threshold))
    positive, negative = density * chance, density * (1 - chance)
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / (positive.sum() * negative.sum()))


def report(incomplete: float = 0.25, draws: int = DRAWS) -> dict[str, Any]:
    """All ceilings, as ``ceilings.json`` holds them (README).

    Args:
        incomplete: share of patients who lack one or two modalities.
        draws: patients of the Monte Carlo check.
    """
    patterns: dict[str, Shares] = {f"single:{name}": {(name,): 1.0} for name in MODALITIES}
    patterns |= {"all": {MODALITIES: 1.0}, "available": availability(incomplete)}
    by_law = {d.name: {key: exact(d, shares) for key, shares in patterns.items()} for d in DISEASES}
    by_draws = {d.name: {key: monte_carlo(d, s, draws) for key, s in patterns.items()} for d in DISEASES}
    findings = {name: of_finding(finding) for name, finding in FINDINGS.items()}
    return {
        "format": FORMAT,
        "diseases": {
            disease.name: {
                "prevalence": PREVALENCE,
                "shows_in": list(disease.shows_in),
                **_nested(by_law[disease.name]),
                "monte_carlo": _nested(by_draws[disease.name]),
            }
            for disease in DISEASES
        },
        "findings": {name: round(value, 4) for name, value in findings.items()},
        "malignancy": round(of_malignancy(), 4),
        "means": _means(by_law, list(findings.values())),
    }


def _nested(values: Mapping[str, float]) -> dict[str, Any]:
    return {
        "single": {name: round(values[f"single:{name}"], 4) for name in MODALITIES},
        "all": round(values["all"], 4),
        "available": round(values["available"], 4),
    }


def _means(by_law: Mapping[str, Mapping[str, float]], findings: list[float]) -> dict[str, Any]:
    shown = [by_law[d.name][f"single:{name}"] for d in DISEASES for name in d.shows_in]

    def mean(key: str) -> float:
        return round(float(np.mean([values[key] for values in by_law.values()])), 4)

    return {
        "single": round(float(np.mean(shown)), 4),
        "all": mean("all"),
        "available": mean("available"),
        "findings": round(float(np.mean(findings)), 4),
        "by_modality": {name: mean(f"single:{name}") for name in MODALITIES},
    }
