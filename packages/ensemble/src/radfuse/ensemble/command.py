"""`radfuse ensemble`: one answer from all modalities, fitted on patients that no network learnt from."""

from __future__ import annotations

from radfuse.engine.cli.options import PARAMS, Overrides, ParamsFile, pipeline


def ensemble(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Fit heads, weighted average and meta-learner on the prediction tables of all modalities.

    Writes saved_models/ensemble and data/predictions/ensemble.parquet. Where too few patients have two
    modalities, these say so, and evaluate and export go on without an ensemble. Refused when the tables are
    of different splits or of other models than those published.
    """
    from radfuse.engine.cli.output import console
    from radfuse.engine.cli.training_process import show_log
    from radfuse.ensemble.running import run

    settings, places = pipeline(params, overrides)
    with show_log():
        outcome = run(settings, places)
    console().print(f"ensemble: {outcome}", markup=False)
