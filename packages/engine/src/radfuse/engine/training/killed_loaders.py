"""Processes that load and are killed: told as what happened, not as torch tells it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from radfuse.engine.errors import LoaderDied


@contextmanager
def killed_loaders_told(setting: str) -> Iterator[None]:
    """Around everything that is done with batches: torch raises in the midst of whatever runs in that moment.

    Args:
        setting: how many processes load, as params.yaml names it.

    Raises:
        LoaderDied: a process that loads samples was killed.
    """
    try:
        yield
    except RuntimeError as error:
        # What a process that loads has met itself begins with "Caught", and is told as it is.
        if "DataLoader worker" not in str(error) or "Caught" in str(error):
            raise
        raise LoaderDied(
            f"a process that loads samples was killed ({error}), perhaps as memory ran out: then try fewer "
            f"{setting}. What was saved last is kept: the same command goes on from there."
        ) from error
