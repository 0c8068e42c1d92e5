"""Draws follow from their key alone."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from radfuse.engine.training.randomness import generator, number_of, order, reseed


@given(st.integers(0, 200), st.integers(0, 2**31), st.integers(0, 1000))
def test_an_order_has_every_sample_once_and_is_the_same_again(count, seed, epoch):
    found = order(count, seed, epoch)
    assert sorted(found) == list(range(count))
    assert found == order(count, seed, epoch)


def test_orders_of_other_seeds_and_epochs_are_others():
    assert len({tuple(order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_keys_that_read_alike_are_told_apart():
    keys = [(1, "a", "bc"), (1, "ab", "c"), (1, "1"), (1, 1), (1, "a", 1), (1, "a", "1"), (11,)]
    assert len({number_of(*key) for key in keys}) == len(keys)


def test_a_generator_draws_the_same_whatever_was_drawn_before():
    first = generator(7, "sample", 3, "i1").random(5)
    generator(7, "sample", 3, "i0").random(100)
    assert np.array_equal(first, generator(7, "sample", 3, "i1").random(5))


def test_a_known_key_gives_a_known_number():
    # Guards resumed runs against a change of the key's spelling.
    assert number_of(0, "step", 12) == 2348724454835894940


def test_all_global_generators_start_anew_by_key():
    def draw(step):
        reseed(0, "step", step)
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    first = draw(4)
    assert draw(5) != first
    assert draw(4) == first
