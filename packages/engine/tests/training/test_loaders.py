"""Batches follow from seed, epoch and position."""

import pytest
import torch

from radfuse.engine.errors import SettingsError
from radfuse.engine.modality import modality
from radfuse.engine.prepared import Prepared
from radfuse.engine.training.loaders import Examples, Loader, Order
from radfuse.engine.training.tasks import task_of


def loader(pipeline, workers=0, seed=0, batch_size=4):
    params, toy = pipeline.params(), modality("toy")
    prepared = Prepared(pipeline.places, "toy")
    rows = prepared.rows()
    task = task_of(toy, params.prepare_of(toy), prepared)
    examples = Examples(prepared, rows[rows["split"] == "train"], toy, task, params.train_of(toy), seed)
    return Loader(examples, batch_size, seed, workers)


def batches(loaded, epoch, first=0):
    return [(batch.rows, batch.image, batch.target) for batch in loaded.epoch(epoch, first)]


def same(left, right):
    assert [rows for rows, _, _ in left] == [rows for rows, _, _ in right]
    for (_, image, target), (_, other, truth) in zip(left, right, strict=True):
        assert torch.equal(image, other)
        assert torch.equal(target.nan_to_num(-1), truth.nan_to_num(-1))


def test_workers_change_nothing(toy):
    alone, helped = loader(toy, workers=0), loader(toy, workers=2)
    for epoch in range(2):
        same(batches(alone, epoch), batches(helped, epoch))
    helped.close()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_workers_change_nothing_where_a_sum_is_split_among_threads(toy, monkeypatch, two_threads):
    def augment(self, image, mask, random, settings):
        large = torch.from_numpy(random.normal(size=(16, 224, 224)).astype("float32"))
        return image + large.mean((1, 2)).sum() + large.mean(), mask

    monkeypatch.setattr(type(modality("toy")), "augment", augment)
    alone, helped = loader(toy, workers=0), loader(toy, workers=1)
    same(batches(alone, 0), batches(helped, 0))
    helped.close()
    assert torch.get_num_threads() == 2


def test_an_epoch_from_its_third_batch_on_is_the_rest_of_the_whole_one(toy):
    loaded = loader(toy)
    whole = batches(loaded, 1)
    same(batches(loaded, 1, 2), whole[2:])
    assert len(loaded.epoch(1, 2)) == len(whole) - 2 and batches(loaded, 1, 6) == []


def test_a_sample_is_changed_otherwise_in_another_epoch(toy):
    loaded = loader(toy)
    first, second = (
        {
            row: image
            for rows, images, _ in batches(loaded, e)
            for row, image in zip(rows, images, strict=True)
        }
        for e in (0, 1)
    )
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[row], second[row]) for row in first)


def test_to_begin_an_epoch_draws_nothing_from_the_global_generator(toy):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    next(iter(loader(toy).epoch(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_last_batch_of_one_is_left_out_in_training_alone():
    assert [len(batch) for batch in Order(9, 4, seed=0)] == [4, 4]
    assert [len(batch) for batch in Order(9, 4, seed=None)] == [4, 4, 1]
    assert [len(batch) for batch in Order(10, 4, seed=0)] == [4, 4, 2]


def test_too_few_samples_are_an_error():
    class One:
        rows = None

        def __len__(self):
            return 1

    with pytest.raises(SettingsError, match="at least two samples"):
        Loader(One(), 4, seed=0)
