"""The commands by name, each loaded when it is called.

Commands of the engine stand in `COMMANDS`; those of other packages come by the entry-point group
``radfuse.commands``, with the summary of their distribution as help.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command, get_command_from_info
from typer.models import CommandInfo

from radfuse.engine.cli.failing import WRONG_USAGE

__all__ = ["COMMANDS", "GROUP", "WRONG_USAGE", "Command", "Commands", "Entry", "application"]

GROUP = "radfuse.commands"


@dataclass(frozen=True)
class Entry:
    """Where a command lies.

    Attributes:
        module: to import when it is called.
        function: in it, with Typer annotations.
        help: one line for the list of commands.
    """

    module: str
    function: str
    help: str


def _engine(module: str, help_line: str) -> Entry:
    return Entry(f"radfuse.engine.cli.{module}", module, help_line)


COMMANDS = {
    "init": _engine("init", "Write a pipeline folder for your own data."),
    "cohort": _engine("cohort", "Scan the sources and split their patients."),
    "prepare": _engine("prepare", "Turn the images of a modality into arrays."),
    "train": _engine("train", "Train the network of a modality, or go on where it was stopped."),
    "predict-split": _engine(
        "predict_split", "Predict a modality's held-out samples with its best checkpoint."
    ),
    "evaluate": _engine("evaluate", "Figures of every model, with intervals, and the report."),
    "export": _engine("export", "Write ONNX and TorchScript files and check that they answer alike."),
    "predict": _engine("predict", "Ask an exported model about files of your own."),
    "validate": _engine("validate", "Test an exported model on another source of data."),
    "promote": _engine("promote", "Give the best checkpoint of a modality a version."),
    "whois": _engine("whois", "Look up whom a pseudonymous id stands for."),
    "recover": _engine("recover", "Mend what DVC was writing when it was killed."),
}
_ORDER = (
    "init", "phantom", "cohort", "prepare", "train", "predict-split", "ensemble", "evaluate", "export",
    "predict", "validate", "promote", "serve", "whois", "recover",
)  # fmt: skip


class Command(TyperCommand):
    """A command with ``-v``, and with its arguments named plainly in the usage line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        taken = {name for parameter in self.params for name in parameter.opts}
        if "-v" not in taken:
            self.params.append(_verbose())

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Commands(TyperGroup):
    """The list of commands: names and help at once, the commands themselves on demand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._entries = _entries()
        for name in self._entries:
            self.commands[name] = TyperCommand(name)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = self._entries.get(cmd_name)
        return None if entry is None else _command(cmd_name, entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries.items()])


def application() -> Any:
    """The whole command, ready to be called with arguments."""
    app = typer.Typer(
        name="radfuse",
        help="From images to models that can be trusted: cohorts, splits, training, evaluation, export.",
        epilog="Exit codes: 0 fine; 1 it failed and said why; 2 wrong usage. 'radfuse COMMAND -h' says more.",
        cls=Commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Plain help: boxes do not survive a pipe, and rich costs every start time.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_options)
    return get_command(app)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"radfuse {version('radfuse-engine')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show where an error arose.")] = False,
) -> None:
    """Options before any command."""


def _verbose() -> TyperOption:
    return TyperOption(
        param_decls=["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        help="Show where an error arose.",
    )


def _entries() -> dict[str, Entry]:
    """Every command there is: what the engine has, and what the entry points add."""
    found = {name: entry for name, entry in COMMANDS.items() if find_spec(entry.module) is not None}
    for point in entry_points(group=GROUP):
        summary = point.dist.metadata["Summary"] if point.dist is not None else ""
        found[point.name] = Entry(point.module, point.attr, summary or "")
    known = {name: place for place, name in enumerate(_ORDER)}
    return {name: found[name] for name in sorted(found, key=lambda name: (known.get(name, len(known)), name))}


def _command(name: str, entry: Entry) -> Any:
    function: Callable[..., Any] = getattr(importlib.import_module(entry.module), entry.function)
    return get_command_from_info(
        CommandInfo(name=name, callback=function, cls=Command),
        pretty_exceptions_short=False,
        rich_markup_mode=None,
    )
