"""Run folders and the callback under a real Trainer. Test names give the requirement."""

import copy
import json
import logging
import pickle
import subprocess
import sys
import types
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ckptcore
from ckptcore.catalogue import Catalogue
from ckptcore.errors import FolderBusy, UsageError
from ckptcore.lightning import CheckpointCallback, plain_checkpoint
from ckptcore.manager import CheckpointManager as Writer
from ckptcore.runfolders import BinaryClassificationCheckpointManager, MulticlassFlareCheckpointManager

lightning = pytest.importorskip(
    "lightning.pytorch", reason="WITHOUT Lightning: its callback is not shown here"
)

CLASSES = ["quiet", "C", "M"]
CONFIG = """
from __future__ import annotations
import os
from pathlib import Path
COHORT = Path("/cohorts/b")
BACKBONE = "convnext"
LOSS = "soft_dice"
WARMUP = {"epochs": 3, "from": 1e-5}
def helper(): ...
"""


class Classifier(lightning.LightningModule):
    """A linear classifier whose validation score may be scripted, to know which epoch is best."""

    def __init__(self, classes=2, script=(), learning_rate=0.1, loss=None):
        super().__init__()
        self.save_hyperparameters(ignore=["script"])
        self.layer = nn.Linear(4, classes)
        self.script = tuple(script)
        self.right = []

    def _step(self, batch):
        inputs, labels = batch
        logits = self.layer(inputs)
        return nn.functional.cross_entropy(logits, labels), logits.argmax(1) == labels

    def training_step(self, batch):
        return self._step(batch)[0]

    def validation_step(self, batch):
        loss, right = self._step(batch)
        self.right.append(right.float().mean())
        self.log("val_loss", loss)

    def on_validation_epoch_end(self):
        scripted = self.current_epoch < len(self.script)
        score = self.script[self.current_epoch] if scripted else torch.stack(self.right).mean()
        self.right.clear()
        self.log("val_f1", 99.0 if self.trainer.sanity_checking else score)

    def test_step(self, batch):
        loss, right = self._step(batch)
        self.log("test_loss", loss)
        self.log("test_f1", right.float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def loader(classes=2):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :classes].argmax(1)), batch_size=8)


def trainer(*callbacks, epochs=4, pl=lightning, **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **(quiet | options))


@pytest.fixture(autouse=True)
def quiet_lightning():
    lightning.seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*|pytorch_lightning.*|torch.*")
        warnings.filterwarnings("ignore", message=".*(num_workers|isinstance.*LeafSpec|is deprecated).*")
        yield


def fit(callback, script, epochs=4, **options):
    model = Classifier(script=script)
    run = trainer(callback, epochs=epochs, **options)
    run.fit(model, loader(), loader())
    return run, model


def files(folder):
    return sorted(path.name for path in folder.glob("*.ckpt"))


def test_row_3_4_a_real_binary_run_fills_its_folder(tmp_path):
    settings = types.ModuleType("settings")
    exec(CONFIG, vars(settings))
    made = BinaryClassificationCheckpointManager(
        model_name=settings.BACKBONE, loss_function=settings.LOSS, data_folder=tmp_path
    )
    made.save_config(vars(settings))
    callback = made.get_checkpoint_callback(mode="max", monitor="val_f1")
    run, model = fit(callback, (0.2, 0.5, 0.713, 0.6))
    (scores,) = run.test(model, loader(), verbose=False)
    made.save_classification_report({"test_metrics": scores, "site": "B"})
    made.save_training_metadata({"test_results": scores, "best_epoch": callback.best_epoch})
    made.save_minimal_logging(callback.best_epoch, callback.best_model_score, "val_f1", run.current_epoch)
    written = {path.name: path for path in made.directory.iterdir() if not path.name.startswith(".")}
    assert set(written) == {
        "best-epoch02-val_f1-0.713.ckpt",
        "classification_report.json",
        "config.json",
        "minimal_logging.json",
        "training_summary.json",
    }
    told = {
        name.removesuffix(".json"): json.loads(path.read_text())
        for name, path in written.items()
        if name.endswith(".json")
    }
    best = {"best_epoch": 2, "best_val_f1": pytest.approx(0.713), "num_epochs_trained": 4}
    for file in ("training_summary", "minimal_logging"):
        assert {key: told[file][key] for key in best} == best
        assert told[file]["early_stopping_triggered"] is False
    assert set(told["training_summary"]["test_results"]) == {"test_loss", "test_f1"}
    assert told["classification_report"]["test_metrics"] == scores
    assert told["classification_report"]["site"] == "B"
    assert told["config"] == {
        "COHORT": "/cohorts/b",
        "BACKBONE": "convnext",
        "LOSS": "soft_dice",
        "WARMUP": {"epochs": 3, "from": 1e-5},
    }


