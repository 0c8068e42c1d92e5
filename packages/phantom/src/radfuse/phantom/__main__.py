"""``python -m radfuse.phantom``: the same as ``radfuse phantom``."""

from __future__ import annotations

import typer

from radfuse.phantom.command import phantom

if __name__ == "__main__":
    typer.run(phantom)
