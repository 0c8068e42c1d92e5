"""`ckpt resume`: start the project's own training command on a checkpoint that was checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckptcore.cli.app import Directory, app, examples
from ckptcore.cli.output import FINDING, note
from ckptcore.cli.text import clean


@app.command(
    "resume",
    epilog=examples(
        "ckpt resume runs/7", "ckpt resume runs/7 epoch_030_checkpoint.pt", "ckpt resume runs/7 --dry-run"
    ),
)
def resume(
    directory: Directory,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Checkpoint to go on from, a path or a name in DIR; by default what 'ckpt latest' shows.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the command, and do not start it.")
    ] = False,
) -> None:
    """Start the project's training on a checkpoint.

    Every byte of it is checked first. The nearest pyproject.toml upwards from here says what to start, as
    a list without a shell; it runs in that file's folder. Nothing is ever started that a checkpoint says.

    \b
    [tool.ckptcore]
    resume_command = ["python", "train.py", "--resume", "{checkpoint}"]

    {checkpoint} and {directory} become absolute paths. The exit code is that of the training, or 1 when there
    is no checkpoint to go on from.
    """  # noqa: D301 - the backspace is meant: Typer leaves the lines after it as they are
    import shlex

    from ckptcore.cli.launching import find_command, start

    command = find_command(Path.cwd())
    checkpoint = _chosen(directory, file)
    arguments = command.arguments(checkpoint.resolve(), directory.resolve())
    note(f"ckpt: {clean(checkpoint.name)} verified; in {clean(str(command.folder))}:")
    note(f"  {clean(shlex.join(arguments))}")
    if not dry_run:
        start(arguments, command)


def _chosen(directory: Path, file: Path | None) -> Path:
    if file is not None:
        return _verified(directory, file)
    from ckptcore.cli.listing import choose

    choice = choose(directory)
    for name, why in choice.passed_over:
        note(f"ckpt: passed over {clean(name)}: {clean(why)}")
    if choice.file is None:
        note(f"ckpt: no checkpoint in {clean(str(directory))} that training could go on from")
        raise typer.Exit(FINDING)
    return choice.file.path


def _verified(directory: Path, file: Path) -> Path:
    """The file that was named, if it is whole.

    Raises:
        UsageError: there is none.
        DamagedCheckpoint: it is not what was written.
    """
    from ckptcore.errors import DamagedCheckpoint, UsageError
    from ckptcore.verifying import verify

    path = next((place for place in (directory / file, file) if place.is_file()), None)
    if path is None:
        raise UsageError(
            f"expected a checkpoint file, got {file}: there is none, neither in {directory} nor here."
        )
    report = verify(path)
    if not report.ok:
        raise DamagedCheckpoint(path, report.findings)
    return path