def test_row_3_3_figures_that_are_not_the_best_files_are_written_as_given_and_the_epoch_is_said(
    tmp_path, caplog
):
    made = BinaryClassificationCheckpointManager(
        loss_function="hinge", model_name="swin_tiny", data_folder=tmp_path
    )
    callback = made.get_checkpoint_callback(mode="max", monitor="val_f1")
    run, _ = fit(callback, (0.2, 0.5, 0.713, 0.6))
    # Older programs give the Trainer's current_epoch, which after fit() is how many epochs ran.
    after = {"num_epochs_trained": run.current_epoch + 1, "best_epoch": run.current_epoch}
    score = callback.best_model_score.item()
    files = (
        made.save_training_metadata(after),
        made.save_minimal_logging(best_metric_name="val_f1", best_metric_value=score, **after),
    )
    assert caplog.text.count("best_epoch 4 was given, and the best checkpoint is of epoch 2") == 2
    for file in files:
        told = json.loads(file.read_text())
        assert (told["best_epoch"], told["num_epochs_trained"]) == (4, 5)
        assert told["best_val_f1"] == pytest.approx(0.713)


def test_row_3_4_one_best_file_is_kept_and_there_is_never_none(tmp_path):
    seen = []

    class Watcher(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(files(tmp_path))

    callback = CheckpointCallback("val_f1", "max", tmp_path)
    run = trainer(callback, Watcher(), epochs=5)
    run.fit(Classifier(script=(0.2, 0.5, float("nan"), 0.5, 0.6)), loader(), loader())
    assert seen == [
        [],
        ["best-epoch00-val_f1-0.200.ckpt"],
        *[["best-epoch01-val_f1-0.500.ckpt"]] * 3,
    ]
    assert files(tmp_path) == ["best-epoch04-val_f1-0.600.ckpt"]
    assert run.checkpoint_callbacks == [callback]  # the Trainer added none of its own


def test_row_3_4_a_loss_is_minimised_and_the_sanity_check_does_not_count(tmp_path):
    callback = CheckpointCallback("val_f1", "min", tmp_path)
    fit(callback, (0.5, 0.3, 0.4))
    assert callback.best_epoch == 1 and callback.best_model_score == pytest.approx(0.3)
    assert callback.best_model_path == str(tmp_path / "best-epoch01-val_f1-0.300.ckpt")


def test_row_3_5_a_real_run_of_several_classes_with_early_stopping(tmp_path):
    manager = MulticlassFlareCheckpointManager(
        data_folder=tmp_path, model_name="swin_tiny", loss_function="poly1"
    )
    callback = manager.get_checkpoint_callback("val_f1", "max")
    stopping = lightning.callbacks.EarlyStopping("val_f1", mode="max", patience=1)
    run = trainer(callback, stopping, epochs=20)
    model = Classifier(3, script=(0.3, 0.6, 0.5))
    run.fit(model, loader(3), loader(3))
    results = run.test(model, loader(3), verbose=False, ckpt_path="best")
    inputs, labels = loader(3).dataset.tensors
    right = model.layer(inputs).argmax(1) == labels
    recall = [right[labels == k].float().mean() for k in range(3)]
    manager.save_training_metadata({"test_results": results[0]})
    manager.save_classification_report({"test_metrics": results[0]}, CLASSES, {"recall": recall})
    manager.save_minimal_logging()
    summary = json.loads((manager.directory / "training_summary.json").read_text())
    assert summary["early_stopping_triggered"] is True
    assert (summary["best_epoch"], summary["num_epochs_trained"]) == (1, 3)
    report = json.loads((manager.directory / "classification_report.json").read_text())
    assert report["class_names"] == CLASSES
    assert report["per_class_metrics"] == {
        name: {"recall": pytest.approx(float(value))} for name, value in zip(CLASSES, recall, strict=True)
    }
    minimal = json.loads((manager.directory / "minimal_logging.json").read_text())
    assert minimal["early_stopping_triggered"] is True and minimal["best_epoch"] == 1


def test_row_3_5_stopping_in_the_very_first_epoch_is_recorded_too(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path)
    stopping = lightning.callbacks.EarlyStopping("val_loss", check_finite=True, divergence_threshold=-1.0)
    trainer(callback, stopping).fit(Classifier(), loader(), loader())
    assert callback.early_stopping_triggered and callback.epochs_trained == 1


def test_row_3_7_the_file_is_a_lightning_checkpoint_and_ours(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path)
    fit(callback, (0.2, 0.5, 0.713, 0.6))
    path = tmp_path / "best-epoch02-val_f1-0.713.ckpt"
    module = Classifier.load_from_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert stored["epoch"] == 2 and stored["pytorch-lightning_version"] == lightning.__version__
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step"} <= set(
        stored
    )
    assert torch.equal(module.layer.weight, stored["state_dict"]["layer.weight"])
    assert module.hparams.learning_rate == 0.1
    ours = ckptcore.load(path)
    assert ours.epochs_finished == 3 and ours.header.metadata["epoch_counts"] == "index"
    assert ours.header.metrics["val_f1"] == pytest.approx(0.713) and ours.header.model_digest
    assert ckptcore.verify(path).checked == "sha256" and ckptcore.verify(path).ok


