import shutil

import pytest
from trained_folders import copy_run, names, train

import ckptcore
from ckptcore import layouts
from ckptcore.catalogue import Catalogue
from ckptcore.errors import FolderBusy, UsageError
from ckptcore.lease import Lease
from ckptcore.pruning import NamesAlone, freed_bytes, prune


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return train(tmp_path_factory.mktemp("template") / "run", "a1")


@pytest.fixture
def trained(template, tmp_path):
    return copy_run(template, tmp_path / "run")


def test_the_newest_periodic_ones_stay_and_so_does_everything_pinned(trained):
    sizes = sum((trained / f"epoch_{n}.pt").stat().st_size for n in (1, 2, 4))
    done = prune(trained, 2)
    assert done.removed == ("epoch_1.pt", "epoch_2.pt", "epoch_3.pt", "epoch_4.pt") and done.freed == sizes
    assert names(trained) == {"best.pt", "latest.pt", "final.pt", "epoch_5.pt", "epoch_6.pt"}
    assert prune(trained, 2).removed == ()


def test_nothing_but_what_was_agreed_on_goes(trained):
    assert prune(trained, 1, agreed=["epoch_2.pt", "best.pt", "elsewhere.pt"]).removed == ("epoch_2.pt",)


def test_the_folder_is_given_back(trained):
    prune(trained, 3)
    lease = Lease(trained)
    lease.acquire()
    lease.release()


def test_a_folder_with_a_writer_is_left_alone(trained):
    before = names(trained)
    layout = layouts.plain("val_auc", "max", last=10)
    with ckptcore.CheckpointManager(trained, layout, handle_signals=False), pytest.raises(FolderBusy):
        prune(trained, 0)
    assert names(trained) == before


def test_files_of_another_run_stay(trained, tmp_path):
    other = train(tmp_path / "other", "b2", (0.5, 0.6, 0.7))
    shutil.copy(trained / "epoch_6.pt", other / "epoch_66.pt")
    assert prune(other, 1).removed == ("epoch_1.pt", "epoch_2.pt")


def test_without_a_recorded_layout_only_numbered_names_rotate(trained):
    shutil.rmtree(trained / ".ckptcore")
    assert prune(trained, 0).removed == tuple(f"epoch_{n}.pt" for n in range(1, 7))
    assert names(trained) == {"best.pt", "latest.pt", "final.pt"}


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("checkpoint_epoch_10.pt", ("periodic",)),
        ("epoch=3-step=400.ckpt", ("periodic",)),
        ("resnet50_epoch_10.pth", ("periodic",)),
        ("resnet50_latest.pth", ("latest",)),
        ("last.ckpt", ("latest",)),
        ("best_model_f1_0.8312.pth", ("named",)),
        ("best-epoch02-val_f1-0.713.ckpt", ("named",)),
        ("checkpoint_epoch05_stage1_f1_0.6.pth", ("named",)),
        ("final_model.pt", ("named",)),
        ("weights.pt", ("named",)),
        ("resnet50_v1.1.0_best.pth", ()),
    ],
)
def test_names_alone_tell_what_may_rotate(name, roles):
    assert NamesAlone("none", {}, ()).roles_of(name) == roles


def test_a_file_with_a_name_elsewhere_frees_nothing(trained, tmp_path):
    (tmp_path / "kept.pt").hardlink_to(trained / "epoch_1.pt")
    size = (trained / "epoch_2.pt").stat().st_size
    assert freed_bytes(Catalogue.scan(trained), ["epoch_1.pt", "epoch_2.pt"]) == size


def test_a_negative_count_is_wrong_usage(trained):
    with pytest.raises(UsageError, match="0 or more"):
        prune(trained, -1)
