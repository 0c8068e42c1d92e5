"""The training command of a project: found in pyproject.toml, filled in, started in place of this process."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ckptcore.cli.output import finish
from ckptcore.errors import UsageError

SETTING = "resume_command"
_PLACE = re.compile(r"\{(checkpoint|directory)\}")


class WrongSetting(UsageError):
    """The training command is missing, or is no command.

    Attributes:
        example: lines of pyproject.toml that would do.
    """

    example = (
        "",
        "    [tool.ckptcore]",
        f'    {SETTING} = ["python", "train.py", "--resume", "{{checkpoint}}"]',
    )


@dataclass(frozen=True)
class Command:
    """A training command.

    Attributes:
        template: program and arguments, with {checkpoint} and {directory}.
        source: the pyproject.toml that it stands in.
    """

    template: tuple[str, ...]
    source: Path

    @property
    def folder(self) -> Path:
        """The folder that it runs in."""
        return self.source.parent

    def arguments(self, checkpoint: Path, directory: Path) -> list[str]:
        """Program and arguments, filled in; both paths absolute, so that none can pass for an option."""
        values = {"checkpoint": str(checkpoint), "directory": str(directory)}
        return [_PLACE.sub(lambda found: values[found[1]], part) for part in self.template]


def find_command(here: Path) -> Command:
    """The training command of the nearest pyproject.toml.

    Args:
        here: absolute path of the folder to look in first.

    Raises:
        WrongSetting: there is no such file or setting; it has the lines to add.
        UsageError: the file is no TOML.
    """
    source = next(
        (f / "pyproject.toml" for f in (here, *here.parents) if (f / "pyproject.toml").is_file()), None
    )
    if source is None:
        raise WrongSetting(
            f"no pyproject.toml in {here} or above it. Make one that says how training is resumed:"
        )
    try:
        with open(source, "rb") as file:
            settings = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} is no TOML: {error}") from error
    return Command(_checked(settings, source), source)


def _checked(settings: dict[str, object], source: Path) -> tuple[str, ...]:
    tool = settings.get("tool")
    ours = tool.get("ckptcore") if isinstance(tool, dict) else None
    found = ours.get(SETTING) if isinstance(ours, dict) else None
    if found is None:
        raise WrongSetting(f"{source} does not say how training is resumed. Add:")
    if not isinstance(found, list) or not found or not all(isinstance(part, str) for part in found):
        raise WrongSetting(
            f"{source}: expected {SETTING} to be a list of texts (program, then arguments; no shell), "
            f"got {found!r}. Write:"
        )
    if not any("{checkpoint}" in part for part in found):
        raise WrongSetting(
            f"{source}: {SETTING} has no {{checkpoint}}, so training would not go on from it. Write:"
        )
    return tuple(found)


def start(arguments: list[str], command: Command) -> NoReturn:
    """Become the training process, in the folder of its pyproject.toml.

    Raises:
        UsageError: the program cannot be started.
    """
    finish()
    sys.stderr.flush()
    os.chdir(command.folder)
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        raise UsageError(
            f"cannot start {arguments[0]!r}: {error.strerror}. It stands in {SETTING} of {command.source}; "
            "name a program that is on the PATH, or its absolute path."
        ) from error
