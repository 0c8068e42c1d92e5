"""`ckpt import`, `export-weights`, `promote` and `versions`: what comes in, and what is given out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ckptcore.cli.app import Directory, File, Json, app, examples
from ckptcore.cli.output import FINDING, note, styled, write, write_facts, write_json, write_table
from ckptcore.cli.table import Column, Row
from ckptcore.cli.text import aligned, amount, clean, count, moment, plural, size

if TYPE_CHECKING:
    from ckptcore.versions import VersionCard

_STYLES = {"whole": "", "incomplete": "yellow"}


@app.command(
    "import",
    epilog=examples(
        "ckpt import old_run/model.ckpt --to runs/8",
        "ckpt import weights.safetensors --to runs/8 --name start.pt",
    ),
)
def import_command(
    file: File,
    to: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the converted checkpoint.", show_default=False)
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="File name in it; by default that of FILE.", show_default=False),
    ] = None,
    epoch_counts: Annotated[
        Literal["index", "finished", "unknown"] | None,
        typer.Option(
            help="What 'epoch' counts in FILE, by default told by its keys.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Convert a checkpoint of another program.

    From torch.save, Lightning or safetensors, told by the content, to one with digests and a header.
    Pickles are read by torch's restricted loader alone: a file that asks for classes is refused, naming
    them. No other command imports torch, but compare and export-weights where they are given a foreign file.
    """
    from ckptcore.cli.facts import header_facts, header_json
    from ckptcore.importing import import_checkpoint
    from ckptcore.loading import read_header

    path = import_checkpoint(file, to, name=name, epoch_counts=epoch_counts)
    header = read_header(path)
    if json:
        write_json({"source": file, "checkpoint": header_json(header)})
        return
    write_facts(header_facts(header))
    write()
    write(f"Imported {clean(str(file))} as {clean(str(path))}")


@app.command("export-weights", epilog=examples("ckpt export-weights runs/7/best.pt --to best.safetensors"))
def export_weights_command(
    file: File,
    to: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="File to make.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    json: Json = False,
) -> None:
    """Write a model's weights as .safetensors.

    Every tensor is verified on the way.
    """
    from ckptcore.exporting import export_weights

    report = export_weights(file, to, overwrite=overwrite)
    if json:
        told = {
            "path": report.path,
            "source": report.source,
            "tensors": report.tensors,
            "bytes": report.nbytes,
        }
        write_json(
            told | {"model_digest": report.model_digest, "tied": [list(names) for names in report.tied]}
        )
        return
    write(f"Exported {plural(report.tensors, 'tensor')}, {size(report.nbytes)}, to {clean(str(report.path))}")
    for names in report.tied:
        write(f"Tied in the model, stored once for each name: {clean(', '.join(names))}")
    if report.model_digest:
        write(f"model sha256 {report.model_digest}")


@app.command(
    "promote",
    epilog=examples(
        "ckpt promote saved_models/xray/resnet50_best.pth --version 1.0.0 --dataset 'clinic A, 2024'",
        "ckpt promote saved_models/xray/resnet50_best.pth --bump minor --notes 'more epochs'",
    ),
)
def promote(
    file: File,
    version: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="The version's number.", show_default=False)
    ] = None,
    bump: Annotated[
        Literal["major", "minor", "patch"] | None,
        typer.Option(help="The part of the last version's number to raise.", show_default=False),
    ] = None,
    notes: Annotated[str, typer.Option(metavar="TEXT", help="What is new in it.")] = "",
    dataset: Annotated[str, typer.Option(metavar="TEXT", help="What it was trained on.")] = "",
    json: Json = False,
) -> None:
    """Make a numbered, read-only version of a checkpoint.

    Version 1.0.0 of resnet50_best.pth is resnet50_v1.0.0_best.pth, a file of its own in the same folder, and
    resnet50_v1.0.0_best.json, its card. The copy is verified; nothing rotates it away or writes over it. The
    first --bump makes version 1.0.0. A model whose architecture changed (tensor names or shapes) needs a new
    major number; otherwise exit code 1, and nothing is made.
    """
    from ckptcore.errors import UsageError
    from ckptcore.versions import promote as make_version

    if (version is None) == (bump is None):
        raise UsageError("expected either --version X.Y.Z or --bump major|minor|patch.")
    if version is not None:
        _require_number(version)
    card = make_version(file, version=version, bump=bump, notes=notes, dataset=dataset)
    if json:
        write_json({"version": _card_json(card)})
        return
    write_facts(_card_facts(card))
    write()
    write(f"Promoted {clean(card.source_name)} to {clean(str(card.path))}")


