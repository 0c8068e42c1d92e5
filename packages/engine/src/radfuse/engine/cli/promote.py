"""`radfuse promote MODALITY`: a numbered version of the best checkpoint, also in MLflow's registry."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from radfuse.engine.cli.options import PARAMS, ModalityName, Overrides, ParamsFile, pipeline
from radfuse.engine.cli.output import console


def promote(
    modality: ModalityName,
    version: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="The version's number.", show_default=False)
    ] = None,
    bump: Annotated[
        Literal["major", "minor", "patch"] | None,
        typer.Option(help="The part of the last version's number to raise.", show_default=False),
    ] = None,
    notes: Annotated[str, typer.Option(metavar="TEXT", help="What is new in it.")] = "",
    dataset: Annotated[str, typer.Option(metavar="TEXT", help="What it was trained on.")] = "",
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Make a numbered, read-only version of the published best checkpoint.

    Version 1.1.0 of resnet50_best.pth is resnet50_v1.1.0_best.pth beside it, with a card. MLflow's registry
    gets it as radfuse-MODALITY, with the tag semver and the alias champion.
    """
    from radfuse.engine.cli.training_process import show_log
    from radfuse.engine.promoting import promote as run

    if (version is None) == (bump is None):
        raise typer.BadParameter("expected either --version X.Y.Z or --bump major|minor|patch.")
    if version is not None:
        _require_number(version)
    settings, places = pipeline(params, overrides)
    with show_log():
        card = run(settings, places, modality, version=version, bump=bump, notes=notes, dataset=dataset)
    console().print(f"{modality}: version {card.version} is {card.file_name}", markup=False)


def _require_number(version: str) -> None:
    """Tell a number that is none, which is wrong usage, from one that is refused."""
    from ckptcore.errors import VersionRefused
    from ckptcore.semver import Semver

    try:
        Semver.parse(version)
    except VersionRefused as error:
        raise typer.BadParameter(f"--version: {error}") from error
