"""What a file is for by its name: the same for `ckpt clean`, `du` and `list`."""

import pytest

from ckptcore.cli.listing import list_folder
from ckptcore.disk_usage import kind_of
from ckptcore.kinds import kind_of_name
from ckptcore.pruning import NamesAlone
from ckptcore.semver import is_version, version_of


@pytest.mark.parametrize(
    ("name", "kind", "used"),
    [
        ("checkpoint_epoch_10.pt", "periodic", "periodic"),
        ("epoch=3-step=400.ckpt", "periodic", "periodic"),
        ("model_10.pt", "periodic", "periodic"),
        ("latest_checkpoint.pt", "latest", "periodic"),
        ("last.ckpt", "latest", "periodic"),
        ("final_model.pt", "final", "periodic"),
        ("checkpoint_epoch05_stage1_f1_0.6.pth", "stage", "periodic"),
        ("best_model_f1_0.6021.pth", "best", "best"),
        ("net_epoch_3_best.pt", "best", "best"),
        ("bestiary_epoch_3.pt", "periodic", "periodic"),
        ("ema_epoch_3.pt", "other", "other"),
        ("resnet50.pth", "other", "other"),
        ("yolo_v8.0.1.pt", "other", "other"),
        ("yolo_v8.0.1_epoch_5.pth", "periodic", "periodic"),
        ("net_v1.0.0_best.pt", "version", "versions"),
        ("net_traced_3.pt", "export", "exports"),
        ("net.safetensors", "export", "exports"),
        ("training_history.json", "other", "other"),
    ],
)
def test_a_kind_by_name(tmp_path, name, kind, used):
    assert kind_of_name(name) == kind
    assert kind_of(tmp_path / name) == used
    (role,) = NamesAlone("none", {}, ()).roles_of(name) or ("version",)
    assert role == (kind if kind in ("periodic", "latest", "version") else "named")


@pytest.mark.parametrize("name", ["net_v1.0.0_best.pth", "a_v1_v10.0.2_best.ckpt"])
def test_what_is_called_a_version(name):
    assert is_version(name) and version_of(name) is not None


@pytest.mark.parametrize(
    "name", ["yolo_v8.0.1_epoch_5.pth", "net_v1.0.0.pth", "net_v01.0.0_best.pth", "net_v1.0.0_best.pth.bak"]
)
def test_what_only_looks_like_a_version_is_none(name):
    assert not is_version(name)


def test_an_empty_folder_has_no_kinds(tmp_path):
    assert list_folder(tmp_path).items == ()
