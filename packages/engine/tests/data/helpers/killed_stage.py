"""Processes that are killed while a file gets its name, or while a figure is drawn, and what is left then."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptcore import durable

KILLED = """
import os, signal, sys
from ckptcore import durable

publish = durable.publish

def killed(temporary, names):
    if names[0].name == {at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(temporary, names)

durable.publish = killed
sys.path[:0] = {path!r}
"""

HALF_DRAWN = """
import os, signal
from pathlib import Path
from PIL import Image

def killed(image, file, name):
    file.write(b"half a figure")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

Image.init()
Image.SAVE["PNG"] = killed
path = Path({path!r})
"""


def command(name: str, pipeline: Path) -> str:
    """A program that runs a command of radfuse."""
    arguments = [name, "--params", str(pipeline / "params.yaml")]
    return f"from radfuse.engine.cli import run\nrun({arguments!r})\n"


def kill(script: str) -> None:
    """Run a script, in which SIGKILL must end its process."""
    ended = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def check_nothing_is_left(
    folder: Path, names: Sequence[str], script: str, again: Callable[[], object]
) -> None:
    """A killed stage that is run again ends with the files that it ends with unkilled, and with no others.

    Args:
        folder: of the pipeline, in which the stage has run before.
        names: of files, each of which is on its way when a process is killed; those that the stage writes
            late first, so that no process gets as far as the one before.
        script: runs the stage in a process.
        again: runs the same stage here.
    """
    whole = files(folder)
    for name in names:
        kill(KILLED.format(at=name, path=[str(Path(__file__).parent)]) + script)
    left = files(folder) - whole
    assert len({path.parent for path in left}) == len(names)
    assert all(durable.is_temporary(path.name) for path in left)
    again()
    assert files(folder) == whole


def check_figure_is_whole(path: Path, draw: str) -> None:
    """The figure of before stays where its next drawing is killed half-way.

    Args:
        path: of the figure.
        draw: code that draws it at `path`.
    """
    path.write_bytes(b"a whole figure")
    kill(HALF_DRAWN.format(path=str(path)) + draw)
    assert path.read_bytes() == b"a whole figure"
