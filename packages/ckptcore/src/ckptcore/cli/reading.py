"""`ckpt list`, `latest` and `show`: which checkpoint is which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ckptcore.cli.app import Directory, File, Json, app, examples
from ckptcore.cli.output import FINDING, note, styled, write, write_facts, write_json, write_table
from ckptcore.cli.table import Column, Row
from ckptcore.cli.text import amount, clean, count, listed, moment, plural, size, trouble

if TYPE_CHECKING:
    from pathlib import Path

    from ckptcore.cli.listing import Item, Listing

_MOST_METRICS = 4
_UNRECORDED = (
    "Verified. It is the newest by header, name and time; no manager recorded here which it would take."
)
_STYLES = {"damaged": "red", "other run": "yellow", "foreign": "dim"}


@app.command(
    "list", epilog=examples("ckpt list saved_models/xray", "ckpt list runs/7 --json | jq -r '.files[].name'")
)
def list_command(directory: Directory, json: Json = False) -> None:
    """List a folder's checkpoints, from old to new.

    Names that are hard links to one file share a row; the best row is marked with *. Exit code 1 when a
    file is damaged (!), belongs to another run (?), or there is none.
    """
    from ckptcore.cli.listing import list_folder

    found = list_folder(directory)
    if json:
        write_json(_list_json(found))
    elif found.items:
        _write_list(found)
    if not found.items:
        note(f"ckpt: no checkpoints in {clean(str(directory))}{_below(directory)}")
    if not found.items or any(item.finding for item in found.items):
        raise typer.Exit(FINDING)


def _list_json(found: Listing) -> dict[str, object]:
    return {
        "directory": found.directory,
        "layout": found.layout.name if found.layout else None,
        "run_key": found.run_key,
        "metric": found.metric,
        "mode": found.layout.mode if found.layout else None,
        "other_runs": found.other_runs(),
        "real_bytes": found.real_bytes,
        "files": [item.as_json() for item in found.items],
    }


def _write_list(found: Listing) -> None:
    metrics = found.metric_names()[:_MOST_METRICS]
    columns = [
        Column("file"),
        Column("epoch", right=True, drop=1),
        Column("step", right=True, drop=7),
    ]
    columns += [Column(clean(name), right=True, drop=2 + min(i, 2)) for i, name in enumerate(metrics)]
    columns += [Column("saved (UTC)", drop=3), Column("size", right=True, drop=1), Column("notes", wrap=True)]
    write_table(columns, [_row(item, metrics) for item in found.items])
    write()
    for item in found.of_status("damaged"):
        write(
            styled(
                f"! {clean(item.names[0])}: {clean(trouble(item.file.name, item.file.problem or ''))}", "red"
            )
        )
    for line in _footer(found):
        write(line)


def _row(item: Item, metrics: list[str]) -> Row:
    header = item.header
    mark = {"damaged": "!", "other run": "?"}.get(item.status, "*" if item.best else "")
    return Row(
        cells=(
            tuple(map(clean, item.names)),
            count(header.epochs_finished if header else None),
            count(header.global_step if header else None),
            *(amount(item.metrics.get(name)) for name in metrics),
            moment(header.created if header else None),
            size(item.file.size),
            _notes(item),
        ),
        mark=mark,
        style=_STYLES.get(item.status, "green" if item.best else ""),
    )


def _notes(item: Item) -> str:
    header = item.header
    told = [clean(role) for role in item.roles]
    if header is not None and header.reason:
        told.append(f"saved on {clean(header.reason)}")
    if item.status == "damaged":
        told = ["damaged"]
    elif item.status == "other run" and header is not None:
        told = [f"of run {clean(header.run_key)[:12]}" if header.run_key else "saved by hand"]
    elif item.status == "foreign" and header is not None:
        told.append(f"{header.format} file")
    elif header is not None and header.run_key is None:
        told.append("saved by hand")
    return ", ".join(told)


def _footer(found: Listing) -> list[str]:
    links = f" under {plural(found.names, 'name')}" if found.names > len(found.items) else ""
    saved = f" ({size(found.named_bytes)} without hard links)" if links else ""
    lines = [f"{plural(len(found.items), 'file')}{links}, {size(found.real_bytes)} on disk{saved}"]
    run = [f"run {clean(found.run_key)}"] if found.run_key else []
    layout = [f"layout {clean(found.layout.name)}"] if found.layout else []
    lines += [", ".join([*run, *layout])] if run or layout else []
    others, damaged = found.of_status("other run"), found.of_status("damaged")
    if others:
        lines.append(
            styled(f"? {plural(len(others), 'file')} of another run: {listed(found.other_runs())}", "yellow")
        )
    if damaged:
        lines.append(
            styled(f"! {plural(len(damaged), 'damaged file')}: 'ckpt verify' names what is wrong", "red")
        )
    if found.of_status("foreign"):
        lines.append(
            "Files of other programs are not opened here: 'ckpt verify' checks, 'ckpt import' converts them."
        )
    return lines


def _below(directory: Path) -> str:
    """Where checkpoints lie one level below, for who meant one of those folders."""
    from ckptcore.catalogue import SUFFIXES

    places = sorted(
        {
            file.parent.name
            for file in directory.glob("*/*")
            if file.suffix in SUFFIXES and not file.parent.name.startswith(".")
        }
    )
    return f"; there are some below it, in {listed(places)}" if places else ""


@app.command("latest", epilog=examples("ckpt latest runs/7", "ckpt latest runs/7 --json | jq -r .name"))
def latest(directory: Directory, json: Json = False) -> None:
    """Show the checkpoint that training would go on from.

    It is the newest one whose every byte verifies: what resume("auto") of the checkpoint manager takes.
    Nothing is loaded, moved or changed. Exit code 1 when there is none.
    """
    from ckptcore.cli.facts import header_facts, header_json
    from ckptcore.cli.listing import choose

    choice = choose(directory)
    header = choice.header
    if json:
        told: dict[str, object] = {"directory": directory, "name": choice.file.name if choice.file else None}
        told["names"] = list(choice.names)
        told |= {"passed_over": [{"name": name, "problem": why} for name, why in choice.passed_over]}
        write_json(told | ({"checkpoint": header_json(header)} if header else {"checkpoint": None}))
    for name, why in choice.passed_over:
        note(f"ckpt: passed over {clean(name)}: {clean(why)}")
    if header is None:
        note(f"ckpt: no checkpoint in {clean(str(directory))} that training could go on from")
        raise typer.Exit(FINDING)
    if not json:
        write_facts([*header_facts(header), *_also(choice.names)])
        write()
        write('Verified. resume("auto") takes this file.' if choice.recorded else _UNRECORDED)


def _also(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [("also named", ", ".join(map(clean, names[1:])))] if len(names) > 1 else []


@app.command(
    "show",
    epilog=examples("ckpt show saved_models/xray/resnet50_best.pth", "ckpt show runs/7/latest.pt --tensors"),
)
def show(
    file: File,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor: name, type, shape, bytes.")
    ] = False,
    json: Json = False,
) -> None:
    """Show everything that a checkpoint says of itself.

    Epoch, metrics, keys, roles, run, digest, parent and metadata come from the header; no tensor is read,
    so nothing is verified beyond the header itself ('ckpt verify' does that).
    """
    from ckptcore.cli.facts import header_facts, header_json, tensor_rows
    from ckptcore.errors import UsageError
    from ckptcore.loading import read_header

    if file.is_dir():
        raise UsageError(
            f"{file} is a folder; expected a checkpoint file. 'ckpt list {file}' shows its files."
        )
    header = read_header(file)
    rows = tensor_rows(file) if tensors else []
    if json:
        listed_tensors = [
            {"name": r.name, "dtype": r.dtype, "shape": r.shape, "bytes": r.nbytes, "digest": r.digest}
            for r in rows
        ]
        write_json(header_json(header) | ({"tensors": listed_tensors} if tensors else {}))
        return
    write_facts(header_facts(header, whole=True))
    if tensors:
        write()
        columns = [
            Column("tensor"),
            Column("type"),
            Column("shape"),
            Column("size", right=True),
            Column("sha256", drop=1),
        ]
        shapes = [" × ".join(map(str, r.shape)) or "scalar" for r in rows]
        write_table(
            columns,
            [
                Row((clean(r.name), r.dtype, shape, size(r.nbytes), r.digest[:12]))
                for r, shape in zip(rows, shapes, strict=True)
            ],
        )
