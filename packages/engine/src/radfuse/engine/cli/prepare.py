"""`radfuse prepare MODALITY`: images to arrays, in processes, restartable."""

from __future__ import annotations

from radfuse.engine.cli.options import PARAMS, ModalityName, Overrides, ParamsFile, pipeline
from radfuse.engine.cli.output import console

_SHOWN = 5


def prepare(modality: ModalityName, params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Decode, resample and crop the images of a modality once, for training to read.

    It may be stopped and started again at any moment: arrays that are finished stay. What cannot be read is
    listed with its reason in data/prepared/MODALITY/skipped.csv; too many of those are an error.
    """
    from radfuse.engine.modality import modality as find
    from radfuse.engine.preparing import stage

    settings, places = pipeline(params, overrides)
    result = stage.prepare(find(modality), settings, places)
    remarks = console(errors=True)
    if result.skipped:
        remarks.print(f"{len(result.skipped)} could not be read:", markup=False)
        for line in result.skipped[:_SHOWN]:
            remarks.print(f"  {line}", markup=False)
    kept = f", {result.kept} of them from before" if result.kept else ""
    folder = places.relative(places.prepared(modality))
    console().print(f"{result.prepared} samples of {modality} in {folder}{kept}", markup=False)
