"""What surrounds the training loop: the work folder, resuming, the record of the run, and publishing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ckptcore
from ckptcore import durable
from ckptcore.errors import CheckpointError
from ckptcore.rules import EveryMinutes, EverySteps, SaveRule
from ckptcore.signals import TrainingInterrupted
from radfuse.engine import workfolder
from radfuse.engine.errors import CannotGoOn, SettingsError
from radfuse.engine.freshness import check_prepared
from radfuse.engine.history import PATTERN as LOG_FILES
from radfuse.engine.modality import modality as modality_of
from radfuse.engine.places import Places
from radfuse.engine.prepared import Prepared
from radfuse.engine.recording import LOGS, PICTURES
from radfuse.engine.tracking import Tracker, flat
from radfuse.engine.training import loop, numerics
from radfuse.engine.training.assembly import Order, assemble
from radfuse.engine.training.distributed import joined
from radfuse.engine.workfolder import WorkFolder

if TYPE_CHECKING:
    from radfuse.engine.config import Params
    from radfuse.engine.settings import TrainSettings
    from radfuse.engine.training.run import Run

_log = logging.getLogger(__name__)
HISTORY = "training_history.json"


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        key: of its work folder.
        epochs_finished: in all its sessions.
        trained: whether anything was left to train.
        published: the files in ``saved_models``.
    """

    key: str
    epochs_finished: int
    trained: bool
    published: tuple[Path, ...]


def train(
    params: Params, places: Places, name: str, resume: str = "auto", accept_other_hardware: bool = False
) -> Outcome:
    """Train the network of a modality, or go on where it was stopped, and publish what came out.

    Args:
        params: params.yaml.
        places: of the pipeline.
        name: of the modality.
        resume: ``auto`` goes on where the same training was stopped, ``none`` begins anew, a path goes back
            to that checkpoint of the same training; that of another one is what a new one continues from.
        accept_other_hardware: go on though device, precision or threads are not what they were.

    Raises:
        MissingStage: the images are not prepared.
        StaleError: they were prepared from another split or in another way.
        SettingsError: the settings do not fit the data, the network or the machine.
        OtherNumerics: the training would go on under other conditions.
        NonFiniteLoss: the loss is NaN or infinite.
    """
    modality, prepared = modality_of(name), Prepared(places, name)
    settings = _with_files(params.train_of(modality), places, name)
    check_prepared(places, modality, params.prepare_of(modality), prepared)
    recipe = workfolder.recipe_of(params, modality, settings, prepared.learnt_digest)
    if resume not in ("auto", "none") and _is_of_another(resume, places.work(name), recipe):
        # It is gone on from in a folder of its own: what this recipe came to is not to be mixed with it.
        settings = settings.model_copy(update={"continue_from": Path(resume).absolute()})
        recipe, resume = workfolder.recipe_of(params, modality, settings, prepared.learnt_digest), "auto"
    with joined(params.train.device) as world:
        order = Order(params, places, modality, prepared, settings, recipe, world)
        with _opened(order, fresh=resume == "none") as work:
            trained = world.told(resume not in ("auto", "none") or not work.finished)
            if trained:
                _train_in(work, order, resume, accept_other_hardware)
            elif world.first:
                _log.info("this training is finished already; it is published again")
            published = _publish(work, places.saved_models(name)) if world.first else []
            if world.first and not trained:
                _tell_tracker(work, order)
            finished = work.record["finished"]
        if world.first:
            workfolder.prune(places, name, work, [settings.continue_from, settings.weights])
    return Outcome(work.key, int(finished["epochs_finished"]), trained, tuple(published))


@contextmanager
def _opened(order: Order, fresh: bool) -> Iterator[WorkFolder]:
    """The work folder, held by the first process for all of them."""
    if order.world.first:
        with workfolder.opened(order.places, order.modality.name, order.recipe, fresh) as work:
            if work.new and not fresh and order.settings.continue_from is None:
                workfolder.announce_nearest(order.places, order.modality, order.recipe, order.settings.epochs)
            yield order.world.told(work)
    else:
        yield order.world.told(WorkFolder(Path(), ""))