def _require_number(version: str) -> None:
    """Tell a number that is none, which is wrong usage, from one that is refused.

    Raises:
        UsageError: it is no version number.
    """
    from ckptcore.errors import UsageError, VersionRefused
    from ckptcore.semver import Semver

    try:
        Semver.parse(version)
    except VersionRefused as error:
        raise UsageError(str(error)) from error


@app.command(
    "versions",
    epilog=examples(
        "ckpt versions saved_models/xray",
        "ckpt versions saved_models/xray --json | jq -r '.versions[-1].version'",
    ),
)
def versions(directory: Directory, json: Json = False) -> None:
    """List a folder's promoted versions.

    Number, metrics, lineage, and whether file and card agree: sizes and model digests are compared here;
    'ckpt verify' reads every byte. Exit code 1 when one is not whole (!), or there is none.
    """
    from ckptcore.versions import list_versions

    cards = list_versions(directory)
    if json:
        write_json({"directory": directory, "versions": [_card_json(card) for card in cards]})
    elif cards:
        _write_versions(cards)
    if not cards:
        note(f"ckpt: no promoted versions in {clean(str(directory))}; 'ckpt promote' makes one")
    if not cards or any(card.status != "whole" for card in cards):
        raise typer.Exit(FINDING)


def _write_versions(cards: list[VersionCard]) -> None:
    metrics = list(dict.fromkeys(name for card in cards for name in card.performance))[:4]
    columns = [Column("model"), Column("version", right=True), Column("status")]
    columns += [Column(clean(name), right=True, drop=2 + min(i, 1)) for i, name in enumerate(metrics)]
    columns += [
        Column("epoch", right=True, drop=4),
        Column("parent", right=True, drop=3),
        Column("dataset", drop=2),
    ]
    columns += [Column("promoted (UTC)", drop=3), Column("size", right=True, drop=4), Column("notes", drop=1)]
    write_table(columns, [_version_row(card, metrics) for card in cards])
    broken = [card for card in cards if card.status != "whole"]
    for card in broken:
        write(styled(f"! {clean(card.file_name)}: {_TROUBLE.get(card.status, card.status)}", "red"))


_TROUBLE = {
    "incomplete": "the file has no card; promote its checkpoint again to complete it, or delete it",
    "missing": "the card has no file; fetch the file, or delete the card",
    "changed": "size or model differ from the card: this is not what was promoted",
    "unreadable": "its card cannot be read",
}


def _version_row(card: VersionCard, metrics: list[str]) -> Row:
    numbers = tuple(_figure(card.performance.get(name)) for name in metrics)
    parent = card.parent.version if card.parent else "-"
    whole = card.status == "whole"
    return Row(
        (
            clean(card.base),
            clean(card.version),
            card.status,
            *numbers,
            count(card.epochs_finished),
            clean(parent),
            clean(card.dataset or "-"),
            moment(card.created),
            size(card.size),
            clean(card.notes or "-"),
        ),
        mark="" if whole else "!",
        style="" if whole else "red",
    )


def _figure(value: float | str | None) -> str:
    return amount(value) if value is None or isinstance(value, (int, float)) else clean(value)


def _card_facts(card: VersionCard) -> list[tuple[str, str]]:
    figures = {name: _figure(value) for name, value in card.performance.items()}
    facts = [
        ("model", card.model_name),
        ("version", card.version),
        ("parent", card.parent.version if card.parent else ""),
        ("dataset", card.dataset),
        ("notes", card.notes),
        ("parameters", count(card.parameters)),
        ("sha256", card.sha256),
        ("card", str(card.card_path)),
    ]
    told = [(name, clean(value)) for name, value in facts if value]
    return [*told, ("performance", aligned(figures))] if figures else told


def _card_json(card: VersionCard) -> dict[str, Any]:
    keys = (
        *(
            "model_name",
            "base",
            "version",
            "status",
            "dataset",
            "training_date",
            "hyperparameters",
            "performance",
            "notes",
        ),
        *(
            "file_name",
            "path",
            "card_path",
            "sha256",
            "size",
            "model_digest",
            "architecture_digest",
            "parameters",
        ),
        *("epochs_finished", "run_key", "source_name", "created", "ckptcore_version"),
    )
    from ckptcore.cli.facts import finite

    parent = card.parent
    lineage = (
        None
        if parent is None
        else {"version": parent.version, "model_digest": parent.model_digest, "sha256": parent.sha256}
    )
    told = {key: getattr(card, key) for key in keys}
    return told | {"performance": finite(card.performance), "parent": lineage}
