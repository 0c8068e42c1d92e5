"""`radfuse cohort`: scan the sources, split the patients, and show how many each split has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from radfuse.engine.cli.options import PARAMS, Overrides, ParamsFile, pipeline
from radfuse.engine.cli.output import console, write_table
from radfuse.engine.tables import SPLITS

_SHOWN = 5


def cohort(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Scan the sources of params.yaml and split their patients.

    Writes data/cohort, and the private table of names and paths in data/private. The same patient always gets
    the same split, whoever else is added.
    """
    from radfuse.engine import cohort as stage
    from radfuse.engine import counts

    settings, places = pipeline(params, overrides)
    made = stage.build(settings, places)
    stage.write(made, places)
    _show_left_out([one.shown for one in made.scan.lost])
    minimum = settings.split.minimum_positives
    write_table(
        f"{len(made.patients)} patients, {len(made.samples)} samples: patients by split (positives of a "
        "label)",
        ["", *SPLITS],
        _rows(made.stamp["counts"], minimum),
        _note(made.stamp["few_positives"], counts.FEW_POSITIVES),
    )


def _rows(numbers: Mapping[str, Any], minimum: int) -> list[list[str]]:
    rows = []
    for name, splits in numbers.items():
        rows.append([name, *(f"{splits[split]['patients']:,}" for split in SPLITS)])
        for label in splits["train"]["positives"]:
            found = [splits[split]["positives"][label] for split in SPLITS]
            rows.append([f"  {label}", *(f"{number:,}{'!' if number < minimum else ''}" for number in found)])
    return rows


def _note(few: Mapping[str, Sequence[str]], limit: int) -> str:
    if not few:
        return ""
    listed = "; ".join(f"{name}: {', '.join(labels)}" for name, labels in few.items())
    return f"Fewer than {limit} positives in calibration, so val and calibration are used together: {listed}."


def _show_left_out(shown: Sequence[str]) -> None:
    if not shown:
        return
    remarks = console(errors=True)
    remarks.print(
        f"{len(shown)} listed samples cannot be had; data/cohort/skipped.csv has all of them:", markup=False
    )
    for line in shown[:_SHOWN]:
        remarks.print(f"  {line}", markup=False)
    if len(shown) > _SHOWN:
        remarks.print(f"  ... and {len(shown) - _SHOWN} more", markup=False)