def test_row_3_7_a_trainer_resumed_from_it_ends_as_if_never_stopped(tmp_path):
    script = (0.1, 0.9, 0.5, 0.5, 0.5)
    _, model = fit(CheckpointCallback("val_f1", "max", tmp_path / "whole"), script, epochs=5)
    callback = CheckpointCallback("val_f1", "max", tmp_path / "resumed")
    resumed = Classifier(script=script)
    run = trainer(callback, epochs=5)
    run.fit(resumed, loader(), loader(), ckpt_path=tmp_path / "whole" / "best-epoch01-val_f1-0.900.ckpt")
    assert run.current_epoch == 5
    assert torch.equal(resumed.layer.weight, model.layer.weight)


def test_row_3_7_the_best_of_a_resumed_run_is_still_the_best(tmp_path):
    fit(CheckpointCallback("val_f1", "max", tmp_path), (0.1, 0.9), epochs=2)
    (name,) = files(tmp_path)
    callback = CheckpointCallback("val_f1", "max", tmp_path)
    script = (0.1, 0.9, 0.5, 0.95)
    trainer(callback, epochs=3).fit(Classifier(script=script), loader(), loader(), ckpt_path=tmp_path / name)
    assert files(tmp_path) == [name] and callback.best_epoch == 1
    again = CheckpointCallback("val_f1", "max", tmp_path)
    trainer(again, epochs=4).fit(Classifier(script=script), loader(), loader(), ckpt_path=tmp_path / name)
    assert files(tmp_path) == ["best-epoch03-val_f1-0.950.ckpt"]
    assert len(Catalogue.scan(tmp_path).run_keys()) == 1


def test_row_3_7_a_run_resumed_into_a_new_folder_leaves_the_old_one_alone(tmp_path):
    fit(CheckpointCallback("val_f1", "max", tmp_path / "old"), (0.1, 0.9), epochs=2)
    old = tmp_path / "old" / "best-epoch01-val_f1-0.900.ckpt"
    callback = CheckpointCallback("val_f1", "max", tmp_path / "new")
    run = trainer(callback, epochs=4)
    run.fit(Classifier(script=(0.1, 0.9, 0.5, 0.95)), loader(), loader(), ckpt_path=old)
    assert old.exists() and files(tmp_path / "new") == ["best-epoch03-val_f1-0.950.ckpt"]


def test_row_3_7_validation_within_an_epoch_is_named_by_that_epoch(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path)
    fit(callback, (0.2, 0.5), epochs=2, val_check_interval=1)
    assert files(tmp_path) == ["best-epoch01-val_f1-0.500.ckpt"]
    found = ckptcore.load(tmp_path / "best-epoch01-val_f1-0.500.ckpt")
    assert found["epoch"] == 1 and found.epochs_finished == 1


def test_row_3_7_validation_after_every_second_epoch_counts_that_epoch(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path)
    fit(callback, (0.9, 0.2, 0.9, 0.5), epochs=4, check_val_every_n_epoch=2)
    (name,) = files(tmp_path)
    assert name == "best-epoch03-val_f1-0.500.ckpt"
    assert ckptcore.load(tmp_path / name).epochs_finished == 4


