"""Random numbers by key: what is drawn follows from what it is for, never from what was drawn before.

So neither the number of worker processes nor the point at which a run was resumed changes anything.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

Key = int | str


def number_of(seed: int, *key: Key) -> int:
    """A number below 2**63 that follows from a seed and a key, as if drawn at random."""
    # repr keeps 1 and "1" apart, and the separator ("a", "bc") and ("ab", "c").
    text = "\n".join(map(repr, (seed, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *key: Key) -> np.random.Generator:
    """A generator of its own for a seed and a key: ``generator(seed, "augment", epoch, sample_id)``."""
    return np.random.Generator(np.random.PCG64(number_of(seed, *key)))


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch goes through its samples."""
    return [int(index) for index in generator(seed, "order", epoch).permutation(count)]


def reseed(seed: int, *key: Key) -> None:
    """Set the global generators of Python, NumPy and torch (every device) by a key.

    Dropout draws from these; a loop calls this before each step with the number of the step.
    """
    number = number_of(seed, *key)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