def _train_in(work: WorkFolder, order: Order, resume: str, accept_other_hardware: bool) -> None:
    with _manager(work, order) as manager:
        run = assemble(order, work, manager)
        with closing(run):
            parent = _go_on(run, work, resume, order, accept_other_hardware)
            if order.world.first:
                work.reopen()
            with _recorded(run, order, parent, work):
                loop.train(run)
        finished = {"epochs_finished": run.at.epoch, "stopped_early": run.at.stopped}
    # Only now is the last checkpoint durable.
    if order.world.first:
        work.finish(finished)
    order.world.told(None)


def _manager(work: WorkFolder, order: Order) -> ckptcore.CheckpointManager:
    """The keeper of the work folder's checkpoints, with saves within epochs if wanted.

    In all processes but the first it has no folder, and only remembers.
    """
    settings, block = order.settings, order.params.train
    layout = ckptcore.layouts.saved_models(
        order.modality.model_name, order.task.metric, every=settings.save_every, last=settings.keep_last
    )
    rules: list[SaveRule] = list(layout.save)
    if block.save_every_steps:
        rules.append(EverySteps(block.save_every_steps))
    if block.save_every_minutes:
        rules.append(EveryMinutes(block.save_every_minutes))
    return ckptcore.CheckpointManager(
        work.path if order.world.first else None,
        layout,
        save=rules,
        run_key=work.key,
        total_epochs=settings.epochs,
    )


def _go_on(
    run: Run, work: WorkFolder, resume: str, order: Order, accept_other_hardware: bool
) -> dict[str, Any] | None:
    """Put the run where an earlier session or another training left it.

    Returns:
        What it goes on from; None for a fresh start.
    """
    found = _found(run.manager, resume, order.settings.continue_from) if run.world.first else None
    path = run.world.told(found.path if found is not None else None)
    if path is None:
        return None
    found = found or ckptcore.load(path)
    own = found.header.run_key == work.key
    if own and not accept_other_hardware:
        # What the first process is on was saved; others may have other hardware, as they had before.
        changed = numerics.differences(found["provenance"]["numerics"], run.conditions)
        numerics.check_same(run.world.told(changed))
    _restore(run, found, order.places)
    if not own:
        _begin_after(run, found.path, order.places)
    if run.done:
        _log.warning("%s has %d epochs already; nothing is left to train", found.path.name, run.at.epoch)
    return {
        "file": found.path.name,
        "run_key": found.header.run_key,
        "model_digest": found.header.model_digest,
    }


def _begin_after(run: Run, other: Path, places: Places) -> None:
    """Begin where the training of another recipe ended."""
    run.begin_epoch_anew()
    if run.done:
        name = run.facts["provenance"]["modality"]
        raise SettingsError(
            f"train.{name}.continue_from: {other.name} has {run.at.epoch} epochs already, and "
            f"train.{name}.stages asks for {run.plan.epochs} in all: nothing is left to train. Ask for more, "
            f"or begin with its weights alone: --set train.{name}.continue_from=null "
            f"--set train.{name}.weights={workfolder.as_setting(places, other)}"
        )


def _restore(run: Run, found: ckptcore.Checkpoint, places: Places) -> None:
    try:
        run.restore(found)
    # torch says of other shapes, names or numbers of parameters what it says in these.
    except (CheckpointError, KeyError, RuntimeError, TypeError, ValueError) as error:
        name = run.facts["provenance"]["modality"]
        raise CannotGoOn(
            f"{found.path.name} is not a checkpoint that this training can be gone on from: {error}\n"
            "Its weights alone may be a beginning, if they are of this network: --resume none --set "
            f"train.{name}.weights={workfolder.as_setting(places, found.path)}"
        ) from error


def _found(
    manager: ckptcore.CheckpointManager, resume: str, continue_from: Path | None
) -> ckptcore.Checkpoint | None:
    if resume in ("auto", "none"):
        found = manager.resume("auto")
        return manager.resume(continue_from) if found is None and continue_from is not None else found
    return manager.resume(resume)


