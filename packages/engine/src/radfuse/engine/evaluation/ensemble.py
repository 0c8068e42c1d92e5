"""Figures of the ensemble: each modality alone, the weighted average and the meta-learner.

Which modality is the best single one, and whether average or meta-learner is reported as the ensemble, was
decided on the patients that the ensemble was fitted on; `test` only measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.engine import ceilings as limits
from radfuse.engine import subgroups, weighted
from radfuse.engine.evaluation.shared import Resampling, by_groups, floats, interval
from radfuse.engine.tables import DISEASE, PATIENT, columns

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.bootstrap import Bootstrap
    from radfuse.engine.ceilings import Ceilings
    from radfuse.engine.weighted import Statistic

AVAILABLE = "available:"
"""1 where the patient has the modality, else 0."""
HEAD = "head:"
"""Probability from one modality alone, ``head:xray:<disease>``; NaN where the patient lacks it."""
WEIGHTED_AVERAGE = "weighted_average"
META = "meta"
METHODS = (WEIGHTED_AVERAGE, META)
"""Column prefixes of the two ways to fuse: ``weighted_average:<disease>``, ``meta:<disease>``."""


@dataclass(frozen=True)
class Fused:
    """The test patients of an ensemble table.

    Attributes:
        rows: one a patient.
        diseases: names.
        modalities: names.
    """

    rows: pd.DataFrame
    diseases: Sequence[str]
    modalities: Sequence[str]

    @classmethod
    def of(cls, rows: pd.DataFrame, diseases: Sequence[str]) -> Fused:
        """Some rows of an ensemble table.

        Args:
            rows: of the table.
            diseases: that the ensemble tells.
        """
        return cls(rows, diseases, columns(rows, AVAILABLE))

    def has(self, modality: str) -> Fused:
        """The patients who have a modality."""
        return Fused(self.rows[floats(self.rows, AVAILABLE + modality) == 1], self.diseases, self.modalities)

    def column(self, method: str, disease: str) -> str:
        """The column of a disease by one method: a modality alone, or a way to fuse."""
        return f"{method}:{disease}" if method in METHODS else f"{HEAD}{method}:{disease}"

    def auroc(self, method: str, disease: str) -> Statistic:
        """The AUROC of one disease."""
        return weighted.auroc(
            floats(self.rows, DISEASE + disease), floats(self.rows, self.column(method, disease))
        )

    def mean_auroc(self, method: str) -> Statistic:
        """The mean over the diseases that have both classes."""
        return weighted.mean_of([self.auroc(method, disease) for disease in self.diseases])


def ensemble_report(
    test: pd.DataFrame,
    fitted: Mapping[str, Any],
    ceilings: Ceilings,
    groups: Sequence[str],
    resampling: Resampling,
) -> dict[str, Any]:
    """Every figure of the ensemble on the test patients.

    Args:
        test: rows of the ensemble table of `test`, with what the cohort knows of the patients.
        fitted: what ``weighted_average.json`` says.
        ceilings: of the diseases.
        groups: columns to show groups of.
        resampling: makes the resamples for the patients of some rows.
    """
    fused = Fused.of(test, fitted["diseases"])
    reported, best = str(fitted["reported"]), str(fitted["best_single"])
    methods = [*fused.modalities, *METHODS]
    return {
        "task": "ensemble",
        "status": "fitted",
        "patients": len(test),
        "reported": reported,
        "best_single": best,
        "chosen_on": fitted["fitted_on"],
        "diseases": {
            name: _disease(fused, name, methods, fitted, ceilings, resampling) for name in fused.diseases
        },
        "mean": {method: _mean(fused, method, ceilings, resampling) for method in methods},
        "gain": {"against": best, **_gain(fused.has(best), reported, best, resampling)},
        "gain_over": {name: _gain(fused.has(name), reported, name, resampling) for name in fused.modalities},
        "availability": _patterns(fused, methods, ceilings, resampling),
        "subgroups": {
            column: by_groups(
                test,
                column,
                "auroc",
                lambda rows: Fused.of(rows, fused.diseases).mean_auroc(reported),
                resampling,
            )
            for column in groups
        },
        "weights": fitted["weights"],
    }


def not_applicable(fitted: Mapping[str, Any]) -> dict[str, Any]:
    """What is said where there is no ensemble: that, and why."""
    return {"task": "ensemble", "status": str(fitted["status"]), "why": str(fitted["why"])}


def _disease(
    fused: Fused,
    disease: str,
    methods: Sequence[str],
    fitted: Mapping[str, Any],
    ceilings: Ceilings,
    resampling: Resampling,
) -> dict[str, Any]:
    truth = floats(fused.rows, DISEASE + disease)
    by_method = {}
    for method in methods:
        own = fused.has(method) if method in fused.modalities else fused
        bootstrap = resampling(own.rows[PATIENT].tolist())
        by_method[method] = {
            "patients": bootstrap.patients,
            **_figures(own, method, disease, bootstrap),
            "ceiling": ceilings.disease(disease, _evidence(method, fused)),
        }
    threshold = float(fitted["thresholds"][disease])
    return {
        "patients": int(np.isfinite(truth).sum()),
        "positives": int((truth == 1).sum()),
        "methods": by_method,
        "reported": _operating_point(fused, str(fitted["reported"]), disease, threshold, resampling),
    }


def _figures(own: Fused, method: str, disease: str, bootstrap: Bootstrap) -> dict[str, Any]:
    truth = floats(own.rows, DISEASE + disease)
    probability = floats(own.rows, own.column(method, disease))
    statistics = {
        "auroc": weighted.auroc(truth, probability),
        "average_precision": weighted.average_precision(truth, probability),
        "brier": weighted.brier(truth, probability),
        "ece": weighted.expected_calibration_error(truth, probability),
    }
    return {figure: interval(bootstrap, figure, one) for figure, one in statistics.items()}


def _operating_point(
    fused: Fused, method: str, disease: str, threshold: float, resampling: Resampling
) -> dict[str, Any]:
    truth = floats(fused.rows, DISEASE + disease)
    probability = floats(fused.rows, fused.column(method, disease))
    bootstrap = resampling(fused.rows[PATIENT].tolist())
    return {
        "threshold": threshold,
        "sensitivity": bootstrap.interval(weighted.sensitivity(truth, probability, threshold)).as_dict(),
        "specificity": bootstrap.interval(weighted.specificity(truth, probability, threshold)).as_dict(),
    }


def _mean(fused: Fused, method: str, ceilings: Ceilings, resampling: Resampling) -> dict[str, Any]:
    """The mean AUROC over diseases: of a modality over the patients who have it, else over all."""
    own = fused.has(method) if method in fused.modalities else fused
    bootstrap = resampling(own.rows[PATIENT].tolist())
    return {
        "patients": bootstrap.patients,
        "auroc": bootstrap.interval(own.mean_auroc(method)).as_dict(),
        "ceiling": ceilings.mean_disease(fused.diseases, _evidence(method, fused)),
    }


def _gain(own: Fused, reported: str, single: str, resampling: Resampling) -> dict[str, Any]:
    """The ensemble's mean AUROC minus a modality's, both on the patients who have that modality."""
    bootstrap = resampling(own.rows[PATIENT].tolist())
    by_disease = {
        disease: bootstrap.interval(
            weighted.difference(own.auroc(reported, disease), own.auroc(single, disease))
        ).as_dict()
        for disease in own.diseases
    }
    both = weighted.difference(own.mean_auroc(reported), own.mean_auroc(single))
    return {
        "patients": bootstrap.patients,
        "auroc": bootstrap.interval(both).as_dict(),
        "diseases": by_disease,
    }


def _patterns(
    fused: Fused, methods: Sequence[str], ceilings: Ceilings, resampling: Resampling
) -> list[dict[str, Any]]:
    """The mean AUROC for each set of modalities that patients have."""
    masks = fused.rows[[AVAILABLE + name for name in fused.modalities]].to_numpy(dtype=bool)
    pattern = np.array(["+".join(np.array(fused.modalities)[row]) for row in masks])
    counts = {
        name: int((pattern == name).sum()) for name in sorted(set(pattern), key=lambda p: (-p.count("+"), p))
    }
    hidden = subgroups.hidden_groups(counts)
    shown: list[dict[str, Any]] = []
    for name, count in counts.items():
        if name in hidden:
            shown.append({"modalities": name, "patients": None, "hidden": subgroups.HIDDEN})
            continue
        own = Fused(fused.rows[pattern == name], fused.diseases, fused.modalities)
        bootstrap = resampling(own.rows[PATIENT].tolist())
        there = [method for method in methods if method in METHODS or method in name.split("+")]
        evidence = limits.ALL if len(name.split("+")) == len(fused.modalities) else name
        shown.append(
            {
                "modalities": name,
                "patients": count,
                "auroc": {method: bootstrap.interval(own.mean_auroc(method)).as_dict() for method in there},
                "ceiling": ceilings.mean_disease(fused.diseases, evidence),
            }
        )
    return shown


def _evidence(method: str, fused: Fused) -> str:
    return method if method in fused.modalities else limits.AVAILABLE
