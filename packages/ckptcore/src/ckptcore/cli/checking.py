"""`ckpt verify`, `diff` and `compare`: is it whole, what changed, which is the best."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ckptcore.cli.app import Json, Paths, app, examples
from ckptcore.cli.output import FINDING, note, styled, write, write_facts, write_json, write_table
from ckptcore.cli.table import Cell, Column, Row
from ckptcore.cli.text import amount, clean, count, listed, moment, plural, size, stamp, trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptcore.cli.verification import Checked, Strangers
    from ckptcore.comparing import Comparison
    from ckptcore.comparing import Row as Compared
    from ckptcore.diffing import Difference

_CHECKS = {
    "sha256": "every byte (SHA-256)",
    "crc32": "CRC-32",
    "structure": "structure",
    "nothing": "nothing",
}
_MOST_METRICS = 6
_DIGEST = re.compile("[0-9a-f]{64}")


@app.command(
    "verify",
    epilog=examples(
        "ckpt verify runs/7",
        "ckpt verify model.safetensors old_checkpoint.pth",
        "ckpt verify . --json | jq .ok",
    ),
)
def verify(paths: Paths, json: Json = False) -> None:
    """Check that checkpoints are what was written.

    Every byte is read. Files of ckptcore by the SHA-256 of every tensor and record, promoted versions by
    their card too; .pt and .pth files of other programs by their zip CRCs, .safetensors by its structure.
    Folders are searched, with all below them. Exit code 1 when a file is damaged, files of several runs
    lie in one folder, or there is none.
    """
    from ckptcore.cli.verification import check, checkpoint_files, strangers

    files = checkpoint_files(paths)
    checked = check(files, paths)
    others = strangers(files)
    ok = bool(checked) and all(c.report.ok for c in checked) and not others
    if json:
        write_json(
            {"ok": ok, "files": [c.as_json() for c in checked], "other_runs": [o.as_json() for o in others]}
        )
    elif checked:
        _write_checked(checked, others)
    if not checked:
        note(f"ckpt: no checkpoints in {listed(map(str, paths))}")
    if not ok:
        raise typer.Exit(FINDING)


def _write_checked(checked: Sequence[Checked], others: Sequence[Strangers]) -> None:
    columns = [
        Column("file"),
        Column("result"),
        Column("checked", drop=1),
        Column("tensors", right=True, drop=2),
    ]
    columns.append(Column("size", right=True, drop=3))
    stranger_paths = {other.directory / name for other in others for name in other.names}
    rows = []
    for item in checked:
        report, strange = item.report, bool(stranger_paths.intersection(item.paths))
        result = "DAMAGED" if not report.ok else "other run" if strange else "ok"
        told = (tuple(clean(str(p)) for p in item.paths), result, _CHECKS.get(report.checked, report.checked))
        cells = (*told, count(report.tensors) if report.format == "ckptcore" else "-", size(item.size))
        mark, style = ("!", "red") if not report.ok else ("?", "yellow") if strange else ("", "")
        rows.append(Row(cells, mark, style))
    write_table(columns, rows)
    write()
    damaged = [item for item in checked if not item.report.ok]
    for item in damaged:
        write(styled(f"! {clean(str(item.paths[0]))}", "red"))
        for finding in item.report.findings:
            write(f"    {clean(finding)}")
    for other in others:
        what = f"{plural(len(other.names), 'name')} of another run ({listed(other.run_keys)})"
        write(styled(f"? {clean(str(other.directory))}: {what}: {listed(other.names)}", "yellow"))
    write(f"{plural(len(checked), 'file')} checked, {len(damaged)} damaged")


@app.command(
    "diff",
    epilog=examples(
        "ckpt diff runs/7/best.pt runs/7/latest.pt", "ckpt diff a.pt b.pt --json | jq .same_model"
    ),
)
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Checkpoint file.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Checkpoint file.", show_default=False)],
    every: Annotated[bool, typer.Option("--all", help="Name every tensor, however many there are.")] = False,
    json: Json = False,
) -> None:
    """Show which tensors differ between two checkpoints.

    And what else their headers tell apart. Only headers are read, where every tensor has its digest, so
    files of any size take milliseconds. Differences are no finding: the exit code is 0 with and without
    them.
    """
    from ckptcore.diffing import diff as compare_headers

    found = compare_headers(a, b)
    if json:
        write_json(_diff_json(found))
        return
    _write_diff(found, None if every else 20)


def _diff_json(found: Difference) -> dict[str, object]:
    from ckptcore.diffing import ABSENT

    fields = [
        {"field": f.field, "a": None if f.a is ABSENT else f.a, "b": None if f.b is ABSENT else f.b}
        for f in found.metadata
    ]
    return {
        "a": found.a,
        "b": found.b,
        "identical": found.identical,
        "same_model": found.same_model,
        "changed": list(found.changed),
        "added": list(found.added),
        "removed": list(found.removed),
        "reshaped": [{"name": r.name, "a": r.a, "b": r.b} for r in found.reshaped],
        "same": list(found.same),
        "metadata": fields,
    }


def _write_diff(found: Difference, most: int | None) -> None:
    write_facts([("A", clean(str(found.a))), ("B", clean(str(found.b)))])
    tensors = [("~", name, "changed", "yellow") for name in found.changed]
    tensors += [("~", r.name, f"{r.a} -> {r.b}", "yellow") for r in found.reshaped]
    tensors += [("-", name, "only in A", "red") for name in found.removed]
    tensors += [("+", name, "only in B", "green") for name in found.added]
    if tensors:
        write()
        shown = tensors[:most]
        rows = [Row((clean(name), clean(what)), mark, style) for mark, name, what, style in shown]
        write_table([Column("tensor"), Column("difference")], rows)
        if len(tensors) > len(shown):
            write(f"  and {plural(len(tensors) - len(shown), 'tensor')} more; --all names them")
    if found.metadata:
        write()
        rows = [Row((clean(f.field), _brief(f.a), _brief(f.b))) for f in found.metadata]
        write_table([Column("header"), Column("A", wrap=True), Column("B", wrap=True)], rows)
    write()
    model = "the same model" if found.same_model else "the models differ"
    write(
        f"{plural(len(found.same), 'tensor')} the same, {len(found.changed)} changed, "
        f"{len(found.reshaped)} reshaped, {len(found.removed)} only in A, {len(found.added)} only in B: "
        f"{model}"
    )


def _brief(value: object) -> str:
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:12]}..."
    if isinstance(value, float):
        return amount(value)
    return stamp(str(value)) or clean(str(value))


@app.command(
    "compare",
    epilog=examples(
        "ckpt compare checkpoints",
        "ckpt compare runs/*/best.pt --metric val_auc",
        "ckpt compare runs/7 --plot progress.png",
    ),
)
def compare(
    paths: Paths,
    metric: Annotated[
        str | None,
        typer.Option(metavar="M", help="Metric that decides which is the best.", show_default=False),
    ] = None,
    mode: Annotated[
        Literal["min", "max"] | None,
        typer.Option(help="Whether low or high values of it are good.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the metrics over the epochs.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show how training went, and name the best epoch.

    Metrics, threshold, stage and learnable parameters of each checkpoint, by finished epochs; the best
    row is marked with *. Exit code 1 when a file is damaged, or there is none.
    """
    from ckptcore import comparing
    from ckptcore.cli.verification import checkpoint_files
    from ckptcore.errors import NothingThere

    below: list[Path] = []
    try:
        found = comparing.compare(paths, metric, mode=mode)
    except NothingThere:
        found = comparing.Comparison((), None, metric, mode)
        below = checkpoint_files(paths)
    for path in found.gone:
        note(f"ckpt: {clean(str(path))} is gone: its writer rotated it away meanwhile")
    picture = comparing.plot(found, plot) if plot is not None and found.rows else None
    if json:
        write_json(_comparison_json(found, picture))
    elif found.rows:
        _write_comparison(found)
        if picture is not None:
            write(f"Drawn to {clean(str(picture))}")
    if not found.rows:
        places = sorted({str(path.parent) for path in below})
        more = f"; there are some below, in {listed(places)}" if places else ""
        note(f"ckpt: no checkpoints in {listed(map(str, paths))}{more}")
    if not found.rows or any(row.problem for row in found.rows):
        raise typer.Exit(FINDING)


