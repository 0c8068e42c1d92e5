"""Exports what a pipeline has trained: every modality that is published, and what other packages add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from radfuse.engine import kept
from radfuse.engine.agreement import read_json
from radfuse.engine.errors import MissingStage, UnknownModality
from radfuse.engine.evaluation.results import WEIGHTS
from radfuse.engine.export.exportable import files_of, from_description, further_exports
from radfuse.engine.export.kept_files import PART, KeptFiles, recipe_of
from radfuse.engine.export.trained import exportable
from radfuse.engine.export.writing import Written, write, write_not_applicable
from radfuse.engine.modality import modalities

if TYPE_CHECKING:
    from radfuse.engine.config import Params
    from radfuse.engine.export.exportable import Exportable
    from radfuse.engine.export.parity import Probe
    from radfuse.engine.places import Places

Say = Callable[[str], None]


def export(params: Params, places: Places, names: Sequence[str], say: Say) -> list[Written]:
    """Export models in every format of ``export.formats``, each checked against its checkpoint.

    Args:
        params: params.yaml.
        places: of the pipeline.
        names: of modalities, or of what other packages export; empty for all that this pipeline has.
        say: is told what is left out or tried on fewer samples, and why.

    Raises:
        UnknownModality: nothing of that name can be exported.
        MissingStage: an earlier stage has not run.
        StaleError: what earlier stages made does not belong together.
        ParityError: a file answers otherwise than its checkpoint.
        Busy: another process is at the same export.
    """
    known = [*modalities(), *further_exports()]
    for name in names:
        if name not in known:
            raise UnknownModality(name, known)
    written: list[Written] = []
    formats, tolerance, finished = params.export.formats, params.export.tolerance, []
    with ExitStack() as held:

        def keep(model: Exportable, expected: Sequence[Probe]) -> KeptFiles:
            recipe = recipe_of(model, expected, tolerance)
            finished.append(KeptFiles(held.enter_context(kept.opened(places, model.name, PART, recipe))))
            return finished[-1]

        for name in names or _published(places):
            model = _model(params, places, name, say, asked=bool(names))
            if model is not None:
                written += write(model, places.exports, formats, tolerance, keep)
        # Not one by one: DVC deletes all that an export had published which was stopped later on.
        for one in finished:
            one.remove()
    for name in {one.name for one in written}:
        kept.prune(places, name, PART)
    return written


def _published(places: Places) -> list[str]:
    """What there is to export: modalities with a published best, then what other packages have."""
    found = [
        name
        for name, modality in modalities().items()
        if (places.saved_models(name) / f"{modality.model_name}_best.pth").is_file()
    ]
    if not found:
        raise MissingStage(
            f"expected a *_best.pth of some modality below {places.relative(places.saved_models_folder)}, "
            "got none; run `radfuse train MODALITY` first."
        )
    return [*found, *further_exports()]


def _model(params: Params, places: Places, name: str, say: Say, asked: bool) -> Exportable | None:
    describe = further_exports().get(name)
    if describe is None:
        model, asked_for = exportable(params, places, name), params.export.samples
        if len(model.samples) < asked_for:
            say(
                f"{name}: tried on {len(model.samples)} samples and not on {asked_for}, as export.samples "
                "asks: val and calibration have no more."
            )
        return model
    try:
        described = describe(places)
    except MissingStage as error:
        # A pipeline of one modality has no such stage; who asks for it by name wants to know what is missing.
        if asked:
            raise
        say(f"{name}: not exported, as {error}")
        return None
    if described is None:
        why = _why(places, name)
        write_not_applicable(places.exports, files_of(name), params.export.formats, why)
        say(f"{name}: not exported, as it is not applicable here. {why}".rstrip())
        return None
    return from_description(name, described)


def _why(places: Places, name: str) -> str:
    told = places.saved_models(name) / WEIGHTS
    return str(read_json(told).get("why", "")) if told.is_file() else ""
