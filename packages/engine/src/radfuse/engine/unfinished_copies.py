"""Copies that a killed DVC did not come to the end of.

DVC copies a model into its cache, back from there, and within its folder where the file is a hard link. Each
time it writes to a name of its own beside the place, ``.TOKEN.tmp`` or ``NAME.TOKEN.tmp``, which a kill
leaves there: nothing reads it again, and it may be as large as the model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

_UNFINISHED = re.compile(r"\.[A-Za-z0-9_-]{22}\.tmp$")
"""How dvc_objects names what it is writing: 16 random bytes in base64, for URLs."""


def unfinished_copies(root: Path, pipelines: Iterable[Path]) -> Iterator[Path]:
    """Find them beside the cached outputs of pipelines and in the repository's own cache.

    A cache elsewhere is left alone, as another repository's DVC may be writing to it.

    Args:
        root: of the DVC repository.
        pipelines: each dvc.yaml in it.
    """
    folders: set[Path] = set()
    for out in {out for pipeline in pipelines for out in _cached_outputs(pipeline)}:
        if out.is_relative_to(root):
            folders |= {out.parent, *_below(out)}
    own = root / ".dvc" / "cache"
    if not own.is_symlink():
        folders |= {*_below(own / "files")}
    for folder in sorted(folders):
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # Not made yet, or not to be read: then there is nothing that could be removed, either.
            continue
        yield from (folder / name for name in names if _UNFINISHED.search(name))


def _below(folder: Path) -> Iterator[Path]:
    """A folder and those in it; none where it is a file, or a link to somewhere else."""
    if not folder.is_symlink():
        yield from (Path(place) for place, _, _ in os.walk(folder))


def _cached_outputs(pipeline: Path) -> Iterator[Path]:
    """Outputs that DVC puts into its cache, but those whose names come from parameters (``${...}``)."""
    for stage in _stages(pipeline):
        wdir = stage.get("wdir", ".")
        listed = [stage[kind] for kind in ("outs", "metrics", "plots") if isinstance(stage.get(kind), list)]
        for entry in (entry for entries in listed for entry in entries):
            # `- NAME`, or `- NAME: {cache: false}`.
            name, options = next(iter(entry.items())) if isinstance(entry, dict) and entry else (entry, None)
            cached = not isinstance(options, dict) or options.get("cache", True)
            if cached and isinstance(name, str) and isinstance(wdir, str) and "${" not in wdir + name:
                yield Path(os.path.normpath(pipeline.parent / wdir / name))


def _stages(pipeline: Path) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(pipeline.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        # DVC says what is wrong with it.
        return []
    stages = content.get("stages") if isinstance(content, dict) else None
    return [one for one in stages.values() if isinstance(one, dict)] if isinstance(stages, dict) else []
