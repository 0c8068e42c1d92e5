"""`radfuse predict`: what an exported model says of files, from the ONNX file and its card alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radfuse.engine.cli.options import PARAMS, Json, Overrides, ParamsFile
from radfuse.engine.cli.output import console, write_json, write_table

if TYPE_CHECKING:
    from radfuse.engine.export.asking import Answer, Question
    from radfuse.engine.export.points import Point
    from radfuse.serving import Card, Prediction

_UNREADABLE = 1
_ENDINGS = (".nii.gz", ".nii")

Model = Annotated[
    Path,
    typer.Option(
        "--model", metavar="FILE", help="An exported .onnx; its card lies beside it.", show_default=False
    ),
]
Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="INPUT...",
        help="DICOM, PNG or NIfTI files, or folders with a DICOM series.",
        show_default=False,
    ),
]
Named = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=FILE",
        help="One of several images that a model takes: t1=FILE.",
        show_default=False,
    ),
]
Points = Annotated[
    Path | None,
    typer.Option("--points", metavar="FILE.csv", help="Nodules: x_mm, y_mm, z_mm, LPS.", show_default=False),
]
At = Annotated[
    str | None, typer.Option("--at", metavar="X,Y,Z", help="One nodule, in mm, LPS.", show_default=False)
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE.nii.gz", help="Where a segmentation's label map goes.", show_default=False
    ),
]


def predict(
    model: Model,
    inputs: Inputs = None,
    named: Named = None,
    points: Points = None,
    at: At = None,
    out: Out = None,
    as_json: Json = False,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Ask an exported model about files of your own.

    Reads the model, its card and the files: no torch, no pipeline (--params and --set change nothing
    here). Models of CT patches are asked at points in patient coordinates; without one the volume must be a
    patch itself. Exit code 1 where an image cannot be read.
    """
    from radfuse.engine.export.asking import BadQuestion, answers, questions
    from radfuse.serving import InputError, Predictor

    where = _points(points, at)
    predictor = Predictor(model)
    _check_out(out, predictor.card)
    try:
        asked = questions(predictor.card, inputs or [], _named(named or []), where)
        if out is not None and len(asked) > 1:
            raise BadQuestion(
                f"expected one sample for one --out, got {len(asked)}; ask about one at a time."
            )
        found = list(answers(predictor, asked))
    except (BadQuestion, InputError) as error:
        raise typer.BadParameter(str(error)) from error
    for answer in found:
        if out is not None and answer.prediction is not None:
            _write_label_map(answer.prediction, out)
    if as_json:
        write_json({"model": _model(predictor.card), "answers": [_entry(answer, out) for answer in found]})
    else:
        _show(predictor.card, found, out)
    failed = [answer for answer in found if answer.prediction is None]
    for answer in failed:
        console(errors=True).print(f"radfuse: {answer.error}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(_UNREADABLE)


def _points(file: Path | None, at: str | None) -> list[Point]:
    from radfuse.engine.export.points import BadPoints, Point, parse_point, read_points

    if file is not None and at is not None:
        raise typer.BadParameter("expected --points or --at, got both.")
    option = "--at" if file is None else "--points"
    try:
        if file is not None:
            return read_points(file)
        return [] if at is None else [Point(parse_point(at))]
    except BadPoints as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def _named(texts: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise typer.BadParameter(f"expected --input NAME=FILE, as in t1=case_t1.nii.gz, got {text!r}.")
        if name in found:
            raise typer.BadParameter(f"--input {name} is given twice.")
        found[name] = Path(path)
    return found


def _check_out(out: Path | None, card: Card) -> None:
    if out is None:
        return
    if card.task != "segmentation":
        raise typer.BadParameter(
            "--out is for label maps, and this model gives none: it tells probabilities."
        )
    if not out.name.endswith(_ENDINGS):
        raise typer.BadParameter(f"expected --out to end in .nii.gz or .nii, got {out.name}.")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"expected the folder of --out to be there, and {out.parent} is none.")


def _write_label_map(prediction: Prediction, out: Path) -> None:
    """Whole or not at all."""
    from radfuse.serving.images.nifti import write_nifti

    if prediction.label_map is None:
        return
    # A folder of its own, as the writer packs by the name's ending and so needs the real one.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".radfuse-") as folder:
        write_nifti(prediction.label_map, Path(folder) / out.name)
        os.replace(Path(folder) / out.name, out)


def _model(card: Card) -> dict[str, Any]:
    return {name: getattr(card, name) for name in ("modality", "name", "version", "model_digest")}


def _entry(answer: Answer, out: Path | None) -> dict[str, Any]:
    entry = _asked(answer.question)
    if answer.prediction is None:
        return {**entry, "error": answer.error}
    told = {key: value for key, value in answer.prediction.as_json().items() if key != "model"}
    if answer.prediction.label_map is not None:
        told["label_map"] = None if out is None else str(out)
    return {**entry, **told}


def _asked(question: Question) -> dict[str, Any]:
    point = question.point
    return {
        "images": {role: str(path) for role, path in question.images.items()},
        "point_mm": None if point is None else list(point.mm),
        "point": None if point is None else point.name or None,
    }


def _show(card: Card, found: Sequence[Answer], out: Path | None) -> None:
    title = f"{card.name} {card.version or '(no version)'}, {card.modality}"
    read = [answer for answer in found if answer.prediction is not None]
    if card.task == "segmentation":
        rows = [
            [answer.question.title, region, f"{volume / 1000:.2f}"]
            for answer in read
            for region, volume in answer.prediction.volumes_mm3.items()  # type: ignore[union-attr]
        ]
        _table(title, ["images", "region", "volume (ml)"], rows, "" if out is None else f"label map: {out}")
        return
    rows = [
        [answer.question.title, _place(answer.question), *cells]
        for answer in read
        for cells in _labels(answer)
    ]
    _table(title, ["image", "point (mm)", "label", "probability", "threshold", "answer"], rows, "")


def _labels(answer: Answer) -> list[list[str]]:
    prediction = answer.prediction
    if prediction is None:
        return []
    decided = prediction.decisions
    return [
        [
            label,
            f"{probability:.3f}",
            f"{prediction.thresholds[label]:.3f}" if label in decided else "",
            {True: "yes", False: "no", None: ""}[decided.get(label)],
        ]
        for label, probability in prediction.probabilities.items()
    ]


def _place(question: Question) -> str:
    if question.point is None:
        return ""
    at = ", ".join(f"{value:g}" for value in question.point.mm)
    return f"{question.point.name}: {at}" if question.point.name else at


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> None:
    """A table without the columns in which nothing stands."""
    if rows:
        used = [column for column in range(len(header)) if any(row[column] for row in rows)]
        write_table(
            title,
            [header[column] for column in used],
            [[row[column] for column in used] for row in rows],
            note,
        )
