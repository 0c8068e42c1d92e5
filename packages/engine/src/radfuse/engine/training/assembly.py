"""Puts a training together: network, optimizer, batches, and what its checkpoints say of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

import ckptcore
from radfuse.engine.history import RunLog
from radfuse.engine.modality import Modality
from radfuse.engine.places import Places
from radfuse.engine.prepared import Prepared
from radfuse.engine.recording import Recorder
from radfuse.engine.settings import TrainSettings
from radfuse.engine.tables import SPLIT
from radfuse.engine.tracking import Tracker
from radfuse.engine.training import numerics, stages, weights
from radfuse.engine.training.deterministic import replace_layers
from radfuse.engine.training.distributed import ALONE, World
from radfuse.engine.training.ema import averaged
from radfuse.engine.training.loaders import Examples, Loader
from radfuse.engine.training.numerics import Numerics
from radfuse.engine.training.randomness import reseed
from radfuse.engine.training.run import Run, Whole
from radfuse.engine.training.schedules import Rates
from radfuse.engine.training.tasks import Task, task_of
from radfuse.engine.workfolder import WorkFolder

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from radfuse.engine.config import Params

_VERSIONS = ("torch", "monai", "numpy", "radfuse-engine", "ckptcore")


@dataclass(frozen=True)
class Order:
    """What is to be trained.

    Attributes:
        params: params.yaml.
        places: of the pipeline.
        modality: whose network.
        prepared: its arrays.
        settings: ``train.<modality>`` of params.yaml.
        recipe: everything that decides the numbers.
        world: the processes that train it.
    """

    params: Params
    places: Places
    modality: Modality
    prepared: Prepared
    settings: TrainSettings
    recipe: Mapping[str, Any]
    world: World = ALONE

    @property
    def prepare(self) -> Any:
        """``prepare.<modality>`` of params.yaml."""
        return self.params.prepare_of(self.modality)

    @property
    def task(self) -> Task:
        """What is learnt."""
        return task_of(self.modality, self.prepare, self.prepared)


def assemble(order: Order, work: WorkFolder, manager: ckptcore.CheckpointManager) -> Run:
    """A training at its beginning, with fresh weights or those of a file.

    Args:
        order: what is to be trained.
        work: where its state goes.
        manager: of the checkpoints there.

    Raises:
        SettingsError: the settings do not fit the data, the network or the machine.
    """
    settings, task, block = order.settings, order.task, order.params.train
    network = _network(order, task)
    conditions = numerics.choose(
        block.device, block.precision, block.deterministic, network, order.world.size
    )
    training, validation = _loaders(order, task, conditions)
    class_weights = task.class_weights(order.prepared, training.rows) if settings.class_weights else None
    loss = task.loss(class_weights)
    if conditions.deterministic and conditions.device == "cuda":
        replace_layers(network)
        replace_layers(loss)
    network.to(device=conditions.device, memory_format=numerics.memory_format(network))  # type: ignore[call-overload]
    groups = order.modality.layer_groups(network)
    stages.check_groups(network, groups)
    plan = stages.Plan.of(settings, tuple(groups), training.batches)
    fabric = _fabric(conditions, order.world)
    whole = Whole(order.modality.normalisation(order.prepare), network)
    module = fabric.setup_module(whole)
    ema = averaged(network, settings.ema_decay)
    judged = module if ema is None else fabric.setup_module(Whole(whole.normalisation, ema.module))
    parameters, names = stages.parameter_groups(groups, settings.weight_decay)
    # One optimizer for all stages: what learns again keeps its averages.
    optimizer = torch.optim.AdamW(parameters, lr=1.0, fused=True)
    return Run(
        fabric=fabric,
        network=network,
        module=module,
        judged=judged,
        groups=groups,
        loss=loss.to(fabric.device),
        optimizer=optimizer,
        rates=Rates(optimizer, names, plan),
        ema=ema,
        plan=plan,
        task=task,
        settings=settings,
        training=training,
        validation=validation,
        manager=manager,
        recorder=_recorder(order, work) if order.world.first else None,
        seed=order.params.seed,
        facts=_facts(order, task, work, conditions),
        conditions=conditions,
        layout=numerics.memory_format(network),
        world=order.world,
        progress=block.progress if order.world.first else "none",
        skip_nonfinite=block.on_nonfinite == "skip",
    )


def _network(order: Order, task: Task) -> nn.Module:
    settings = order.settings
    reseed(order.params.seed, "weights")
    network = order.modality.network(order.prepare, settings, task.outputs)
    if settings.weights is not None:
        weights.load_pretrained(
            network, order.modality, settings.weights, f"train.{order.modality.name}.weights"
        )
    return network


def _loaders(order: Order, task: Task, conditions: Numerics) -> tuple[Loader, Loader]:
    """Batches to learn from and to judge by. Volumes are judged one by one, as their sizes may differ."""
    settings, seed, workers = order.settings, order.params.seed, order.params.train.workers
    rows = order.prepared.rows()
    learn, judge = rows[rows[SPLIT] == "train"], rows[rows[SPLIT] == "val"]
    task.check(learn, judge)
    examples = [
        Examples(order.prepared, part, order.modality, task, settings, keyed)
        for part, keyed in ((learn, seed), (judge, None))
    ]
    pin = conditions.device == "cuda"
    size = settings.batch_size if task.kind == "classification" else 1
    training = Loader(examples[0], settings.batch_size, seed, workers, pin, order.world)
    return training, Loader(examples[1], size, None, workers, pin)


def _fabric(conditions: Numerics, world: World) -> Fabric:
    from lightning_fabric import Fabric

    if conditions.deterministic:
        # Read by cuBLAS when it is used first.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(conditions.deterministic)
    devices: Any = [world.local_rank] if conditions.device == "cuda" else 1
    return Fabric(accelerator=conditions.device, devices=devices, precision=conditions.fabric_precision)


def _recorder(order: Order, work: WorkFolder) -> Recorder:
    facts = {
        "modality": order.modality.name,
        "run_key": work.key,
        "prepared_digest": order.prepared.digest,
        "split_digest": order.prepared.split_digest,
    }
    tracker = Tracker(order.places, order.modality.name, work.key, order.params.train.mlflow)
    return Recorder(work.path, order.modality.title, RunLog(work.path, facts), tracker)


def _facts(order: Order, task: Task, work: WorkFolder, conditions: Numerics) -> dict[str, Any]:
    """What every checkpoint says of the training, as plain values."""
    recipe = order.recipe
    return {
        "hyperparameters": {"seed": recipe["seed"], **recipe["train"], "prepare": recipe["prepare"]},
        "provenance": {
            "modality": order.modality.name,
            "run_key": work.key,
            "prepared_digest": order.prepared.digest,
            "split_digest": order.prepared.split_digest,
            "learnt_digest": order.prepared.learnt_digest,
            "preprocessing": order.prepared.spec,
            "task": task.describe(),
            "numerics": conditions.stamp(),
            "code": dict(recipe["code"]),
            "versions": {name: version(name) for name in _VERSIONS},
        },
    }
