"""``radfuse phantom``: the command. What takes time to import is imported when it runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from radfuse.phantom.cohort import Report

DEFAULT_PARAMS = Path("params.yaml")
_FAILED = 1
_WRONG_USAGE = 2


def phantom(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to write to: new, empty, or of an earlier call. Needed unless params.yaml has it.",
            show_default=False,
        ),
    ] = None,
    patients: Annotated[
        int | None, typer.Option(metavar="N", help="How many patients; 300 by default.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="S", help="Another seed, other patients; 0 by default.", show_default=False),
    ] = None,
    params: Annotated[
        Path, typer.Option(metavar="FILE", help="Its 'phantom:' block gives defaults, if the file is there.")
    ] = DEFAULT_PARAMS,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="phantom.key=value; repeatable.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Write a cohort of invented patients as the DICOM and NIfTI files that scanners write.

    A patient has chest radiographs (14 findings), chest CT (nodules) and brain MR (a tumour in three nested
    regions), or lacks one or two of them, and may have four diseases that each show in two modalities.
    ceilings.json in the folder says how well anybody can tell.

    The same seed gives the same bytes, with any number of processes. Patient i is the same in every cohort:
    --set phantom.first_patient=1000 gives further ones. A killed call is finished by the next one.

    Keys for --set: out, patients, first_patient, workers, seed, incomplete, repeats, xray_size, ct_matrix,
    ct_slices, mri_matrix.

    Example: radfuse phantom --out data/phantom --patients 50
    """
    from rich.console import Console

    from radfuse.phantom.cohort import write
    from radfuse.phantom.errors import PhantomError, SettingsError
    from radfuse.phantom.parent import end_with_dvc
    from radfuse.phantom.settings import load

    end_with_dvc()
    messages = Console(stderr=True, soft_wrap=True)

    def say(line: str, style: str | None = None) -> None:
        messages.print(f"radfuse phantom: {line}", style=style, markup=False, highlight=False)

    options = {"out": out, "patients": patients, "seed": seed}
    try:
        # A file that was asked for must be there; the default one may be missing.
        file = params if params != DEFAULT_PARAMS or params.is_file() else None
        settings = load(file, override or [], {key: v for key, v in options.items() if v is not None})
        if settings.out is None:
            raise SettingsError("no folder to write to: give --out DIR, or phantom.out in params.yaml.")
        with _progress(messages) as progress:
            report = write(settings.out, settings, progress, say)
    except (PhantomError, OSError) as error:
        say(_message(error), style="red")
        raise typer.Exit(_WRONG_USAGE if isinstance(error, SettingsError) else _FAILED) from None
    if as_json:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
    else:
        _show(report, Console())


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on a terminal, a line every tenth of the way elsewhere."""
    if not console.is_terminal:
        shown: set[int] = set()

        def say(done: int, of: int) -> None:
            if (tenth := 10 * done // of) not in shown:
                shown.add(tenth)
                console.print(f"{done} of {of} patients", highlight=False)

        yield say
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("patients"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("patients", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _show(report: Report, console: Console) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    studies = ", ".join(f"{count} {name}" for name, count in report.studies.items())
    best = report.ceilings
    for name, value in (
        ("patients", f"{report.patients} ({report.written} written, {report.kept} kept)"),
        ("studies", f"{studies}; {report.nodules} nodules"),
        ("files", f"{report.files}, {report.bytes / 1e6:.0f} MB"),
        ("best AUC of diseases", f"{best['single']:.3f} from one modality, {best['all']:.3f} from all"),
        ("best AUC of findings", f"{best['findings']:.3f}"),
    ):
        table.add_row(name, value)
    console.print(table)