def _comparison_json(found: Comparison, picture: Path | None) -> dict[str, object]:
    keys = (
        *("path", "name", "format", "epochs_finished", "global_step", "stage", "metrics", "threshold"),
        *(
            "learnable_parameters",
            "parameters",
            "roles",
            "size",
            "model_digest",
            "run_key",
            "created",
            "problem",
        ),
    )
    rows = [{key: getattr(row, key) for key in keys} | {"best": row is found.best} for row in found.rows]
    best = (
        {"name": found.best.name, "path": found.best.path, "epochs_finished": found.best.epochs_finished}
        if found.best
        else None
    )
    return {"metric": found.metric, "mode": found.mode, "best": best, "rows": rows, "plot": picture}


def _write_comparison(found: Comparison) -> None:
    metrics = _metrics_shown(found)
    columns = [Column("file"), Column("epoch", right=True), Column("stage", drop=1)]
    columns += [Column(clean(name), right=True, drop=min(i, 3)) for i, name in enumerate(metrics)]
    columns += [Column("threshold", right=True, drop=1), Column("learnable", right=True, drop=2)]
    columns += [Column("saved (UTC)", drop=4), Column("notes", drop=5)]
    one_folder = len({row.path.parent for row in found.rows}) == 1
    rows = []
    for group in _by_file(found.rows):
        names = tuple(clean(row.name if one_folder else str(row.path)) for row in group)
        rows.append(_compared(names, group[0], metrics, any(row is found.best for row in group)))
    write_table(columns, rows)
    write()
    for row in found.rows:
        if row.problem:
            write(styled(f"! {clean(row.name)}: {clean(trouble(row.name, row.problem))}", "red"))
    write(_verdict(found))


