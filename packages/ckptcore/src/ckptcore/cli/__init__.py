"""The `ckpt` command. Commands import what they need when they run, so that a list starts at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from typer.main import get_command

from ckptcore.cli import checking, publishing, reading, running, space  # noqa: F401 - each adds its commands
from ckptcore.cli.app import Command, app
from ckptcore.cli.output import FINDING, FINE, WRONG_USAGE, error_line, finish, mute, note
from ckptcore.errors import CheckpointError, FolderNotWritable, NothingThere, UsageError

__all__ = ["app", "main", "run"]

_ORDER = (
    "list", "latest", "show", "versions", "du", "verify", "diff", "compare", "plan", "clean", "archive",
    "resume", "import", "export-weights", "promote",
)  # fmt: skip

for _command in app.registered_commands:
    _command.cls = Command
app.registered_commands.sort(key=lambda command: _ORDER.index(command.name or ""))


def main() -> None:
    """The entry point of `ckpt`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0 fine, 1 a finding, 2 wrong usage."""
    # A shell's >&- leaves no stream at all.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole process
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be text; a terminal need not know every character.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    code = _code_of(arguments)
    finish()
    return code


def _code_of(arguments: Sequence[str]) -> int:
    try:
        get_command(app).main(args=list(arguments), prog_name="ckpt")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            mute()  # The reader of a help had enough of it.
            return FINE
        return end.code if isinstance(end.code, int) else FINE if end.code is None else WRONG_USAGE
    except NothingThere as error:
        return _failed(error, FINDING)
    except (UsageError, FolderNotWritable, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return _failed(error, WRONG_USAGE)
    except (CheckpointError, OSError) as error:
        return _failed(error, FINDING)
    return FINE


def _failed(error: BaseException, code: int) -> int:
    note(f"ckpt: {error_line(error)}")
    for line in getattr(error, "example", ()):
        note(line)
    return code
