"""The 14 findings, each with a place and a look of its own, as strong as its severity says.

Every function takes the strength (0 to 1) and adds to a film's attenuation or takes from it. What belongs to
the anatomy itself (heart, diaphragm, blackness of the lungs) is set in `chest_film.Build` by `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from radfuse.phantom.chest_film import Build, Film
from radfuse.phantom.shapes import Picture, clouds, ellipse, line, step


def strength(severity: float) -> float:
    """Visible strength, 0 to 1, of a severity; steepest where the sick and the healthy overlap."""
    return float(1.0 / (1.0 + np.exp(-(severity - 0.8) / 0.9)))


def build(severities: Mapping[str, float], rng: np.random.Generator, female: bool) -> Build:
    """The anatomy of a patient with these severities.

    Args:
        severities: of all findings, by name.
        rng: of the patient; what the findings leave open is drawn from it.
        female: whether breasts cast shadows.
    """
    strong = {name: strength(value) for name, value in severities.items()}
    return Build(
        heart=0.40 + 0.27 * strong["Cardiomegaly"] - 0.03 * strong["Emphysema"] + rng.normal(0.0, 0.008),
        lucency=0.66 * strong["Emphysema"] + rng.normal(0.0, 0.03),
        flattening=0.9 * strong["Emphysema"] + rng.normal(0.0, 0.03),
        left_rise=0.8 * strong["Atelectasis"] + rng.normal(0.0, 0.02),
        markings=rng.uniform(0.8, 1.2) + 0.9 * strong["Edema"],
        breasts=float(female) * rng.uniform(0.5, 1.0),
        fat=rng.uniform(0.3, 0.7),
    )


def draw(film: Film, severities: Mapping[str, float], rng: np.random.Generator) -> None:
    """Add the findings to a film.

    Args:
        film: with the anatomy drawn by `build` of the same severities.
        severities: of all findings, by name.
        rng: of the patient: a mass stays where it is in a repeat study.
    """
    for name, add in _LOOKS.items():
        add(film, strength(severities[name]), rng)


def _atelectasis(film: Film, strong: float, rng: np.random.Generator) -> None:
    """Plate-like bands across the left base (the raised diaphragm is in the build)."""
    for height, inner in ((0.14, 0.26), (0.30, 0.34)):
        y = film.domes[1] - height + rng.normal(0.0, 0.01)
        band = line(film.x, film.y, (inner, y + 0.05), (0.86, y - 0.06), 0.026)
        film.attenuation += 1.6 * strong * step(band, 0.010) * film.left


def _effusion(film: Film, strong: float, rng: np.random.Generator) -> None:
    """Fluid at both bases, level in the middle and climbing along the chest wall."""
    for lung, dome, share in ((film.right, film.domes[0], 1.0), (film.left, film.domes[1], 0.8)):
        level = dome + 0.28 - share * (0.62 * strong + rng.normal(0.0, 0.01))
        meniscus = 0.75 * np.clip(np.abs(film.x) - 0.40, 0.0, None)
        film.attenuation += 0.95 * step(film.y - level + meniscus, 0.035) * lung


def _infiltration(film: Film, strong: float, rng: np.random.Generator) -> None:
    """Blotches all over both lungs."""
    blots = np.clip(clouds(rng, film.x.shape, 0.085), 0.0, 2.0)
    film.attenuation += 1.1 * strong * blots * film.lungs


def _mass(film: Film, strong: float, rng: np.random.Generator) -> None:
    """One large round shadow in the right middle zone."""
    centre = (-0.50 + rng.normal(0.0, 0.03), -0.02 + rng.normal(0.0, 0.04))
    radius = 0.08 + 0.19 * strong
    edge = ellipse(film.x, film.y, centre, (radius, radius * 0.95), rng.uniform(0.0, 3.0))
    film.attenuation += (0.1 + 2.6 * strong) * step(edge + 0.01 * clouds(rng, film.x.shape, 0.1), 0.010)


def _nodule(film: Film, strong: float, rng: np.random.Generator) -> None:
    """Small round shadows all over both lungs."""
    for x, y in _NODULES:
        centre = (x + rng.normal(0.0, 0.03), y + rng.normal(0.0, 0.03))
        radius = 0.030 + 0.045 * strong
        film.attenuation += 2.2 * strong * step(ellipse(film.x, film.y, centre, (radius, radius)), 0.008)


def _pneumonia(film: Film, strong: float, rng: np.random.Generator) -> None:
    """A soft, mottled shadow in the left lower zone."""
    centre = (0.58 + rng.normal(0.0, 0.02), 0.30 + rng.normal(0.0, 0.03))
    soft = np.exp(-0.5 * (np.hypot((film.x - centre[0]) / 0.22, (film.y - centre[1]) / 0.27)) ** 2)
    mottled = 1.0 + 0.35 * clouds(rng, film.x.shape, 0.05)
    film.attenuation += 1.4 * strong * soft * mottled * film.left


def _pneumothorax(film: Film, strong: float, rng: np.random.Generator) -> None:
    """A black rim without vessels about the top of the left lung, and the thin line of the pleura."""
    rim = 0.05 + 0.26 * strong
    inner = ellipse(
        film.x, film.y, (0.42 - 0.3 * rim, 0.12 + 0.5 * rim), (0.37 - 0.6 * rim, 0.95 - rim), power=2.4
    )
    outside = step(-inner, 0.012) * film.left * step(0.35 - film.y, 0.08)
    film.attenuation *= 1.0 - strong * 0.75 * outside
    pleura = np.exp(-((inner / 0.012) ** 2)) * step(0.35 - film.y, 0.08)
    film.attenuation += 0.30 * strong * pleura * film.left


def _consolidation(film: Film, strong: float, rng: np.random.Generator) -> None:
    """The right upper lobe, dense down to a sharp fissure."""
    fissure = -0.16 + rng.normal(0.0, 0.015) + 0.10 * (film.x + 0.5)
    lobe = step(fissure - film.y, 0.012) * film.right
    film.attenuation += 1.6 * strong * lobe * (1.0 + 0.10 * clouds(rng, film.x.shape, 0.08))


def _edema(film: Film, strong: float, rng: np.random.Generator) -> None:
    """Haze about both hila, like the wings of a bat."""
    for side in (-1.0, 1.0):
        away = np.hypot((film.x - 0.30 * side) / 0.20, (film.y - 0.02) / 0.32)
        film.attenuation += 0.70 * strong * np.exp(-0.5 * away**2) * film.lungs


def _fibrosis(film: Film, strong: float, rng: np.random.Generator) -> None:
    """A net of lines in the lower half of both lungs: the zero lines of smooth noise."""
    net = np.exp(-((clouds(rng, film.x.shape, 0.045) / 0.30) ** 2))
    film.attenuation += 0.60 * strong * net * film.lungs * step(film.y - 0.10, 0.10)


def _pleural_thickening(film: Film, strong: float, rng: np.random.Generator) -> None:
    """A bright rind along both chest walls."""
    wall = np.asarray(np.abs(film.x) - 0.74 - 0.06 * np.tanh(1.6 * (film.y + 0.25)), np.float32)
    thick = 0.02 + 0.20 * strong + 0.008 * clouds(rng, film.x.shape, 0.15)
    film.attenuation += (0.2 + 1.3 * strong) * step(wall + thick, 0.012) * film.lungs


def _hernia(film: Film, strong: float, rng: np.random.Generator) -> None:
    """A pouch of the stomach behind the heart: a dense wall, a little fluid, and much black air above it."""
    radius = 0.06 + 0.26 * strong
    centre = (-0.05 + rng.normal(0.0, 0.015), 0.50)
    pouch = ellipse(film.x, film.y, centre, (1.25 * radius, radius))
    air = np.minimum(pouch - 0.03, np.float32(centre[1] + 0.4 * radius) - film.y)
    film.attenuation += 0.5 * strong * step(pouch, 0.012)
    film.attenuation *= 1.0 - 0.95 * strong * step(air, 0.010)


_NODULES = (
    (0.52, -0.52),
    (0.34, -0.24),
    (0.62, -0.14),
    (0.48, 0.14),
    (0.70, 0.30),
    (-0.38, -0.56),
    (-0.62, -0.30),
    (-0.32, -0.20),
    (-0.68, 0.08),
    (-0.46, 0.34),
)
"""Where they lie, about."""

_LOOKS: dict[str, Callable[[Film, float, np.random.Generator], None]] = {
    "Infiltration": _infiltration,
    "Fibrosis": _fibrosis,
    "Edema": _edema,
    "Pneumonia": _pneumonia,
    "Consolidation": _consolidation,
    "Mass": _mass,
    "Nodule": _nodule,
    "Atelectasis": _atelectasis,
    "Hernia": _hernia,
    "Pneumothorax": _pneumothorax,
    "Effusion": _effusion,
    "Pleural_Thickening": _pleural_thickening,
}
"""In the order of drawing; Cardiomegaly and Emphysema are all in the build."""


def exposed(film: Film, rng: np.random.Generator, noise: float = 0.012) -> Picture:
    """The picture of a film: 0 (black, air) to 1 (white, dense), with quantum noise; (H, W)."""
    picture = 1.0 - np.exp(-np.clip(film.attenuation, 0.0, None))
    grain = noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.asarray(np.clip(picture / 0.93 + grain, 0.0, 1.0), np.float32)