def _metrics_shown(found: Comparison) -> list[str]:
    """The deciding metric, then those of validation, then those of training."""
    names = dict.fromkeys(name for row in found.rows for name in row.metrics if not name.startswith("best_"))
    rest = sorted((name for name in names if name != found.metric), key=lambda name: name.startswith("train"))
    return ([found.metric, *rest] if found.metric else rest)[:_MOST_METRICS]


def _by_file(rows: Sequence[Compared]) -> list[list[Compared]]:
    """Rows of one file under several names together; of a file that is gone by now, its row alone."""
    groups: dict[object, list[Compared]] = {}
    for row in rows:
        try:
            status = row.path.stat()
            key: object = (status.st_dev, status.st_ino)
        except OSError:
            key = row.path
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _compared(names: tuple[str, ...], row: Compared, metrics: Sequence[str], best: bool) -> Row:
    numbers = [amount(row.metrics.get(name)) for name in metrics]
    epoch, stage = count(row.epochs_finished), clean(row.stage or "-")
    note_on_it = "damaged" if row.problem else "-" if row.format == "ckptcore" else f"{row.format} file"
    cells: tuple[Cell, ...] = (
        names,
        epoch,
        stage,
        *numbers,
        amount(row.threshold),
        count(row.learnable_parameters),
    )
    mark, style = ("!", "red") if row.problem else ("*", "green") if best else ("", "")
    return Row((*cells, moment(row.created), note_on_it), mark, style)


def _verdict(found: Comparison) -> str:
    if found.metric is None:
        return "No metric decides which is the best: name one with --metric."
    way = {"min": "lowest", "max": "highest"}.get(found.mode or "", "best")
    if found.best is None:
        return f"No checkpoint has a finite {clean(found.metric)}, so none is the best."
    one_folder = len({row.path.parent for row in found.rows}) == 1
    name = found.best.name if one_folder else str(found.best.path)
    best = f"epoch {count(found.best.epochs_finished)}, {clean(name)}"
    return (
        f"Best: {best}, with the {way} {clean(found.metric)}: {amount(found.best.metrics.get(found.metric))}"
    )
