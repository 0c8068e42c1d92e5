"""The `radfuse` command. A command's module is imported when it is called, so help shows at once."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from radfuse.engine.cli.commands import WRONG_USAGE, application
from radfuse.engine.cli.failing import FAILED, INTERRUPTED, code_of, show_traceback, shown

__all__ = ["main", "run"]


def main() -> None:
    """The entry point of `radfuse`."""
    from radfuse.engine.cli.training_process import end_with_parent

    # Here and not in the commands: what they import first takes seconds, in which DVC may be killed.
    end_with_parent()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0 fine, 1 it failed and said why, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be text; a terminal need not know every character.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        application().main(args=list(arguments), prog_name="radfuse")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else WRONG_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("radfuse: interrupted.\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Its reader (head, less) had enough; nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if not shown(error) or show_traceback(arguments):
            raise
        sys.stderr.write(f"radfuse: {error_text(error)}\n")
        return code_of(error)
    return 0


def error_text(error: BaseException) -> str:
    """What went wrong, as one message."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({os.fsdecode(error.filename)})" if error.filename is not None else ""
        return (
            f"{error.strerror}{where}. Free some space, and the same command goes on with what is finished."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        # As of a file that may grow no further: what fails to be written is not told which file it is of.
        return f"{error.strerror}; with -v the traceback shows which file."
    return _from_worker(str(error)) or type(error).__name__


def _from_worker(message: str) -> str:
    """The message of an error that a loading process met, without the traceback that torch puts before it."""
    if not message.startswith("Caught ") or " in DataLoader worker process" not in message:
        return message
    kind = message.split(" ", 2)[1]
    return message.rpartition(f"{kind}: ")[2].strip()
