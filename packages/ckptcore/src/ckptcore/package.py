"""What this package is called and which version of it is installed."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version


@lru_cache(maxsize=1)
def own_version() -> str:
    """The installed version of ckptcore; "unknown" where its code runs without being installed."""
    try:
        return version("ckptcore")
    except PackageNotFoundError:
        return "unknown"