def test_row_3_7_also_with_the_older_package_of_lightning(tmp_path):
    script = f"""
import sys, torch
from ckptcore.lightning import CheckpointCallback
import pytorch_lightning as pl
assert "lightning.pytorch" not in sys.modules
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)
callback = CheckpointCallback("loss", "min", {str(tmp_path)!r})
quiet = dict(logger=False, enable_progress_bar=False, accelerator="cpu")
trainer = pl.Trainer(max_epochs=2, callbacks=[callback], **quiet)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8, 2)))
assert trainer.checkpoint_callbacks == [callback], trainer.checkpoint_callbacks
Module.load_from_checkpoint(callback.best_model_path)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(files(tmp_path)) == 1 and files(tmp_path)[0].startswith("best-epoch01-loss-")


def test_hyperparameters_that_are_objects_are_left_out_and_named(tmp_path, caplog):
    callback = CheckpointCallback("val_f1", "max", tmp_path)
    trainer(callback, epochs=1).fit(Classifier(loss=nn.CrossEntropyLoss()), loader(), loader())
    assert "hyper_parameters/loss" in caplog.text
    assert "loss" not in torch.load(callback.best_model_path)["hyper_parameters"]
    Classifier.load_from_checkpoint(callback.best_model_path, loss=nn.CrossEntropyLoss())


def test_the_state_of_the_model_is_never_left_out():
    with pytest.raises(ckptcore.errors.UnsavableValue, match="state_dict"):
        ckptcore.save("never.ckpt", plain_checkpoint({"state_dict": {"x": object()}}))


def test_a_dry_run_saves_nothing(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path / "new")
    fit(callback, (), fast_dev_run=True)
    assert not (tmp_path / "new").exists() and callback.best_model_path == ""


def test_weights_alone_if_asked_for(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path, save_weights_only=True)
    fit(callback, (0.5,), epochs=1)
    assert "optimizer_states" not in torch.load(callback.best_model_path)
    Classifier.load_from_checkpoint(callback.best_model_path)


def test_a_name_of_ones_own(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path, "{monitor}={value:.1f}@{epoch}.ckpt")
    fit(callback, (0.5, 0.6), epochs=2)
    assert files(tmp_path) == ["val_f1=0.6@1.ckpt"]
    with pytest.raises(UsageError, match="epoch, monitor and value"):
        CheckpointCallback("val_f1", "max", tmp_path, "{step}.ckpt")


def test_a_folder_that_has_a_writer_is_refused(tmp_path):
    with Writer(tmp_path), pytest.raises(FolderBusy):
        fit(CheckpointCallback("val_f1", "max", tmp_path), (0.5,), epochs=1)


def test_the_folder_is_free_again_after_training_failed(tmp_path):
    class Failing(Classifier):
        def on_train_epoch_end(self):
            raise RuntimeError("loss of power")

    with pytest.raises(RuntimeError, match="loss of power"):
        trainer(CheckpointCallback("val_f1", "max", tmp_path)).fit(Failing(), loader(), loader())
    Writer(tmp_path).close()


def test_what_a_kill_left_beside_the_best_goes_when_training_goes_on(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path)
    fit(callback, (0.1, 0.9), epochs=2)
    metadata = dict(ckptcore.read_header(callback.best_model_path).metadata) | {"metrics": {"val_f1": 0.1}}
    state = dict(ckptcore.load(callback.best_model_path)) | {"epoch": 0}
    ckptcore.save(tmp_path / "best-epoch00-val_f1-0.100.ckpt", state, metadata)
    trainer(CheckpointCallback("val_f1", "max", tmp_path), epochs=3).fit(
        Classifier(script=(0.1, 0.9, 0.2)), loader(), loader(), ckpt_path=callback.best_model_path
    )
    assert files(tmp_path) == ["best-epoch01-val_f1-0.900.ckpt"]


def test_callbacks_are_copied_and_pickled_as_spawned_processes_need(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path)
    callback.best_epoch = 3
    for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert type(other) is type(callback) and other.best_epoch == 3 and other.dirpath == tmp_path
    assert isinstance(callback, lightning.callbacks.Checkpoint)


def test_without_lightning_the_error_says_what_to_install(tmp_path):
    script = """
import sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
from ckptcore.lightning import CheckpointCallback
try:
    CheckpointCallback("val_f1", "max", ".")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UsageError") and "pip install 'ckptcore[lightning]'" in done.stdout


