"""The trainer node's layout and its two settings. Test names give the requirement."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

import ckptcore
from ckptcore import layouts
from ckptcore.announce import announce
from ckptcore.catalogue import Catalogue
from ckptcore.errors import DiskFull, FolderNotWritable, UsageError
from ckptcore.layouts import TrainerNodeSettings
from ckptcore.manager import CheckpointManager


@pytest.fixture
def announced():
    logger = logging.getLogger("ckptcore")
    handlers, level = list(logger.handlers), logger.level
    yield announce
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ("checkpoints", "checkpoints"),
        ("./experiments/run1/checkpoints", "experiments/run1/checkpoints"),
        ("  padded ", "padded"),
    ],
)
def test_row_2_1_a_relative_folder_is_made_below_the_working_directory(
    tmp_path, training, monkeypatch, given, folder
):
    monkeypatch.chdir(tmp_path)
    training.run(TrainerNodeSettings(given).checkpoint_dir, layouts.trainer_node(), 1)
    assert (tmp_path / folder / "final_model.pt").is_file()


def test_row_2_1_an_absolute_folder_is_made_where_it_says(tmp_path, training):
    settings = TrainerNodeSettings.from_config({"checkpoint_dir": str(tmp_path / "a" / "b"), "num_epochs": 1})
    with settings.manager(total_epochs=1) as manager:
        manager.step(training.state, epoch=0, metrics={"loss": 1.0})
    assert (tmp_path / "a" / "b" / "final_model.pt").is_file()


def test_row_2_1_the_defaults_are_those_of_the_page():
    assert TrainerNodeSettings.from_config({}) == TrainerNodeSettings("checkpoints", 5)


@pytest.mark.parametrize("nothing", ["", "   ", None])
def test_row_2_1_no_folder_means_no_checkpoints_and_training_goes_on(
    tmp_path, training, monkeypatch, nothing
):
    monkeypatch.chdir(tmp_path)
    settings = TrainerNodeSettings.from_config({"checkpoint_dir": nothing})
    training.run(settings.checkpoint_dir, layouts.trainer_node(settings.save_every_n_epochs), 10)
    assert training.seen == list(range(10))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "number"), [(1, 1), (5, 5), (10, 10), ("5", 5), (" 10 ", 10)])
def test_row_2_1_save_every_n_epochs_is_a_number_or_the_text_of_one(given, number):
    assert TrainerNodeSettings(save_every_n_epochs=given).save_every_n_epochs == number


@pytest.mark.parametrize("wrong", [0, -5, "", "five", "2-3", 2.5, True, None])
def test_row_2_1_anything_else_is_refused_before_training(wrong):
    with pytest.raises(UsageError, match="whole number of 1 or more"):
        TrainerNodeSettings(save_every_n_epochs=wrong)


def falling(epoch):
    return {"loss": 1 / (epoch + 1)}


def test_row_2_2_first_example_twenty_epochs(tmp_path, training, names_in):
    training.run(tmp_path, layouts.trainer_node(5, latest=False), 20, falling)
    periodic = {f"checkpoint_epoch_{n}.pt" for n in (5, 10, 15, 20)}
    assert names_in(tmp_path) == periodic | {"best_model.pt", "final_model.pt"}


def test_row_2_2_second_example_no_folder_no_files(tmp_path, training, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.run("", layouts.trainer_node(), 10, falling)
    assert list(tmp_path.iterdir()) == [] and training.seen[-1] == 9


def test_row_2_2_third_example_every_epoch(tmp_path, training, names_in):
    training.run(tmp_path, layouts.trainer_node(1, latest=False), 10, falling)
    assert names_in(tmp_path) == {f"checkpoint_epoch_{n}.pt" for n in range(1, 11)} | {
        "best_model.pt",
        "final_model.pt",
    }


def test_row_2_2_unless_told_not_to_a_latest_is_kept_too(tmp_path, training, names_in):
    training.run(tmp_path, layouts.trainer_node(), 3, falling)
    assert names_in(tmp_path) == {"latest_model.pt", "best_model.pt", "final_model.pt"}
    assert not layouts.trainer_node().own_latest


def test_row_2_2_epoch_twenty_and_final_are_one_file_on_disk(tmp_path, training):
    training.run(tmp_path, layouts.trainer_node(), 20, lambda epoch: {"loss": epoch + 1.0})
    twentieth, final = (tmp_path / "checkpoint_epoch_20.pt").stat(), (tmp_path / "final_model.pt").stat()
    assert twentieth.st_ino == final.st_ino
    assert (tmp_path / "best_model.pt").stat().st_ino != final.st_ino
    assert torch.load(tmp_path / "best_model.pt")["epoch"] == 1


def test_row_2_3_the_keys_and_the_loading_of_the_page(tmp_path, training, new_training):
    training.run(tmp_path, layouts.trainer_node(), 10, falling)
    best = torch.load(tmp_path / "best_model.pt")
    assert best["epoch"] == 10 and f"{best['loss']:.4f}" == "0.1000"
    assert best["epoch_losses"] == [1 / (epoch + 1) for epoch in range(10)]
    other = new_training(5)
    other.model.load_state_dict(best["model_state_dict"])
    other.optimizer.load_state_dict(best["optimizer_state_dict"])
    assert all(map(torch.equal, other.weights(), training.weights()))
    begun = torch.load(tmp_path / "checkpoint_epoch_5.pt")
    assert list(range(begun["epoch"], 7)) == [5, 6]  # indices from 0 of the epochs still to come


def test_row_2_3_losses_go_on_after_a_resume_also_from_the_old_systems_file(tmp_path, new_training):
    first = new_training()
    old = {"epoch": 2, "loss": 0.5, "epoch_losses": [1.0, 0.5], **first.state()}
    del old["rng_state"]
    torch.save(old, tmp_path / "old.pt")
    with CheckpointManager(tmp_path / "new", layouts.trainer_node()) as manager:
        found = manager.resume(tmp_path / "old.pt")
        assert found is not None and found.epochs_finished == 2
        manager.step(first.state, epoch=2, metrics={"loss": 0.25})
    assert torch.load(tmp_path / "new" / "latest_model.pt")["epoch_losses"] == [1.0, 0.5, 0.25]


def test_row_2_4_the_run_says_where_which_file_the_best_loss_and_that_it_is_done(
    tmp_path, training, capsys, announced
):
    announced()
    folder = tmp_path / "checkpoints"
    training.run(folder, layouts.trainer_node(2), 3, lambda epoch: {"loss": (0.9, 0.25, 0.5)[epoch]})
    assert capsys.readouterr().out.splitlines() == [
        f"checkpoints will be saved to: {folder}",
        "saved best model: best_model.pt (loss: 0.9000)",
        "saved checkpoint: checkpoint_epoch_2.pt",
        "saved best model: best_model.pt (loss: 0.2500)",
        f"training complete. Final model saved to: {folder / 'final_model.pt'} (best loss: 0.2500)",
    ]


def test_row_2_4_the_run_says_when_there_is_no_folder(training, capsys, announced):
    announced()
    training.run("", layouts.trainer_node(), 1)
    assert capsys.readouterr().out == "no checkpoints will be saved: no folder was given\n"


def test_row_2_4_announcing_twice_says_everything_once(tmp_path, training, capsys, announced):
    announced()
    announced()
    training.run(tmp_path, layouts.trainer_node(), 1)
    assert capsys.readouterr().out.count("training complete.") == 1


def test_row_2_4_nothing_is_printed_unless_asked_for(tmp_path, training, capsys):
    training.run(tmp_path, layouts.trainer_node(), 1)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def somebody_else():
    """A folder of root's in a world that anybody may enter, and the life of an ordinary user meanwhile."""
    if os.geteuid() != 0:
        pytest.skip("WITHOUT root: cannot become another user, permission is not provoked this way")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    os.seteuid(65534)
    yield folder
    os.seteuid(0)
    shutil.rmtree(folder)


