"""Keeps tables with rows about patients from leaving by ``dvc push``, unless params.yaml allows it.

DVC alone knows what its templates come to. Here a template stands for any text: an output that may be such a
table counts as one.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from radfuse.engine.errors import RadfuseError
from radfuse.engine.places import Places

_log = logging.getLogger(__name__)
_ABOUT_PATIENTS = (
    "data/cohort/*.parquet",
    "data/cohort/skipped.csv",
    "data/prepared/*",
    "data/predictions/*.parquet",
    "data/private*",
)
_FILE = "dvc.yaml"
_REPOSITORY = ".dvc"
_TEMPLATE = re.compile(r"\$\{[^}]*\}")
_OUTPUTS = ("outs", "metrics", "plots")


class PushedTables(RadfuseError):
    """The pipeline would send rows about patients to its remote."""


def check(places: Places, allowed: bool) -> None:
    """Compare the outputs of the pipeline's stages with ``privacy.push_patient_tables``.

    Its stages may stand in its own dvc.yaml, or in one above it that names its folder by ``wdir``, as one
    file for several pipelines does; all up to the folder of the DVC repository are read. What cannot be
    checked is said in a warning.

    Args:
        places: of the pipeline; one without a dvc.yaml pushes nothing.
        allowed: what params.yaml says.

    Raises:
        PushedTables: an output with rows about patients would be pushed.
    """
    if allowed:
        return
    root = Path(os.path.abspath(places.root))
    for file in _files(root):
        pushed = sorted(set(_pushed(file, root)))
        if pushed:
            raise PushedTables(
                f"{_shown(file, root)} lets `dvc push` send {', '.join(pushed)}, which have rows about "
                "patients. Write `push: false` for them, or set privacy.push_patient_tables to true in "
                "params.yaml."
            )


def _files(root: Path) -> Iterator[Path]:
    for folder in (root, *root.parents):
        if (folder / _FILE).is_file():
            yield folder / _FILE
        if (folder / _REPOSITORY).is_dir():
            return


def _shown(file: Path, root: Path) -> str:
    return Path(os.path.relpath(file, root)).as_posix()


def _pushed(file: Path, root: Path) -> Iterator[str]:
    """Outputs that have rows about patients of the pipeline and are pushed, as a dvc.yaml names them."""
    tables = [(root / table).parts for table in _ABOUT_PATIENTS]
    for name, stage in _stages(file, root):
        try:
            wdir = _wdir(stage, file.parent, root)
            for path in _outputs(stage):
                if not _TEMPLATE.match(path):
                    if any(_meet(_parts(wdir / path), table) for table in tables):
                        yield path
                elif _meet(_parts(wdir), tables[0]):
                    _warn(file, root, f"what {path} in the stage {name} stands for is not known here")
        except (TypeError, ValueError, AttributeError) as error:
            _warn(file, root, f"the stage {name} is not of the usual form ({type(error).__name__})")


def _stages(file: Path, root: Path) -> Iterator[tuple[str, Any]]:
    """The stages of a dvc.yaml by name."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        yield from (found.get("stages") or {}).items()
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        _warn(file, root, f"it cannot be read ({type(error).__name__})")


def _outputs(stage: Mapping[str, Any]) -> Iterator[str]:
    """What a stage lets DVC push; of stages made by ``foreach``, what stands for each of them."""
    each = stage.get("do", stage)
    for out in [out for kind in _OUTPUTS for out in each.get(kind) or ()]:
        [(path, options)] = out.items() if isinstance(out, dict) else [(out, None)]
        options = options or {}
        if options.get("push") is not False and options.get("cache") is not False:
            yield str(path)


def _wdir(stage: Mapping[str, Any], above: Path, root: Path) -> Path:
    """The folder that a stage works in; where a template may come to the pipeline's own, that one.

    Args:
        stage: of a dvc.yaml.
        above: the folder of that dvc.yaml.
        root: of the pipeline.
    """
    wdir = str(stage.get("do", stage).get("wdir", "."))
    fitting = ".*".join(map(re.escape, _TEMPLATE.split(posixpath.normpath(wdir))))
    return root if re.fullmatch(fitting, root.relative_to(above).as_posix()) else above / wdir


def _warn(file: Path, root: Path, why: str) -> None:
    _log.warning(
        "%s: %s, so nobody checked that `dvc push` sends no rows about patients; write `push: false` for "
        "tables of samples and patients, and for prepared images.",
        _shown(file, root), why,
    )  # fmt: skip


def _parts(path: Path) -> Sequence[str]:
    """The parts of an output's path, as patterns of file names."""
    return Path(os.path.normpath(_TEMPLATE.sub("*", str(path)))).parts


def _meet(out: Sequence[str], table: Sequence[str]) -> bool:
    """Whether an output may be a table, hold it, or lie inside it; both as parts of paths with ``*``."""
    return all(_may_be_same(one, other) for one, other in zip(out, table, strict=False))


def _may_be_same(one: str, other: str) -> bool:
    """Whether some text fits both patterns."""
    if "*" not in one or "*" not in other:
        return one == other or fnmatchcase(one, other) or fnmatchcase(other, one)
    # With a star in both, what stands before the first ones and after the last ones decides.
    before, after = ((one.split("*")[at], other.split("*")[at]) for at in (0, -1))
    return _one_begins(*before) and _one_begins(*(text[::-1] for text in after))


def _one_begins(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
