"""Keeps tables with rows about patients from leaving by ``dvc push``, unless params.yaml allows it."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import yaml

from radfuse.engine.errors import RadfuseError
from radfuse.engine.places import Places

_ABOUT_PATIENTS = (
    "data/cohort/*.parquet",
    "data/cohort/skipped.csv",
    "data/prepared/*",
    "data/predictions/*.parquet",
    "data/private*",
)
_FILE = "dvc.yaml"


class PushedTables(RadfuseError):
    """The pipeline would send rows about patients to its remote."""


def check(places: Places, allowed: bool) -> None:
    """Compare the outputs of the pipeline's dvc.yaml with ``privacy.push_patient_tables``.

    Args:
        places: of the pipeline; one without a dvc.yaml pushes nothing.
        allowed: what params.yaml says.

    Raises:
        PushedTables: an output with rows about patients would be pushed.
    """
    path = places.root / _FILE
    if allowed or not path.is_file():
        return
    try:
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
        pushed = sorted({name for stage in stages.values() for name in _pushed(stage)})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        # DVC itself says better what is wrong with its file.
        return
    if pushed:
        raise PushedTables(
            f"{_FILE} lets `dvc push` send {', '.join(pushed)}, which have rows about patients. Write "
            "`push: false` for them, or set privacy.push_patient_tables to true in params.yaml."
        )


def _pushed(stage: dict[str, Any]) -> Iterator[str]:
    for out in stage.get("outs", ()):
        name, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
        kept_here = options.get("push") is False or options.get("cache") is False
        if not kept_here and any(fnmatch(str(name), pattern) for pattern in _ABOUT_PATIENTS):
            yield str(name)
