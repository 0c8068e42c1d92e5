"""The numbers of the generating model: which disease shows where, and how strongly.

`model` says how they are used.
"""

from __future__ import annotations

from dataclasses import dataclass

XRAY, CT, MRI = MODALITIES = ("xray", "ct", "mri")

SHIFT = 1.6
"""Distance d between the mean expressions of the sick and the healthy, in standard deviations of either."""
PREVALENCE = 0.3
"""Share of patients who have a disease; each disease is drawn on its own."""


@dataclass(frozen=True)
class Disease:
    """A disease of whole patients.

    Attributes:
        name: as in tables.
        shows_in: modalities whose pictures follow an expression of it.
    """

    name: str
    shows_in: tuple[str, ...]


CARCINOSIS = Disease("disseminated_carcinosis", (XRAY, CT))
CONGESTION = Disease("cardiocerebral_congestion", (XRAY, MRI))
GRANULOMATOSIS = Disease("neuropulmonary_granulomatosis", (XRAY, MRI))
GLIOPATHY = Disease("bullous_gliopathy", (XRAY, MRI))
DISEASES = (CARCINOSIS, CONGESTION, GRANULOMATOSIS, GLIOPATHY)


@dataclass(frozen=True)
class Finding:
    """One of the 14 findings of a chest radiograph.

    Attributes:
        disease: whose expression its severity follows; None for a finding with a severity of its own.
        jitter: standard deviation of the severity about that expression; 0 for the disease's leading finding.
        steepness, threshold: P(reported | severity) = expit(steepness * (severity - threshold)).
    """

    disease: Disease | None
    jitter: float
    steepness: float
    threshold: float


FINDINGS = {
    "Atelectasis": Finding(CARCINOSIS, 0.4, 1.6, 1.3),
    "Cardiomegaly": Finding(CONGESTION, 0.0, 1.7, 1.1),
    "Effusion": Finding(CONGESTION, 0.4, 1.6, 1.1),
    "Infiltration": Finding(GRANULOMATOSIS, 0.4, 1.6, 1.0),
    "Mass": Finding(CARCINOSIS, 0.0, 1.7, 1.2),
    "Nodule": Finding(CARCINOSIS, 0.4, 1.6, 1.2),
    "Pneumonia": Finding(GRANULOMATOSIS, 0.4, 1.6, 1.3),
    "Pneumothorax": Finding(GLIOPATHY, 0.4, 1.6, 1.3),
    "Consolidation": Finding(GRANULOMATOSIS, 0.0, 1.7, 1.2),
    "Edema": Finding(CONGESTION, 0.4, 1.6, 1.3),
    "Emphysema": Finding(GLIOPATHY, 0.0, 1.7, 1.1),
    "Fibrosis": Finding(GLIOPATHY, 0.4, 1.6, 1.3),
    "Pleural_Thickening": Finding(CARCINOSIS, 0.4, 1.6, 1.3),
    "Hernia": Finding(None, 1.0, 2.2, 0.8),
}
"""In the order and spelling of ChestX-ray14 (Wang et al., CVPR 2017)."""

NODULE_JITTER = 0.5
"""How much single nodules differ from their patient's expression; their mean does not."""
MALIGNANT = Finding(CARCINOSIS, NODULE_JITTER, 1.4, 0.9)

REGIONS = ("whole_tumour", "tumour_core", "enhancing_tumour")
"""The nested regions of BraTS, from the outside in."""


@dataclass(frozen=True)
class RegionSize:
    """How large a region is: exp(log(typical) + slope * (expression - 0.5)), clipped to the limits.

    The whole tumour's size is a volume in cm3; the others' are shares of the region around them. So each
    expression is a linear function of the logarithms of the three volumes.
    """

    disease: Disease
    typical: float
    slope: float
    limits: tuple[float, float]


REGION_SIZES = {
    "whole_tumour": RegionSize(CONGESTION, 60.0, 0.36, (15.0, 240.0)),
    "tumour_core": RegionSize(GRANULOMATOSIS, 0.40, 0.22, (0.16, 0.84)),
    "enhancing_tumour": RegionSize(GLIOPATHY, 0.40, 0.22, (0.16, 0.84)),
}