def test_a_name_without_an_ending_gets_one(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path, "{epoch}-{value:.2f}")
    fit(callback, (0.5, 0.6), epochs=2)
    assert files(tmp_path) == ["1-0.60.ckpt"]


def test_two_callbacks_of_one_metric_in_two_folders_each_keep_their_own(tmp_path):
    first, second = (CheckpointCallback("val_f1", "max", tmp_path / name) for name in "ab")
    run = trainer(first, second, epochs=2)
    run.fit(Classifier(script=(0.2, 0.5)), loader(), loader())
    assert first.state_key != second.state_key
    assert len(files(tmp_path / "a")) == len(files(tmp_path / "b")) == 1
    run.save_checkpoint(tmp_path / "all.ckpt")
    again = [CheckpointCallback("val_f1", "max", tmp_path / name) for name in "ab"]
    trainer(*again, epochs=3).fit(
        Classifier(script=(0.2, 0.5, 0.1)), loader(), loader(), ckpt_path=tmp_path / "all.ckpt"
    )
    assert [c.run_key for c in again] == [first.run_key, second.run_key]
    assert [c.best_model_path for c in again] == [first.best_model_path, second.best_model_path]


def test_a_folder_that_was_moved_goes_on_with_its_best(tmp_path):
    callback = CheckpointCallback("val_f1", "max", tmp_path / "old")
    fit(callback, (0.1, 0.9), epochs=2)
    (tmp_path / "old").rename(tmp_path / "new")
    again = CheckpointCallback("val_f1", "max", tmp_path / "new")
    (name,) = files(tmp_path / "new")
    model = Classifier(script=(0.1, 0.9, 0.5))
    trainer(again, epochs=3).fit(model, loader(), loader(), ckpt_path=tmp_path / "new" / name)
    assert again.run_key == callback.run_key and again.best_model_path == str(tmp_path / "new" / name)


def test_a_metric_that_never_appears_is_said_once(tmp_path, caplog):
    fit(CheckpointCallback("val_acc", "max", tmp_path), (), epochs=3)
    assert caplog.text.count("no metric 'val_acc' was logged; there are: val_f1, val_loss") == 1


def test_a_fresh_start_moves_an_earlier_runs_best_of_the_same_name_away(tmp_path):
    script, name = (0.5,), "best-epoch00-val_f1-0.500.ckpt"
    first, second = (CheckpointCallback("val_f1", "max", tmp_path) for _ in range(2))
    fit(first, script, epochs=1)
    fit(second, script, epochs=1)
    (moved,) = tmp_path.glob("archived/*/*.ckpt")
    assert moved.name == name and ckptcore.read_header(moved).run_key == first.run_key
    assert files(tmp_path) == [name]
    assert ckptcore.read_header(tmp_path / name).run_key == second.run_key


def test_an_earlier_runs_best_of_another_name_is_moved_away_too_and_a_pinned_one_stays(tmp_path):
    fit(CheckpointCallback("val_f1", "max", tmp_path), (0.9,), epochs=1)
    fit(CheckpointCallback("val_f1", "max", tmp_path), (0.5,), epochs=1)
    ckptcore.pin(tmp_path / "best-epoch00-val_f1-0.500.ckpt", "paper")
    fit(CheckpointCallback("val_f1", "max", tmp_path), (0.7,), epochs=1)
    assert [path.name for path in tmp_path.glob("archived/*/*")] == ["best-epoch00-val_f1-0.900.ckpt"]
    assert files(tmp_path) == ["best-epoch00-val_f1-0.500.ckpt", "best-epoch00-val_f1-0.700.ckpt"]


def test_a_strangers_file_under_the_name_of_the_next_best_is_moved_not_overwritten(tmp_path):
    class Stranger(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                (tmp_path / "best-epoch01-val_f1-0.900.ckpt").write_bytes(b"precious")

    callback = CheckpointCallback("val_f1", "max", tmp_path)
    trainer(callback, Stranger(), epochs=2).fit(Classifier(script=(0.1, 0.9)), loader(), loader())
    assert files(tmp_path) == ["best-epoch01-val_f1-0.900.ckpt"]
    assert [path.read_bytes() for path in tmp_path.glob("archived/*/*")] == [b"precious"]


def test_the_name_of_a_promoted_version_is_refused_before_training(tmp_path):
    with pytest.raises(UsageError, match="promoted version's name"):
        CheckpointCallback("val_f1", "max", tmp_path, "net_v1.0.0_best")