def _is_of_another(resume: str, root: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether a file that ``--resume`` names is of another training than this recipe's."""
    key = workfolder.key_of(recipe)
    named = root / key / resume
    file = named if named.is_file() else Path(resume)
    _require_file(file, resume, "--resume")
    return bool(ckptcore.read_header(file).run_key != key)


@contextmanager
def _recorded(run: Run, order: Order, parent: Mapping[str, Any] | None, work: WorkFolder) -> Iterator[None]:
    """Tell the log and MLflow of a session, however it ends; the first process does."""
    if run.recorder is None:
        yield
        return
    conditions = run.conditions.stamp()
    session = {"conditions": conditions, "goes_on_from": parent}
    run.recorder.begin(session, _asked(order), _tags(order, conditions), run.at.epoch, work.begun_anew)
    if run.recorder.mlflow_run is not None:
        work.forget_anew()
    run.facts["provenance"] |= {"mlflow_run_id": run.recorder.mlflow_run, "goes_on_from": parent}
    try:
        yield
        run.manager.wait()
    except TrainingInterrupted:
        run.recorder.end(run, "interrupted", {})
        raise
    except BaseException:
        run.recorder.end(run, "failed", {})
        raise
    digest = _best_digest(run.manager.directory, order) if run.manager.directory else "none"
    run.recorder.end(run, "stopped early" if run.at.stopped else "finished", {"model_digest": digest})


def _asked(order: Order) -> dict[str, Any]:
    """What was asked for, as MLflow's parameters."""
    return flat({name: value for name, value in order.recipe.items() if name != "code"})


def _tags(order: Order, conditions: Mapping[str, Any]) -> dict[str, str]:
    return {
        "prepared_digest": order.prepared.digest,
        "split_digest": order.prepared.split_digest,
        **{name: str(value) for name, value in conditions.items()},
    }


def _best_digest(folder: Path, order: Order) -> str:
    best = folder / f"{order.modality.model_name}_best.pth"
    return (ckptcore.read_header(best).model_digest if best.is_file() else None) or "none"


def _tell_tracker(work: WorkFolder, order: Order) -> None:
    """Tell MLflow of a finished training what it lacks: it may have been away, or be another one now."""
    finished = work.record["finished"]
    if not order.params.train.mlflow:
        return
    try:
        latest = ckptcore.load(work.path / f"{order.modality.model_name}_latest.pth", mmap=True)
    except (CheckpointError, OSError) as error:
        _log.warning("MLflow is not told of this training: %s", error)
        return
    tracker = Tracker(order.places, order.modality.name, work.key)
    tracker.begin(_asked(order), _tags(order, latest["provenance"]["numerics"]), work.begun_anew)
    layout = ckptcore.layouts.saved_models(order.modality.model_name, order.task.metric)
    tracker.log_epochs(layout.recall(latest), int(finished["epochs_finished"]))
    for path in sorted((work.path / PICTURES).glob("*.png")):
        tracker.log_file(path, PICTURES)
    for path in sorted(work.path.glob(LOG_FILES)):
        tracker.log_file(path, LOGS)
    outcome = "stopped early" if finished.get("stopped_early") else "finished"
    tracker.tag({"outcome": outcome, "model_digest": _best_digest(work.path, order)})
    tracker.end("FINISHED")
    if tracker.run_id is not None:
        work.forget_anew()


def _publish(work: WorkFolder, target: Path) -> list[Path]:
    """Copy a finished training's checkpoints and history to ``saved_models``; versions there stay."""
    files = ckptcore.publish(work.path, target)
    durable.copy_durable(work.path / HISTORY, target / HISTORY, mode=0o644)
    return [*files, target / HISTORY]


def _with_files(settings: TrainSettings, places: Places, modality: str) -> TrainSettings:
    """Settings whose files are found from the current folder; in params.yaml they are relative to it."""
    found: dict[str, Path] = {}
    for name in ("weights", "continue_from"):
        path: Path | None = getattr(settings, name)
        if path is not None:
            found[name] = places.root / path.expanduser()
            hint = ""
            if found[name].is_relative_to(places.saved_models(modality)):
                hint = (
                    " DVC removes what a stage has published before it runs it again: name the file in "
                    ".work, or a promoted version."
                )
            _require_file(found[name], path, f"train.{modality}.{name}", hint)
    return settings.model_copy(update=found)


def _require_file(path: Path, given: object, asked_by: str, hint: str = "") -> None:
    if not path.is_file():
        raise SettingsError(f"{asked_by}: expected a file, got {given}, which is not there.{hint}")
