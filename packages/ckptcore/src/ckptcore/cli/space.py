"""`ckpt du`, `plan`, `clean` and `archive`: what takes space, what may go, and where it went."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptcore.cli.app import Directory, Json, app, examples
from ckptcore.cli.output import FINDING, note, styled, write, write_json, write_table
from ckptcore.cli.table import Column, Row
from ckptcore.cli.text import clean, count, listed, plural, size

if TYPE_CHECKING:
    from ckptcore.archive import ArchiveReport
    from ckptcore.cli.verdicts import Judged
    from ckptcore.disk_usage import DiskUsage
    from ckptcore.disk_usage import Row as Used

_STYLES = {"must stay": "green", "safe to delete": "red", "yours to decide": "dim"}


@app.command("du", epilog=examples("ckpt du saved_models", "ckpt du runs --json | jq .total.real_bytes"))
def du(directory: Directory, json: Json = False) -> None:
    """Show what checkpoints take, by folder and kind.

    Hard links to one file count once: "on disk" is what deleting the folder would free, "apparent" what
    copying it without links would take. Exit code 1 when there are no files.
    """
    from ckptcore.disk_usage import disk_usage

    found = disk_usage(directory)
    if json:
        rows = [_usage_json(row) for row in found.rows]
        write_json({"root": found.root, "rows": rows, "total": _usage_json(found.total)})
    else:
        _write_usage(found)
    if not found.total.files:
        note(f"ckpt: no files below {clean(str(directory))}")
        raise typer.Exit(FINDING)


def _usage_json(row: Used) -> dict[str, object]:
    kinds = {
        kind: {"files": k.files, "apparent_bytes": k.apparent_bytes, "real_bytes": k.real_bytes}
        for kind, k in row.kinds.items()
    }
    return {
        "name": row.name,
        "files": row.files,
        "apparent_bytes": row.apparent_bytes,
        "real_bytes": row.real_bytes,
        "kinds": kinds,
    }


def _write_usage(found: DiskUsage) -> None:
    kinds = [kind for kind, row in found.total.kinds.items() if row.files]
    columns = [Column("folder"), Column("files", right=True, drop=2)]
    columns += [Column(kind, right=True, drop=1) for kind in kinds]
    columns += [Column("on disk", right=True), Column("apparent", right=True, drop=3)]
    rows = [_usage_row(row, kinds) for row in found.rows]
    rows.append(_usage_row(found.total, kinds, "total", "bold"))
    write_table(columns, rows)


def _usage_row(row: Used, kinds: list[str], name: str | None = None, style: str = "") -> Row:
    by_kind = [row.kinds.get(kind) for kind in kinds]
    told = tuple(size(k.real_bytes) if k is not None and k.files else "-" for k in by_kind)
    cells = (clean(name or row.name), count(row.files), *told, size(row.real_bytes), size(row.apparent_bytes))
    return Row(cells, style=style)


@app.command("plan", epilog=examples("ckpt plan runs/7", "ckpt plan runs/7 --keep 2"))
def plan(
    directory: Directory,
    keep: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Try another rule: the N newest periodic ones stay.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what rotation keeps and deletes, and why.

    Nothing is changed. "must stay": best, latest, versions, what was pinned by hand. "may go": kept by a rule
    or as a milestone, of another run, or damaged; deleting it by hand loses no best and no latest. "safe to
    delete": the rule does not keep it. "yours to decide": another program's, or saved by hand. The next save
    of the run deletes what its own rule does not keep; of a rule tried with --keep it knows nothing. Exit
    code 1 when there is no checkpoint.
    """
    from ckptcore.cli.verdicts import judge

    found = judge(directory, keep)
    if json:
        write_json(found.as_json())
    elif found.files:
        _write_judged(found)
    _require_files(found)


def _require_files(found: Judged) -> None:
    """A folder without checkpoints is a finding, whatever was to be done with them.

    Raises:
        typer.Exit: there is none.
    """
    if not found.files:
        note(f"ckpt: no checkpoints in {clean(str(found.directory))}")
        raise typer.Exit(FINDING)


def _write_judged(found: Judged) -> None:
    columns = [
        Column("file"),
        Column("verdict"),
        Column("frees", right=True, drop=1),
        Column("why", wrap=True),
    ]
    rows = [
        Row(
            (clean(f.name), f.verdict, "-" if f.keep else size(f.frees), clean(f.reason)),
            "" if f.keep else "-",
        )
        for f in found.files
    ]
    styled_rows = [
        replace(r, style=_STYLES.get(f.verdict, "")) for r, f in zip(rows, found.files, strict=True)
    ]
    write_table(columns, styled_rows)
    write()
    told = f"{clean(found.rule or '')}. {_outcome(len(found.doomed), found.freed)}"
    if found.tried is None:
        write(f"Rule: {told}")
        return
    write(f"Rule tried: {told}")
    if found.doomed:
        write(f"No save does that: 'ckpt clean {clean(str(found.directory))} --keep {found.tried}' would")


def _outcome(number: int, freed: int) -> str:
    return f"{plural(number, 'file')} to delete, {size(freed)} to be freed" if number else "Nothing to delete"


