"""Radiographs show each finding at its place, the more the severer, and look like a chest."""

import numpy as np
import pytest

from radfuse.phantom import chest_film, film_findings
from radfuse.phantom.diseases import FINDINGS

SHAPE = (150, 140)
SEVERITIES = (-1.0, 0.3, 1.1, 2.0, 3.5)


def radiograph(**severities):
    """A picture without noise; findings that are not given are hardly there."""
    complete = {name: severities.get(name, -3.0) for name in FINDINGS}
    build = film_findings.build(complete, np.random.default_rng(1), False)
    film = chest_film.draw(SHAPE, build, np.random.default_rng(2))
    film_findings.draw(film, complete, np.random.default_rng(3))
    return film_findings.exposed(film, np.random.default_rng(4), noise=0.0), film


@pytest.fixture(scope="module")
def healthy():
    return radiograph()


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_shows_the_more_the_severer_it_is_and_in_a_large_part_of_the_picture(healthy, name):
    changes = [np.abs(radiograph(**{name: value})[0] - healthy[0]) for value in SEVERITIES]
    means = [change.mean() for change in changes]
    assert means == sorted(means) and means[-1] > 3 * means[0]
    # At 64 x 64 pixels too: more than 1 % of the picture changes by more than ten times the noise.
    assert (changes[-1] > 0.12).mean() > 0.01


def test_findings_look_different_from_each_other(healthy):
    changes = np.array([(radiograph(**{name: 3.0})[0] - healthy[0]).ravel() for name in FINDINGS])
    changes /= np.linalg.norm(changes, axis=1, keepdims=True)
    likeness = np.abs(changes @ changes.T) - np.eye(len(FINDINGS))
    assert likeness.max() < 0.75


def test_a_chest_has_dark_lungs_a_bright_middle_and_ribs(healthy):
    picture, film = healthy
    lungs = film.lungs > 0.95
    assert 0.15 < lungs.mean() < 0.5
    middle = (np.abs(film.x) < 0.08) & (np.abs(film.y) < 0.4)
    assert picture[lungs].mean() < 0.55 * picture[middle].mean()
    # Along a line down the lung the ribs come and go.
    column = picture[:, np.argmin(np.abs(film.x[75] + 0.45))][20:95]
    smooth = np.convolve(column, np.ones(13) / 13, mode="same")[8:-8]
    crossings = np.diff(np.sign(column[8:-8] - smooth)) != 0
    assert crossings.sum() >= 8


def test_the_heart_lies_to_the_patients_left(healthy):
    picture, film = healthy
    low = (film.y > 0.15) & (film.y < 0.45)
    left, right = ((side * film.x > 0.2) & (side * film.x < 0.4) & low for side in (1, -1))
    assert picture[left].mean() > picture[right].mean() + 0.1


def test_size_in_pixels_does_not_change_what_is_seen():
    severities = {name: 1.0 for name in FINDINGS}
    pictures = []
    for scale in (1, 2):
        build = film_findings.build(severities, np.random.default_rng(1), True)
        film = chest_film.draw((128 * scale, 120 * scale), build, np.random.default_rng(2))
        film_findings.draw(film, severities, np.random.default_rng(3))
        pictures.append(film_findings.exposed(film, np.random.default_rng(4), noise=0.0))
    smaller = pictures[1].reshape(128, 2, 120, 2).mean(axis=(1, 3))
    assert np.abs(smaller - pictures[0]).mean() < 0.01
