"""`radfuse predict-split MODALITY`: the prediction table and the calibration."""

from __future__ import annotations

from radfuse.engine.cli.options import PARAMS, ModalityName, Overrides, ParamsFile, pipeline
from radfuse.engine.cli.output import console


def predict_split(modality: ModalityName, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Predict the held-out samples of a modality with its published best checkpoint, and fit the calibration.

    Writes data/predictions/MODALITY.parquet and MODALITY.calibration.json. Stopped at any moment, the same
    command goes on with the samples that it lacks. Refused when the model was trained on other images or
    another split than those at hand.
    """
    from radfuse.engine.cli.training_process import show_log
    from radfuse.engine.predicting import predict_split as run

    settings, places = pipeline(params, overrides)
    with show_log():
        table = run(settings, places, modality)
    console().print(f"{modality}: predictions in {places.relative(table)}", markup=False)