@app.command(
    "clean",
    epilog=examples(
        "ckpt clean runs/7 --keep 3 --dry-run",
        "ckpt clean runs/7 --keep 3",
        "ckpt clean runs/7 --keep 0 --yes",
    ),
)
def clean_command(
    directory: Directory,
    keep: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="How many of the newest periodic checkpoints stay.", show_default=False
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go, and delete nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete old periodic checkpoints, all but the newest N.

    Best, latest, versions, milestones and pinned files always stay, and so do other runs' and other
    programs' files; --keep 0 leaves only these. It asks first, and refuses while a training run holds the
    folder. Exit code 1 when there is no checkpoint.
    """
    from ckptcore.cli.verdicts import judge
    from ckptcore.pruning import Pruned, prune

    found = judge(directory, keep)
    doomed = [file.name for file in found.doomed]
    if found.files and not json:
        _write_doomed(found)
    done = Pruned((), 0)
    if doomed and not dry_run:
        if not yes:
            _ask(len(doomed))
        done = prune(directory, keep, doomed)
    if json:
        told = {"directory": directory, "keep": keep, "dry_run": dry_run, "planned": doomed}
        done_told = {"removed": list(done.removed), "freed_bytes": done.freed}
        write_json({**told, "planned_bytes": found.freed, **done_told})
    elif doomed:
        did = f"Deleted {plural(len(done.removed), 'file')}, {size(done.freed)} freed"
        write("Nothing was deleted: this was a dry run" if dry_run else did)
    _require_files(found)


def _write_doomed(found: Judged) -> None:
    for file in found.doomed:
        write(
            styled(f"- {clean(file.name)}", "red") + (f"  {size(file.frees)}" if file.frees else "  a link")
        )
    staying = plural(len(found.files) - len(found.doomed), "file stays", "files stay")
    write(f"{_outcome(len(found.doomed), found.freed)}; {staying}")


def _ask(number: int) -> None:
    """Ask whether to go on; without anyone to ask, that is wrong usage.

    Raises:
        UsageError: there is no terminal.
    """
    from ckptcore.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(
            "nobody can be asked, as the input is no terminal: add --yes to delete, or --dry-run to look."
        )
    if not typer.confirm(f"Delete {plural(number, 'file')}?", err=True):
        note("Nothing was deleted")
        raise typer.Exit()


@app.command(
    "archive",
    epilog=examples(
        "ckpt archive runs/7 --to ../archives/run7.tar.zst",
        "ckpt archive runs/7 --to ../archives/          (archived_7_<date>.tar.zst)",
        "ckpt archive runs/7 --to run7.tar.gz --keep-originals",
    ),
)
def archive(
    directory: Directory,
    to: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Archive to make, .tar.zst or .tar.gz; a folder gets a dated name.",
            show_default=False,
        ),
    ],
    keep_originals: Annotated[
        bool, typer.Option("--keep-originals", help="Leave the checkpoints where they are.")
    ] = False,
    include_versions: Annotated[
        bool,
        typer.Option(
            "--include-versions", help="Promoted versions and pinned files go too, once they are packed."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Pack a folder, then delete its checkpoints.

    They go, with the JSON files that managers write beside them, once every byte of the archive was read
    back. Promoted versions, pinned files and whatever else lies in the folder is packed and stays. Hard
    links stay links in the archive. It refuses while a training run holds the folder. Exit code 1 when there
    is nothing to pack.
    """
    from ckptcore.archive import NO_CHECKPOINT, archive_name
    from ckptcore.archive import archive as pack
    from ckptcore.errors import NothingThere

    target = to / archive_name(directory) if to.is_dir() or str(to).endswith("/") else to
    try:
        report = pack(directory, target, remove=not keep_originals, include_versions=include_versions)
    except NothingThere:
        if json:
            nothing: dict[str, list[str]] = {"members": [], "removed": [], "kept": []}
            write_json({"path": None, **nothing, "original_bytes": 0, "archive_bytes": 0})
        raise
    if json:
        write_json(_archived_json(report))
    else:
        _write_archived(report, NO_CHECKPOINT)


def _archived_json(report: ArchiveReport) -> dict[str, object]:
    members = [
        {"name": m.name, "size": m.size, "sha256": m.sha256, "link_of": m.link_of} for m in report.members
    ]
    kept = [{"name": k.name, "reason": k.reason} for k in report.kept]
    told = {"path": report.path, "members": members, "removed": list(report.removed), "kept": kept}
    return told | {"original_bytes": report.original_bytes, "archive_bytes": report.archive_bytes}


def _write_archived(report: ArchiveReport, no_checkpoint: str) -> None:
    columns = [Column("packed"), Column("size", right=True), Column("sha256", drop=1)]
    links = [f"= {clean(m.link_of)}" if m.link_of else m.sha256[:12] for m in report.members]
    sizes = ["link" if m.link_of else size(m.size) for m in report.members]
    names = [clean(m.name) for m in report.members]
    write_table(columns, [Row(cells) for cells in zip(names, sizes, links, strict=True)])
    write()
    packed = f"{plural(len(report.members), 'file')}, {size(report.original_bytes)}"
    write(f"{clean(str(report.path))}: {packed} in {size(report.archive_bytes)}, read back and verified")
    gone = plural(len(report.removed), "file")
    write(f"Deleted here: {gone}" if report.removed else "Nothing was deleted here")
    others = [kept.name for kept in report.kept if kept.reason == no_checkpoint]
    for kept in report.kept:
        if kept.reason != no_checkpoint:
            write(f"Left here: {clean(kept.name)} ({clean(kept.reason)})")
    if others and report.removed:
        write(f"Left here: {listed(others)} ({no_checkpoint})")
