"""`radfuse recover`: mends the files of DVC that a kill cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from radfuse.engine.cli.options import Json
from radfuse.engine.cli.output import console, write_json

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of the DVC repository.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing where nothing was cut off.")]


def recover(folder: Folder = Path(), quiet: Quiet = False, as_json: Json = False) -> None:
    """Mend what a kill cut off while DVC was writing it, so that `dvc repro` starts again.

    That is .dvc/tmp/rwlock, dvc.lock (of which all stages before the cut are kept), the cache of runs, and
    unfinished copies of outputs (.TOKEN.tmp), which stop nothing but may be as large as a model.
    What DVC can read stays as it is, but for a dvc.lock without a line feed at its end: its last stage runs
    again. Nothing is touched while a DVC is at work there. The targets of make call this before `dvc repro`.
    """
    from radfuse.engine.recovering import recover as run

    told = run(folder)
    if as_json:
        write_json({"cut_off": told})
        return
    for line in told or ([] if quiet else ["Nothing was cut off."]):
        console().print(line, markup=False)
