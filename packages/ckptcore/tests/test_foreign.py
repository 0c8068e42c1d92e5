from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from states import difference, small_state

import ckptcore
from ckptcore.errors import RefusedContent, UnknownFormat


def saved(path: Path, state: object, new: bool = True) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=new)
    return path


def test_a_plain_torch_checkpoint_loads_as_torch_loads_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", small_state())
    found = ckptcore.load(path)
    assert difference(dict(found), torch.load(path)) is None
    assert found.header.format == "torch"
    assert found.header.tensor_count > 20
    assert found.header.metrics["loss"] != found.header.metrics["loss"]


def test_a_checkpoint_of_the_format_before_1_6_loads(tmp_path: Path) -> None:
    state = {"epoch": 3, "model": torch.nn.Linear(2, 2).state_dict(), "view": torch.arange(6)[2:]}
    path = saved(tmp_path / "a.pt", state, new=False)
    assert difference(dict(ckptcore.load(path)), torch.load(path)) is None


def test_a_python_2_state_dict_loads(tmp_path: Path) -> None:
    """torchvision's oldest weights: OrderedDict called with a list of pairs."""
    from forgery import number, storage, tensor, text, torch_zip

    pairs = b"](](" + text("w") + tensor(storage("0", 2), (2,), (1,)) + b"ee"
    pickle = b"\x80\x02ccollections\nOrderedDict\n(" + pairs + b"tR."
    (tmp_path / "a.pt").write_bytes(torch_zip(pickle, {"0": np.float32([1, 2]).tobytes()}))
    assert number(2)
    assert ckptcore.load(tmp_path / "a.pt")["w"].tolist() == [1, 2]


def test_a_bare_state_dict_is_recognised_and_keeps_the_versions_of_its_layers(tmp_path: Path) -> None:
    found = ckptcore.load(saved(tmp_path / "a.pt", torch.nn.BatchNorm1d(2).state_dict()))
    assert found.header.format == "state-dict"
    assert found._metadata == {"": {"version": 2}}
    torch.nn.BatchNorm1d(2).load_state_dict(found)


def test_a_lightning_checkpoint_is_recognised_and_counts_epochs_from_0(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.ckpt",
        {"pytorch-lightning_version": "2.4", "epoch": 1, "state_dict": {"w": torch.ones(1)}},
    )
    found = ckptcore.load(path)
    assert found.header.format == "lightning"
    assert found.epochs_finished == 2


@pytest.mark.parametrize(
    ("keys", "finished"),
    [
        ({"epoch_losses": [1.0]}, 3),
        ({"optimal_threshold": 0.5}, 3),
        ({"history": {"best_val_dice": 0.5}}, 3),
        ({"best_metric": 0.5}, 4),
        ({"val_auc": 0.5, "timestamp": "x"}, 4),
        ({}, None),
    ],
)
def test_the_keys_of_a_file_tell_what_its_epoch_counts(
    tmp_path: Path, keys: dict[str, Any], finished: int | None
) -> None:
    path = saved(tmp_path / "a.pt", {"epoch": 3, "model_state_dict": {}, **keys})
    assert ckptcore.load(path).epochs_finished == finished


def test_a_safetensors_file_loads_as_its_library_loads_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {
        k: v.clone()
        for k, v in small_state()["odd"].items()
        if "complex128" not in k and "fnuz" not in k and v.dtype.itemsize
    }
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = ckptcore.load(tmp_path / "a.safetensors")
    theirs = load_file(tmp_path / "a.safetensors")
    assert difference({k: found[k] for k in theirs}, theirs) is None
    assert found.header.metadata["safetensors"] == {"format": "pt"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float64(1), "numpy"),
        (np.ones(2), "numpy"),
        (Path("x"), "pathlib"),
        (defaultdict(list), "defaultdict"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (ckptcore.errors.DiskFull, "ckptcore.errors.DiskFull"),
    ],
    ids=["numpy scalar", "numpy array", "path", "defaultdict", "module", "class"],
)
def test_objects_are_refused_naming_their_class(tmp_path: Path, value: object, name: str) -> None:
    path = saved(tmp_path / "a.pt", {"epoch": 1, "value": value})
    with pytest.raises(RefusedContent, match=name) as caught:
        ckptcore.load(path)
    assert any(name in found for found in caught.value.names)
    report = ckptcore.verify(path)
    assert not report.ok
    assert name in report.findings[0]


@pytest.mark.parametrize(
    "value", [torch.eye(2).to_sparse(), torch.ones(2, 2, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_a_row_of_bytes_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(RefusedContent, match=r"torch\._utils\._rebuild"):
        ckptcore.load(saved(tmp_path / "a.pt", {"value": value}))


def test_classes_that_a_program_declared_safe_for_itself_are_refused_all_the_same(tmp_path: Path) -> None:
    from argparse import Namespace

    path = saved(tmp_path / "a.pt", {"args": Namespace(lr=1)})
    with torch.serialization.safe_globals([Namespace]):
        torch.load(path)
        with pytest.raises(RefusedContent, match=r"argparse\.Namespace"):
            ckptcore.load(path)


@pytest.mark.parametrize(
    "value", [[1, 2], torch.ones(2), "text", {1: 2}], ids=["list", "tensor", "text", "int keys"]
)
def test_what_is_no_dict_with_text_keys_is_no_checkpoint(tmp_path: Path, value: object) -> None:
    with pytest.raises(UnknownFormat, match="expected a dict"):
        ckptcore.load(saved(tmp_path / "a.pt", value))


def test_views_and_shared_storages_load_as_torch_loads_them(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state = {
        "whole": base,
        "part": base[3:9],
        "t": base.reshape(4, 6).t(),
        "wide": base[:3].expand(5, 3),
        "empty": base[:0],
        "p": torch.nn.Parameter(base),
    }
    path = saved(tmp_path / "a.pt", state)
    assert difference({k: v for k, v in ckptcore.load(path).items()}, torch.load(path)) is None


def test_a_file_name_outside_ascii_is_no_obstacle(tmp_path: Path) -> None:
    assert ckptcore.load(saved(tmp_path / "modèle é 模型.pt", {"epoch": 1}))["epoch"] == 1


def test_the_header_of_a_foreign_file_tells_format_and_size_without_loading_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", OrderedDict(w=torch.ones(1)))
    header = ckptcore.read_header(path)
    assert (header.format, header.format_version, header.file_size) == ("torch", 0, path.stat().st_size)
    assert header.epochs_finished is None


def test_a_foreign_state_that_cannot_be_described_still_loads(tmp_path: Path) -> None:
    endless: list[object] = [1]
    endless.append(endless)
    found = ckptcore.load(saved(tmp_path / "a.pt", {"epoch": 1, "endless": endless}))
    assert found["endless"][1][1][0] == 1
