from pathlib import Path

import pytest

from radfuse.phantom import Settings, write

SMALL = Settings(
    patients=10, workers=1, seed=5, xray_size=(64, 80), ct_matrix=64, ct_slices=(10, 14), mri_matrix=(30, 36)
)


@pytest.fixture(scope="session")
def small() -> Settings:
    """Settings of a cohort with pictures that are small enough to be drawn in a moment."""
    return SMALL


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients, to be read only."""
    out = tmp_path_factory.mktemp("cohort") / "phantom"
    write(out, SMALL)
    return out
