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
    """Mend .dvc/tmp/rwlock and dvc.lock where a kill cut them off, so that `dvc repro` starts again.

    DVC writes both in place. What is whole stays as it is: of a dvc.lock that was cut off, all stages but the
    one that was being written. Nothing is touched while a DVC is at work there. The targets of make call this
    before `dvc repro`.
    """
    from radfuse.engine.recovering import recover as run

    mended = run(folder)
    if as_json:
        write_json({"mended": mended})
        return
    for line in mended or ([] if quiet else ["Nothing was cut off."]):
        console().print(line, markup=False)
