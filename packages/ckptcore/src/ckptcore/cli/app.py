"""The Typer application, and the arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.models import TyperPath

from ckptcore.errors import UsageError

app = typer.Typer(
    name="ckpt",
    help="Look after checkpoints: see which is which, check them, keep what matters, go on from them.",
    epilog=(
        "Exit codes: 0 fine; 1 something was found (damage, files of another run, nothing there); "
        "2 wrong usage. 'ckpt COMMAND --help' shows examples."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: the boxes of rich cost 30 ms on every error and do not survive a pipe.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class Command(TyperCommand):
    """A command whose usage line names its arguments plainly: DIR, where Typer writes {DIR}."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and refuse empty paths: an unset variable of a shell must not mean the current folder."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(parameter.name or "")
            values = value if isinstance(value, (list, tuple)) else (value,)
            if isinstance(parameter.type, TyperPath) and "" in values:
                raise UsageError(f"expected a path as {parameter.make_metavar(ctx)}, got an empty one.")
        return super().parse_args(ctx, args)


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of checkpoints.", show_default=False)]
File = Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint file.", show_default=False)]
Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Checkpoint files, or folders of them.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


def examples(*lines: str) -> str:
    """The end of a command's help: its examples, each on its own line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"ckptcore {version('ckptcore')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version of ckptcore.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """Options before any command; each does its work in its own callback."""
