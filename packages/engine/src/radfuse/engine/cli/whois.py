"""`radfuse whois`: whom a pseudonymous id stands for."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from radfuse.engine.cli.options import PARAMS, Json, Overrides, ParamsFile
from radfuse.engine.cli.output import console, write_json, write_table

_FOUND_NOTHING = 1
_HEADER = (
    "sample", "patient", "study", "source", "original patient", "original study", "point (mm)", "files",
)  # fmt: skip

Ids = Annotated[
    list[str],
    typer.Argument(
        metavar="ID...", help="Patient, study or sample ids: p..., s..., i...", show_default=False
    ),
]


def whois(ids: Ids, params: ParamsFile = PARAMS, overrides: Overrides = None, as_json: Json = False) -> None:
    """Look up whom pseudonymous ids stand for, and in which files.

    Reads the private table that `radfuse cohort` wrote; nothing else holds names. Exit code 1 where an id is
    in no cohort of this pipeline.
    """
    from radfuse.engine.identity import who_is
    from radfuse.engine.places import Places

    rows, unknown = who_is(Places.of(params), ids)
    found = [_entry(row) for row in rows.to_dict("records")]
    if as_json:
        write_json({"found": found, "unknown": unknown})
    elif found:
        write_table("", _HEADER, [_cells(entry) for entry in found])
    if unknown:
        console(errors=True).print(f"radfuse: no such id here: {', '.join(unknown)}", markup=False)
        raise typer.Exit(_FOUND_NOTHING)


def _entry(row: dict[Any, Any]) -> dict[str, Any]:
    entry = {str(name): value or None for name, value in row.items()}
    entry["files"] = json.loads(row["files"])
    entry["point_mm"] = json.loads(row["point_mm"]) if row["point_mm"] else None
    return entry


def _cells(entry: dict[str, Any]) -> list[str]:
    names = ("sample_id", "patient_id", "study_id", "source", "original_patient_id", "original_study_id")
    point = ", ".join(f"{value:g}" for value in entry["point_mm"] or ())
    return [*(str(entry[name] or "") for name in names), point, _files(entry["files"])]


def _files(files: dict[str, list[str]]) -> str:
    """One line a role; of a series the first file and how many there are."""
    lines = []
    for role, paths in files.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        lines.append(f"{role}: {paths[0]}{more}")
    return "\n".join(lines)
