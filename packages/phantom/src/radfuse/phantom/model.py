"""The generating model: from diseases to what the pictures are drawn from.

For each patient, each disease y is 0 or 1, by itself, with probability `PREVALENCE`. For each modality that
shows it, an *expression* z = d*y + N(0, 1) is drawn, d = `SHIFT`. The pictures follow from these alone:

* X-ray: each finding has a *severity*. That of a disease's leading finding is the expression itself, that of
  its other findings the expression plus N(0, jitter²), that of findings without a disease N(0, 1). The
  picture shows the severity. Whether the finding is reported (its label) is drawn from it, with
  P = expit(steepness * (severity - threshold)).
* CT: the severities of a patient's nodules scatter about the expression so that their mean is the expression.
  They decide size, spikes and density; malignant or not is drawn from the severity as a finding is.
* MRI: three expressions decide the volume of the whole tumour, the core's share of it and the enhancing share
  of the core, each by an exponential law: they are linear in the logarithms of the three volumes.

Whatever a picture says about a disease it says through the expression, so nobody can tell the sick from the
healthy better than the expressions do: `ceilings` computes how well that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from radfuse.phantom import keys
from radfuse.phantom.diseases import (
    CARCINOSIS,
    CT,
    DISEASES,
    FINDINGS,
    MALIGNANT,
    MODALITIES,
    MRI,
    NODULE_JITTER,
    PREVALENCE,
    REGION_SIZES,
    SHIFT,
    XRAY,
    Finding,
)

NODULES = (1, 2, 3)
NODULE_SHARES = (0.5, 0.3, 0.2)


@dataclass(frozen=True)
class Patient:
    """What is true of one patient.

    Attributes:
        diseases: 0 or 1 by name.
        expressions: by modality, then by name of the disease.
        severities: of the findings, by name.
        findings: 0 or 1 by name.
        nodule_severities: one a nodule; their mean is the expression in CT.
        malignant: 0 or 1, one a nodule.
        volumes_cm3: of the three nested tumour regions.
        studies: how many of each modality there are: 0 none, 2 with a repeat.
    """

    diseases: Mapping[str, int]
    expressions: Mapping[str, Mapping[str, float]]
    severities: Mapping[str, float]
    findings: Mapping[str, int]
    nodule_severities: tuple[float, ...]
    malignant: tuple[int, ...]
    volumes_cm3: Mapping[str, float]
    studies: Mapping[str, int]


def draw(seed: int, number: int, *, incomplete: float = 0.25, repeats: float = 0.08) -> Patient:
    """Draw a patient; the same one for the same arguments.

    Args:
        seed: of the cohort.
        number: of the patient, from 0.
        incomplete: share of patients who lack one or two modalities.
        repeats: share of studies that are done a second time.
    """
    rng = keys.stream(seed, number, "model")
    diseases = {disease.name: int(rng.random() < PREVALENCE) for disease in DISEASES}
    expressions = {
        modality: {
            disease.name: float(rng.normal(SHIFT * diseases[disease.name], 1.0))
            for disease in DISEASES
            if modality in disease.shows_in
        }
        for modality in MODALITIES
    }
    severities = {name: _severity(rng, finding, expressions[XRAY]) for name, finding in FINDINGS.items()}
    findings = {name: _report(rng, FINDINGS[name], value) for name, value in severities.items()}
    nodules = _nodules(rng, expressions[CT][CARCINOSIS.name])
    return Patient(
        diseases=diseases,
        expressions=expressions,
        severities=severities,
        findings=findings,
        nodule_severities=nodules,
        malignant=tuple(_report(rng, MALIGNANT, severity) for severity in nodules),
        volumes_cm3=region_volumes(expressions[MRI]),
        studies=_studies(rng, incomplete, repeats),
    )


def region_volumes(expressions: Mapping[str, float]) -> dict[str, float]:
    """Volumes in cm3 of the three nested regions for the expressions of MRI, from the outside in."""
    volumes = {}
    around = 1.0
    for region, size in REGION_SIZES.items():
        raw = size.typical * np.exp(size.slope * (expressions[size.disease.name] - 0.5))
        around *= float(np.clip(raw, *size.limits))
        volumes[region] = around
    return volumes


def availability(incomplete: float) -> dict[tuple[str, ...], float]:
    """Probability of each set of modalities; of the incomplete patients two in three lack just one."""
    shares: dict[tuple[str, ...], float] = {MODALITIES: 1.0 - incomplete}
    for lacking in MODALITIES:
        shares[tuple(other for other in MODALITIES if other != lacking)] = incomplete * 2 / 9
    for only in MODALITIES:
        shares[(only,)] = incomplete / 9
    return shares


def _severity(rng: np.random.Generator, finding: Finding, expressions: Mapping[str, float]) -> float:
    scatter = float(rng.normal()) * finding.jitter
    return scatter if finding.disease is None else expressions[finding.disease.name] + scatter


def _report(rng: np.random.Generator, finding: Finding, severity: float) -> int:
    chance = 1.0 / (1.0 + np.exp(-finding.steepness * (severity - finding.threshold)))
    return int(rng.random() < chance)


def _nodules(rng: np.random.Generator, expression: float) -> tuple[float, ...]:
    count = int(rng.choice(NODULES, p=NODULE_SHARES))
    scatter = rng.normal(0.0, NODULE_JITTER, count)
    return tuple(float(value) for value in expression + scatter - scatter.mean())


def _studies(rng: np.random.Generator, incomplete: float, repeats: float) -> dict[str, int]:
    shares = availability(incomplete)
    having = list(shares)[int(rng.choice(len(shares), p=list(shares.values())))]
    twice = rng.random(len(MODALITIES)) < repeats
    return {
        name: (2 if again else 1) if name in having else 0
        for name, again in zip(MODALITIES, twice, strict=True)
    }
