"""Samples in batches. What a batch holds follows from seed, epoch and position, not from who loads it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from radfuse.engine.errors import DamagedArray, SettingsError
from radfuse.engine.modality import Modality
from radfuse.engine.prepared import Prepared
from radfuse.engine.tables import SAMPLE
from radfuse.engine.training import randomness
from radfuse.engine.training.distributed import ALONE, World
from radfuse.engine.training.numerics import one_thread
from radfuse.engine.training.tasks import Task
from radfuse.engine.training.undisturbed import end_with_trainer, signals_held_back

if TYPE_CHECKING:
    import pandas as pd

_FEWEST = 2
"""Examples for each process that are worth a last, shorter batch: no batch norm can learn from one."""
Place = tuple[int, int]
"""An epoch, and a position in the list of its examples."""


@dataclass(frozen=True)
class Batch:
    """Examples stacked.

    Attributes:
        image: (B, C, ...) as the exported graph takes it.
        target: (B, labels), or (B, ...) class indices on the image's grid.
        rows: positions of the samples in their table.
    """

    image: Tensor
    target: Tensor
    rows: tuple[int, ...]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies by itself."""
        return Batch(self.image.pin_memory(), self.target.pin_memory(), self.rows)


class ToInput(Protocol):
    """From an array as stored to what the graph takes."""

    def __call__(self, spec: dict[str, Any], array: np.ndarray[Any, Any], /) -> np.ndarray[Any, Any]: ...


