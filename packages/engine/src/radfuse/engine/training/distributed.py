"""Several processes that train one network together, as torchrun starts them.

Each takes its share of every batch and gradients are averaged; the first process alone decides, writes and
tells.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as processes

from ckptcore.signals import WATCHED

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes of a training.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its machine, which is also that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that decides and writes."""
        return self.rank == 0

    def share(self, items: Sequence[Value]) -> list[Value]:
        """This process's share of a batch, as large as every other one's; nobody gets what is left over."""
        whole = len(items) // self.size * self.size
        return list(items[self.rank : whole : self.size])

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, alike in all processes but for their values, by their mean over the processes."""
        if self.size == 1 or not tensors:
            return
        # One message instead of one a parameter: most parameters are far too small to be worth a round.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        processes.all_reduce(flat)
        parts = torch.split(flat / self.size, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean(self, value: float) -> float:
        """Mean of a number over the processes."""
        if self.size == 1:
            return value
        found: list[float] = [0.0] * self.size
        processes.all_gather_object(found, value)
        return sum(found) / self.size

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have in the first process."""
        if self.size > 1:
            for tensor in tensors:
                processes.broadcast(tensor, 0)

    def told(self, value: Value) -> Value:
        """The value that the first process has; nobody goes on before the first has come here."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        processes.broadcast_object_list(box, 0)
        found: Value = box[0]
        return found


ALONE = World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes that torchrun's environment tells of, able to talk to each other within the block.

    Args:
        device: as params.yaml asks for it.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        yield ALONE
        return
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK") or 0))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(world.local_rank)
    processes.init_process_group("nccl" if on_gpu else "gloo")
    try:
        with _kept_quiet(world):
            yield world
    finally:
        processes.destroy_process_group()


@contextmanager
def _kept_quiet(world: World) -> Iterator[None]:
    """Let the first process alone speak, and alone act on signals: it saves, and its end ends the others."""
    if world.first:
        yield
        return
    logger, watched = logging.getLogger("radfuse"), WATCHED
    level, handlers = logger.level, [signal.signal(number, signal.SIG_IGN) for number in watched]
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for number, handler in zip(watched, handlers, strict=True):
            signal.signal(number, handler)
