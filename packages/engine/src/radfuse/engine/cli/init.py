"""`radfuse init DIR`: a pipeline folder for a lab's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from radfuse.engine.cli.output import console

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of the new pipeline.", show_default=False)
]
Kind = Annotated[
    str, typer.Option("--source", metavar="KIND", help="table, nih_chestxray14, brats, decathlon or phantom.")
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--modality", metavar="NAME", help="xray, ct, mri; may be repeated. By default what the source has.",
        show_default=False,
    ),
]  # fmt: skip
Root = Annotated[
    Path, typer.Option("--root", metavar="DIR", help="Folder of the images: absolute, or relative to DIR.")
]


def init(
    folder: Folder, source: Kind = "table", modality: Names = None, root: Root = Path("data/raw")
) -> None:
    """Write a commented pipeline folder for your own data: params.yaml, dvc.yaml, .gitignore, README.md.

    Nothing that is there is overwritten. README.md says what comes next.
    """
    from radfuse.engine import modality as registry
    from radfuse.engine import scaffold
    from radfuse.engine.errors import SettingsError, did_you_mean
    from radfuse.engine.sources import kinds

    if source not in kinds():
        raise SettingsError(f"--source {source!r} is no kind of source{did_you_mean(source, kinds())}")
    names = modality or [
        name for name in scaffold.MODALITIES_OF.get(source, ()) if name in registry.modalities()
    ]
    chosen = [registry.modality(name) for name in dict.fromkeys(names)]
    written = scaffold.write(
        folder,
        scaffold.sources_for(source, chosen, root, folder.resolve().name),
        chosen,
    )
    console().print(
        f"wrote {', '.join(path.name for path in written)} to {folder}; begin with its README.md",
        markup=False,
    )