class Examples(Dataset[tuple[Tensor, Tensor, int]]):
    """What a network is shown: of each sample the whole, or for training a part, changed at random.

    Args:
        prepared: the arrays.
        rows: of the prepared table, those to show.
        modality: augments.
        task: cuts and labels.
        settings: of the training.
        seed: of the training; None shows whole arrays as they are.
    """

    def __init__(
        self,
        prepared: Prepared,
        rows: pd.DataFrame,
        modality: Modality,
        task: Task,
        settings: Any,
        seed: int | None,
    ) -> None:
        self.rows = rows.reset_index(drop=True)
        self._prepared = prepared
        self._spec = prepared.spec
        self._modality = modality
        self._task = task
        self._settings = settings
        self._seed = seed
        self._repeats = task.repeats(settings) if seed is not None else 1

    def __len__(self) -> int:
        return len(self.rows) * self._repeats

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, int]:
        # A process that loads has one thread, and a sum that is split among more has other last digits: where
        # the training process itself loads, it must not have more either.
        with one_thread():
            return self._example(*place)

    def _example(self, epoch: int, position: int) -> tuple[Tensor, Tensor, int]:
        index, repeat = position % len(self.rows), position // len(self.rows)
        row = self.rows.iloc[index]
        random = None
        if self._seed is not None:
            random = randomness.generator(self._seed, "sample", epoch, str(row[SAMPLE]), repeat)
        array, target = self._task.example(self._prepared, row, random, self._settings)
        image = torch.from_numpy(np.ascontiguousarray(_to_input(self._spec, array), dtype=np.float32))
        if random is not None and self._settings.augment:
            image, target = self._augmented(image, target, random)
        return image, target, index

    def _augmented(self, image: Tensor, target: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        mask = target if self._task.target_is_mask() else None
        image, changed = self._modality.augment(image, mask, random, self._settings)
        return image.contiguous(), target if changed is None else changed.contiguous()


def _to_input(spec: dict[str, Any], array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    from radfuse.serving.preprocess import to_input

    convert: ToInput = to_input
    return convert(spec, array)


class Order:
    """The batches of an epoch as lists of places, from a batch of choice on.

    A last batch of a single example is left out.

    Args:
        examples: how many an epoch has.
        batch_size: examples a batch.
        seed: shuffles, another way every epoch; None keeps the table's order and leaves nothing out.
        world: the processes that share each batch.
    """

    def __init__(self, examples: int, batch_size: int, seed: int | None, world: World = ALONE) -> None:
        self._world = world
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._first = 0

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self._examples, self._batch_size)
        fewest = 1 if self._seed is None else _FEWEST * self._world.size
        return whole + (rest >= fewest)

    def begin(self, epoch: int, first: int = 0) -> None:
        """Say which epoch comes next, and with which of its batches."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        return max(self.batches - self._first, 0)

    def __iter__(self) -> Iterator[list[Place]]:
        positions = list(range(self._examples))
        if self._seed is not None:
            positions = randomness.order(self._examples, self._seed, self._epoch)
        for batch in range(self._first, self.batches):
            chosen = positions[batch * self._batch_size : (batch + 1) * self._batch_size]
            yield [(self._epoch, position) for position in self._world.share(chosen)]


class Loader:
    """Batches of examples, loaded in this process or ahead of it in others.

    Args:
        examples: what to load.
        batch_size: examples a batch.
        seed: shuffles; None keeps the order of the table.
        workers: processes that load; 0 for this one.
        pin: use page-locked memory, for a GPU.
        world: the processes that share each batch.

    Raises:
        SettingsError: there are too few examples for one batch, or batches are too small to be shared.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int | None = None,
        workers: int = 0,
        pin: bool = False,
        world: World = ALONE,
    ) -> None:
        self.rows = examples.rows
        self._order = Order(len(examples), batch_size, seed, world)
        if batch_size < world.size:
            raise SettingsError(
                f"batch_size: expected a sample for each of {world.size} processes, got {batch_size} for all."
            )
        if not self._order.batches:
            raise SettingsError(f"expected at least two samples to train on, got {len(examples)}.")
        self._loader: DataLoader[Batch] = DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=partial(stack, samples=examples.rows[SAMPLE].astype(str).tolist()),
            pin_memory=pin,
            persistent_workers=workers > 0,
            # From 3.14 on Python would have a server start them, which would be their parent.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            worker_init_fn=partial(end_with_trainer, os.getpid()),
            # Its own, so that to begin an epoch draws nothing from the global generators.
            generator=torch.Generator().manual_seed(0),
        )

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        return self._order.batches

    def epoch(self, epoch: int = 0, first: int = 0) -> Batches:
        """The batches of an epoch, from one of them on; its length is how many are left."""
        self._order.begin(epoch, first)
        return Batches(self._loader)

    def close(self) -> None:
        """End the worker processes now.

        Left to the garbage collector after an exception, each of them is waited for in vain for five seconds:
        by then the queue that would tell it to end is closed.
        """
        iterator = self._loader._iterator
        if iterator is not None and self._loader.num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            for worker in iterator._workers:  # type: ignore[attr-defined]
                # One that is stuck in reading a file does not look at SIGTERM.
                if worker.is_alive():
                    worker.kill()
            self._loader._iterator = None


class Batches:
    """The batches of one epoch, as often as they are asked for; its length is how many they are."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        # Here the processes that load begin, if there are any and they are not at work yet.
        with signals_held_back():
            return iter(self._loader)


def stack(examples: Sequence[tuple[Tensor, Tensor, int]], samples: Sequence[str]) -> Batch:
    """Examples as a batch.

    Args:
        examples: image, target and row of each.
        samples: ids of all rows.

    Raises:
        DamagedArray: they are not all of one shape.
    """
    images, targets, rows = zip(*examples, strict=True)
    shapes = Counter(tuple(image.shape) for image in images)
    if len(shapes) > 1:
        usual = shapes.most_common(1)[0][0]
        odd = next(i for i, image in enumerate(images) if tuple(image.shape) != usual)
        raise DamagedArray(
            f"the array of the sample {samples[rows[odd]]}: expected {usual} (channels first) as the others, "
            f"got {tuple(images[odd].shape)}. Prepare the images again (radfuse prepare MODALITY)."
        )
    return Batch(torch.stack(images), torch.stack(targets), tuple(rows))
