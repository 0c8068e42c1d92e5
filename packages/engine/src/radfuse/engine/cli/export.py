"""`radfuse export`: the trained models as ONNX and TorchScript, each checked against its checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from radfuse.engine.cli.options import PARAMS, Overrides, ParamsFile, pipeline
from radfuse.engine.cli.output import console, write_table

_HEADER = ("model", "file", "MB", "largest difference", "seconds")

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODALITY...",
        help="xray, ct, mri, ensemble; all that are trained by default.",
        show_default=False,
    ),
]


def export(names: Names = None, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Write the best models as ONNX and TorchScript files with cards, and check that they answer alike.

    Every file is run on prepared samples, in several batches and sizes, before it gets its name. Where its
    answers differ from the checkpoint's by more than export.tolerance, nothing is written and the exit code
    is 1. Stopped at any moment, the same command goes on with the files that were not finished.
    """
    from radfuse.engine.cli.training_process import show_log
    from radfuse.engine.export.exporting import export as write

    settings, places = pipeline(params, overrides)
    errors = console(errors=True)
    with show_log():
        written = write(settings, places, names or [], lambda text: errors.print(text, markup=False))
    rows = [
        [
            one.name,
            one.file.name,
            f"{one.size / 1e6:.1f}",
            f"{one.difference:.1e}",
            f"{one.seconds:.1f}",
        ]
        for one in written
    ]
    if rows:
        tolerated = f"in {places.relative(places.exports)}; tolerated: {settings.export.tolerance:.0e}"
        write_table("Exports", _HEADER, rows, tolerated)