def test_row_2_5_no_permission_says_so_and_leaves_nothing(somebody_else):
    with pytest.raises(FolderNotWritable, match=r"Permission denied.*[Gg]ive") as error:
        CheckpointManager(somebody_else / "new", layouts.trainer_node())
    assert str(somebody_else) in str(error.value)
    with pytest.raises(FolderNotWritable, match=r"Permission denied.*write permission"):
        CheckpointManager(somebody_else, layouts.trainer_node())
    assert list(somebody_else.iterdir()) == []


@pytest.mark.parametrize("path", ["file", "file/below", "nul\0byte", "x" * 300])
def test_row_2_5_a_path_that_can_be_no_folder_says_so(tmp_path, path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FolderNotWritable, match=r"Give a folder|expected a folder"):
        CheckpointManager(tmp_path / path, layouts.trainer_node())
    assert (tmp_path / "file").read_text() == "in the way"
    assert len(list(tmp_path.iterdir())) == 1


def test_row_2_5_disk_full_leaves_the_old_files_and_training_goes_on(small_disk, training, caplog):
    filler = small_disk / "filler.bin"

    def fill_then_free(epoch, manager):
        if epoch == 1:
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while file.write(bytes(1 << 12)):
                    pass
        if epoch == 3:
            filler.unlink()

    training.run(small_disk, layouts.trainer_node(2), 6, falling, after_save=fill_then_free)
    assert "no space for" in caplog.text and "Free some space" in caplog.text
    saved = {path.name for path in small_disk.glob("*.pt")}
    assert saved == {
        *("checkpoint_epoch_2.pt", "checkpoint_epoch_6.pt"),
        *("best_model.pt", "latest_model.pt", "final_model.pt"),
    }
    assert all(ckptcore.verify(small_disk / name).ok for name in saved)
    assert not [path for path in small_disk.iterdir() if path.name.endswith(".tmp")]
    assert training.seen == list(range(6))


def test_row_2_5_disk_full_at_the_final_save_is_an_error_that_says_what_to_do(small_disk, training):
    big = torch.nn.Linear(600, 600)
    expected = pytest.raises(DiskFull, match=r"needs [\d,]+ bytes, [\d,]+ are free\. .*Free some space")
    with expected, CheckpointManager(small_disk, layouts.trainer_node(), total_epochs=1) as manager:
        manager.step({"model_state_dict": big.state_dict()}, epoch=0, metrics={"loss": 1.0})
    assert len(Catalogue.scan(small_disk)) == 0
    assert {path.name for path in small_disk.iterdir()} == {".ckptcore"}
