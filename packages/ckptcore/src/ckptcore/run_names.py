"""Names of run folders: made of what the user calls things, and never a way out of the data folder."""

from __future__ import annotations

import os
import re

from ckptcore.errors import UsageError

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_LONGEST_PART = 100


def nested_name(name: str | None) -> str:
    """A root name that stays below the data folder."""
    parts = (name or "").split("/")
    if any(part in ("", ".", "..") or not _is_safe(part) for part in parts):
        raise UsageError(f"root_name: expected folders below the data, as 'cutouts/hale', got {name!r}.")
    return "/".join(parts)


def _is_safe(part: str) -> bool:
    return (
        "\\" not in part
        and part.isprintable()
        and len(part.encode()) <= _LONGEST_PART
        and not part.startswith(".")
    )


def folder_part(name: str) -> str:
    """A model's or a loss's name as part of a folder's name: "org/model" becomes "org_model"."""
    cleaned = re.sub(r"[^\w.+=-]+", "_", str(name)).strip(".")
    if not cleaned or not _is_safe(cleaned):
        raise UsageError(
            f"expected a name of 1 to {_LONGEST_PART} letters and digits for a folder, got {name!r}. "
            "Give a short one."
        )
    return cleaned


def is_first_process() -> bool:
    """Whether this is the process of a distributed run that writes; the same variables tell Lightning."""
    ranks = [os.environ[name] for name in _RANKS if os.environ.get(name, "").isdigit()]
    return not ranks or int(ranks[0]) == 0
