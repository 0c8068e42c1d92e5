import gc
import os
import socket
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from states import difference, tiny_state

import ckptcore
from ckptcore.errors import DamagedCheckpoint, UnknownFormat, UsageError

DATA = Path(__file__).parent / "data"


def test_a_file_of_format_version_1_still_loads_with_what_it_held() -> None:
    from data_format_v1 import METADATA, known_state

    found = ckptcore.load(DATA / "format_v1.pt")
    assert difference(dict(found), {**known_state(), "ckptcore_format": 1}) is None
    assert found.header.metadata == METADATA
    assert found.header.model_digest == "82b0dd0185a66af21a08979df5485072a4e20f0acfef691dff049531af3cde3c"
    assert found.epochs_finished == 5
    assert ckptcore.verify(DATA / "format_v1.pt").ok
    assert difference(torch.load(DATA / "format_v1.pt"), dict(found)) is None


@pytest.mark.parametrize("map_location", ["cpu", None, torch.device("cpu")], ids=str)
def test_tensors_come_to_the_place_asked_for(tiny_file: Path, map_location: Any) -> None:
    assert ckptcore.load(tiny_file, map_location)["step"].device.type == "cpu"


def test_tensors_can_go_to_another_device(tiny_file: Path) -> None:
    assert ckptcore.load(tiny_file, "meta")["step"].device.type == "meta"


@pytest.mark.parametrize(
    "wrong",
    [lambda storage, _: storage, {"cuda:0": "cpu"}, 0, "bogus", "", "cuda:126"],
    ids=["function", "dict", "number", "bogus", "empty", "absent"],
)
def test_what_is_no_device_here_is_refused_before_the_file_is_read(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(UsageError, match="map_location"):
        ckptcore.load(tmp_path / "not even there.pt", wrong)


def test_loaded_tensors_can_be_changed_without_reaching_the_file(tiny_file: Path) -> None:
    before = tiny_file.read_bytes()
    found = ckptcore.load(tiny_file)
    found["model_state_dict"]["w"].fill_(7)
    found["step"].fill_(7)
    assert tiny_file.read_bytes() == before
    assert ckptcore.load(tiny_file)["step"].tolist() == [1.5]


def test_a_file_may_go_once_it_is_loaded(tiny_file: Path) -> None:
    found = ckptcore.load(tiny_file)
    tiny_file.unlink()
    assert found["model_state_dict"]["w"].tolist() == [0, 1, 2, 3]


def test_dropping_a_key_frees_the_memory_of_its_tensors(tiny_file: Path) -> None:
    found = ckptcore.load(tiny_file)
    storage = weakref.ref(found["model_state_dict"]["w"])
    del found["model_state_dict"]
    gc.collect()
    assert storage() is None


def test_loading_through_a_link_reads_what_it_names(tiny_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to(tiny_file)
    assert ckptcore.load(tmp_path / "link.pt")["epoch"] == 2


def test_no_descriptor_stays_open(tiny_file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        found = ckptcore.load(tiny_file)
        ckptcore.verify(tiny_file)
        ckptcore.read_header(tiny_file)
    assert len(os.listdir("/proc/self/fd")) == before
    assert found["epoch"] == 2


@pytest.mark.parametrize("read", [ckptcore.load, ckptcore.read_header, ckptcore.verify])
def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path, read: Any) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pt")


@pytest.mark.parametrize("read", [ckptcore.load, ckptcore.read_header])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, read: Any, kind: str) -> None:
    path = tmp_path / "x.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.close()
    with pytest.raises(UnknownFormat, match="expected a checkpoint file"):
        read(path)
    assert not ckptcore.verify(path).ok


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK", b"hello world\n" * 50, bytes(5000), b"{}", b"PK\x05\x06" + bytes(18)]
)
def test_what_is_no_checkpoint_is_an_error_of_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ckptcore.CheckpointError):
        ckptcore.load(path)
    assert not ckptcore.verify(path).ok


def test_a_type_that_the_installed_torch_lacks_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ckptcore.save(tmp_path / "a.pt", {"w": torch.ones(2).to(torch.float8_e8m0fnu)})
    monkeypatch.delattr(torch, "float8_e8m0fnu")
    with pytest.raises(UnknownFormat, match=r"has no type float8_e8m0fnu.*Update it"):
        ckptcore.load(path)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:127", "mps", "meta", "privateuseone:3"])
def test_devices_come_back_as_devices_wherever_the_file_is_read(tmp_path: Path, name: str) -> None:
    path = ckptcore.save(tmp_path / "a.pt", {"device": torch.device(name)})
    assert ckptcore.load(path)["device"] == torch.device(name) == torch.load(path)["device"]


def test_epochs_finished_counts_in_one_way(tmp_path: Path) -> None:
    cases = [
        ({"epoch": -1}, None, 0),
        ({"epoch": 3}, None, 4),
        ({"epoch": 3}, {"epoch_counts": "finished"}, 3),
    ]
    cases += [({"epoch": 3}, {"epochs_finished": 9}, 9), ({}, None, None)]  # type: ignore[list-item]
    for state, metadata, finished in cases:
        assert ckptcore.load(ckptcore.save(tmp_path / "a.pt", state, metadata)).epochs_finished == finished


def test_a_checkpoint_knows_its_path_and_header(tiny_file: Path) -> None:
    found = ckptcore.load(str(tiny_file))
    assert found.path == tiny_file
    assert found.header.roles == ("latest",)
    assert found["note"] == tiny_state()["note"]


@pytest.mark.parametrize("wanted", [True, False])
def test_garbage_collection_goes_on_as_before_whether_a_load_ends_well_or_not(
    tiny_file: Path, wanted: bool
) -> None:
    data = bytearray(tiny_file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tiny_file.with_name("damaged.pt")
    damaged.write_bytes(data)
    try:
        (gc.enable if wanted else gc.disable)()
        ckptcore.load(tiny_file)
        assert gc.isenabled() is wanted
        with pytest.raises(DamagedCheckpoint):
            ckptcore.load(damaged)
        assert gc.isenabled() is wanted
    finally:
        gc.enable()
