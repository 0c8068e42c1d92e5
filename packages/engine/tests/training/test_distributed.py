"""Several processes that train one network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainable import toy_pipeline

import ckptcore
from radfuse.engine.errors import SettingsError
from radfuse.engine.training.distributed import World, joined
from radfuse.engine.training.loaders import Loader, Order

HERE = Path(__file__).parent

SCRIPT = """
import os, sys, torch
from radfuse.engine.training import loop
from radfuse.engine.cli import run

train = loop.train

def compared(run):
    world = run.world
    tensors = [torch.full((2, 3), float(world.rank)), torch.tensor([10.0 * world.rank])]
    world.average(tensors)
    assert tensors[0].eq(0.5).all() and tensors[1].item() == 5.0, tensors
    assert world.mean(float(world.rank)) == 0.5
    buffer = torch.tensor([float(world.rank)])
    world.copy_first([buffer])
    assert buffer.item() == 0.0
    assert world.told({"rank": world.rank}) == {"rank": 0}
    train(run)
    weights = [parameter.tolist() for parameter in run.network.parameters()]
    assert world.told(weights) == weights, "the processes have different networks"

loop.train = compared
sys.exit(run(["train", "toy", "--params", os.environ["TOY_PARAMS"]]))
"""


def torchrun(*arguments, **environment):
    path = os.pathsep.join([str(HERE / "toy"), str(HERE / "helpers")])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *arguments,
    ]
    given = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=150)


def test_two_processes_average_and_train_one_network_that_one_of_them_writes(tmp_path):
    pipeline = toy_pipeline(tmp_path / "toy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun(str(script), TOY_PARAMS=str(pipeline.file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 epochs; published") == 1 and done.stderr.count("epoch 2/2, all") == 1
    checkpoint = ckptcore.load(pipeline.models / "tiny_best.pth")
    assert checkpoint["provenance"]["numerics"]["processes"] == 2
    latest = ckptcore.load(pipeline.works()[0] / "tiny_latest.pth")
    assert latest["global_step"] == 12 and latest["loader_state"]["epoch"] == 2


def test_the_shares_of_a_batch_are_equal_and_disjoint():
    worlds = [World(rank, 3) for rank in range(3)]
    shares = [world.share(list(range(11))) for world in worlds]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_every_process_has_as_many_batches_as_the_others():
    orders = [list(Order(21, 8, 0, World(rank, 2))) for rank in range(2)]
    assert [[len(batch) for batch in order] for order in orders] == [[4, 4, 2]] * 2
    alone = list(Order(21, 8, 0))
    for batch, one, other in zip(alone, *orders, strict=True):
        assert set(one) | set(other) <= set(batch) and not set(one) & set(other)
    assert [len(batch) for batch in Order(19, 8, 0, World(0, 2))] == [4, 4]


def test_a_batch_that_cannot_be_shared_is_refused():
    class Four:
        rows = None

        def __len__(self):
            return 4

    with pytest.raises(SettingsError, match="a sample for each of 3 processes, got 2 for all"):
        Loader(Four(), 2, seed=0, world=World(0, 3))


def test_alone_nothing_is_exchanged(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.ones(3)
    with joined("cpu") as world:
        world.average([tensor])
        assert world.first and world.told("word") == "word" and world.mean(2.0) == 2.0
        assert world.share([1, 2, 3]) == [1, 2, 3] and tensor.sum() == 3
