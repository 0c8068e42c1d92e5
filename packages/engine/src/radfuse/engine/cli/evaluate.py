"""`radfuse evaluate`: figures of every model on the test patients, with intervals, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from radfuse.engine.cli.options import PARAMS, Overrides, ParamsFile, pipeline

if TYPE_CHECKING:
    from rich.table import Table

    from radfuse.engine.blocks import EvaluateSettings
    from radfuse.engine.config import Params
    from radfuse.engine.evaluation.results import Results
    from radfuse.engine.places import Places


def evaluate(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Measure every model on the test patients, and write the report.

    Reads the prediction tables alone: no GPU, no images. Refuses tables that were made from other models or
    another split than those at hand.
    """
    from ckptcore import durable
    from radfuse.engine.cli.output import console, plain
    from radfuse.engine.evaluation import writing
    from radfuse.engine.evaluation.results import evaluate as measure
    from radfuse.engine.evaluation.summary import leaks
    from radfuse.engine.report import write_report

    settings, places = pipeline(params, overrides)
    results = measure(places, settings.evaluate, source_folders(settings, places))
    writing.withdraw(places)
    figures = writing.write_results(places, results)
    page = places.reports / writing.REPORT
    write_report(page, results, figures, settings.evaluate)
    table, warnings = summary_table(results, settings.evaluate), leaks(results)
    summary = plain(table) + "".join(f"{line}\n" for line in warnings)
    durable.write_text(places.reports / writing.SUMMARY, summary)
    writing.write_metrics(places, results)
    out = console()
    out.print(table)
    for line in warnings:
        out.print(line, markup=False, style="bold red", soft_wrap=True)
    if results.ensemble is not None and results.ensemble["status"] != "fitted":
        out.print(f"ensemble: not applicable: {results.ensemble['why']}.", markup=False)
    out.print(f"report: {places.relative(page)}", markup=False)


def source_folders(params: Params, places: Places) -> Sequence[Path]:
    """The folders of the cohort's sources, absolute or below the pipeline's folder."""
    roots = [source["root"] for source in params.sources if source.get("root")]
    return [places.root / Path(root).expanduser() for root in roots]


def summary_table(results: Results, settings: EvaluateSettings) -> Table:
    """The results, their intervals and the ceilings, as the terminal shows them."""
    from rich.table import Table

    from radfuse.engine.evaluation.summary import summary

    table = Table(title="Results on the test patients", title_justify="left")
    table.add_column("model")
    table.add_column("figure")
    table.add_column("result", justify="right")
    table.add_column(f"{settings.confidence:.0%} interval", justify="right")
    table.add_column("ceiling", justify="right")
    table.add_column("patients", justify="right")
    for line in summary(results):
        table.add_row(
            line.model,
            line.figure,
            _number(line.interval["value"]),
            _range(line.interval["low"], line.interval["high"]),
            _number(line.ceiling),
            str(line.patients),
            style="bold" if line.emphasis else None,
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
