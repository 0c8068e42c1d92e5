"""`radfuse validate`: an exported model on a source of data that it has never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radfuse.engine.cli.options import PARAMS, ModalityName, Overrides, ParamsFile, pipeline
from radfuse.engine.cli.output import console, write_table

if TYPE_CHECKING:
    from radfuse.engine.config import Params
    from radfuse.engine.places import Places

_SHOWN = 5
_FIGURES = ("auroc", "average_precision", "sensitivity", "specificity")

Model = Annotated[
    Path,
    typer.Option(
        "--model", metavar="FILE", help="An exported .onnx; its card lies beside it.", show_default=False
    ),
]
SourceName = Annotated[
    str,
    typer.Option(
        "--source", metavar="NAME", help="A source of params.yaml, or a kind of source.", show_default=False
    ),
]
Root = Annotated[Path, typer.Option("--root", metavar="DIR", help="Where its data lie.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results go.", show_default=False)]


def validate(
    modality: ModalityName,
    model: Model,
    source: SourceName,
    root: Root,
    out: Out,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Test an exported model on another source of data: every sample of it, from the files themselves.

    Writes predictions.parquet, metrics.json and skipped.csv, with pseudonymous ids alone; `radfuse whois ID
    --params DIR/params.yaml` tells whose they are. Where there is no params.yaml its defaults hold.
    """
    from radfuse.engine.export.validating import Order
    from radfuse.engine.export.validating import validate as carry_out

    settings, places = _pipeline(params, overrides, out)
    outcome = carry_out(Order(settings, places, modality, model, source, root, out))
    _show(outcome.report)
    errors = console(errors=True)
    for one in outcome.unread[:_SHOWN]:
        errors.print(f"not read: {one.shown}", markup=False, soft_wrap=True)
    if len(outcome.unread) > _SHOWN:
        errors.print(f"... and {len(outcome.unread) - _SHOWN} more, see skipped.csv", markup=False)
    if outcome.seen:
        errors.print(
            f"radfuse: {len(outcome.seen)} of these patients are among those that the models of this "
            f"pipeline were made with ({', '.join(outcome.seen[:_SHOWN])}): for them this is no test.",
            markup=False,
            soft_wrap=True,
        )


def _pipeline(params: Path, overrides: Sequence[str] | None, out: Path) -> tuple[Params, Places]:
    """The pipeline's settings; defaults where there is no pipeline, as on the machine of another hospital."""
    if params == PARAMS and not params.is_file() and not overrides:
        from radfuse.engine.config import Params as Defaults
        from radfuse.engine.places import Places as Here

        return Defaults(), Here(out)
    return pipeline(params, overrides)


def _show(report: Mapping[str, Any]) -> None:
    title = f"{report['model']['name']} on {report['source']}: {report['answered']} samples"
    if report["task"] == "segmentation":
        rows = [
            [name, str(one["samples"]), _interval(one["dice"]), _interval(one["volume_error_ml"])]
            for name, one in report.get("regions", {}).items()
        ]
        header = ["region", "samples", "Dice", "volume error (ml)"]
    else:
        rows = [
            [
                name,
                str(one["samples"]),
                str(one["positives"]),
                *(_interval(one[figure]) for figure in _FIGURES),
            ]
            for name, one in report["labels"].items()
        ]
        header = ["label", "samples", "positives", "AUROC", "average precision", "sensitivity", "specificity"]
    if rows:
        write_table(title, header, rows)
    else:
        console().print(f"{title}; the source has no labels that the model tells, so nothing was measured.")


def _interval(found: Mapping[str, float | None]) -> str:
    value, low, high = (found[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
