"""Going through a folder and those below it, none of which is passed over in silence."""

from __future__ import annotations

import os
from collections.abc import Iterator


def walk(top: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, which says nothing of a folder that it cannot read; one that went away meanwhile is none.

    Args:
        top: the folder.

    Raises:
        OSError: a folder cannot be read.
    """
    for where, folders, names in os.walk(top, onerror=_raise):
        yield os.fspath(where), folders, names


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
