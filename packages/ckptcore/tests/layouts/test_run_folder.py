"""The run folder's layout, for loops that are not Lightning's."""

import torch

from ckptcore import layouts


def test_row_3_2_only_the_best_is_kept_named_by_lightnings_index(tmp_path, training, names_in):
    scores = (0.2, 0.5, 0.713, 0.6)
    training.run(tmp_path, layouts.run_folder("val_f1", "max"), 4, lambda epoch: {"val_f1": scores[epoch]})
    assert names_in(tmp_path) == {"best-epoch02-val_f1-0.713.ckpt", "last.ckpt"}
    assert torch.load(tmp_path / "best-epoch02-val_f1-0.713.ckpt")["epoch"] == 2


def test_a_metric_with_a_slash_makes_no_folder(tmp_path, training, names_in):
    training.run(tmp_path, layouts.run_folder("val/f1", latest=False), 1, lambda epoch: {"val/f1": 0.5})
    assert names_in(tmp_path) == {"best-epoch00-val_f1-0.500.ckpt"}
