"""`radfuse train MODALITY`: until it is done, or stopped; then on from there."""

from __future__ import annotations

from typing import Annotated

import typer

from radfuse.engine.cli.options import PARAMS, ModalityName, Overrides, ParamsFile, pipeline
from radfuse.engine.cli.output import console


def train(
    modality: ModalityName,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|none|FILE",
            help="Go on where this very training was stopped, begin it anew, or go on from a checkpoint.",
        ),
    ] = "auto",
    accept_other_hardware: Annotated[
        bool,
        typer.Option(
            "--accept-other-hardware",
            help="Go on though device, precision or threads are not what they were.",
        ),
    ] = False,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Train the network of a modality and publish its checkpoints in saved_models/MODALITY.

    It may be killed at any moment: the same command goes on where it was, and ends with the same bits as if
    nothing had happened. Changed parameters, data or code start a training of their own.
    """
    from radfuse.engine.cli.training_process import show_log
    from radfuse.engine.training.session import train as run

    settings, places = pipeline(params, overrides)
    with show_log():
        outcome = run(settings, places, modality, resume, accept_other_hardware)
    if not outcome.published:
        return  # Another process of the same training published.
    folder = places.relative(places.saved_models(modality))
    console().print(f"{modality}: {outcome.epochs_finished} epochs; published in {folder}", markup=False)
