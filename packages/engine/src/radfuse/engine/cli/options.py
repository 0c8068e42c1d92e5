"""Arguments that several commands share, and the parameters and places that they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from radfuse.engine.config import Params
    from radfuse.engine.places import Places

ParamsFile = Annotated[
    Path, typer.Option("--params", metavar="FILE", help="The pipeline's parameters; its folder is the root.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one parameter, as in --set train.xray.batch_size=8; may be repeated.",
        show_default=False,
    ),
]
ModalityName = Annotated[
    str, typer.Argument(metavar="MODALITY", help="As in params.yaml: xray, ct, mri.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]

PARAMS = Path("params.yaml")
"""Default of ``--params``."""


def pipeline(params: Path, overrides: Sequence[str] | None) -> tuple[Params, Places]:
    """The checked parameters and the places of a pipeline.

    Raises:
        SettingsError: the parameters make no sense.
    """
    from radfuse.engine.config import load
    from radfuse.engine.places import Places

    return load(params, overrides or ()), Places.of(params)
