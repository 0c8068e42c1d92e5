"""A file that changes while it is opened: what comes out was verified, or nothing comes out."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptcore
from ckptcore import foreign, hashing, loading, reader
from ckptcore.errors import CheckpointError, DamagedCheckpoint

OLD, NEW = 1.0, 2.0


def state(value: float) -> dict[str, Any]:
    return {"epoch": int(value), "w": torch.full((5000,), value)}


def by_rename(path: Path, other: bytes) -> None:
    beside = path.with_suffix(".other")
    beside.write_bytes(other)
    os.replace(beside, path)


def in_place(path: Path, other: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, other)
    os.close(fd)


def cut(path: Path, other: bytes) -> None:
    os.truncate(path, 600)


def grown(path: Path, other: bytes) -> None:
    with open(path, "ab") as file:
        file.write(other)


SWAPS = [by_rename, in_place, cut, grown]
STEPS = [
    (loading, "find_summary"),
    (loading, "open_native"),
    (reader, "read_table"),
    (reader, "_check_structure"),
    (reader, "checked_record"),
    (loading, "_copied_tensors"),
    (hashing, "is_intact"),
]
MAPPED_STEPS = [*STEPS[:5], (loading, "_mapped_tensors"), (hashing, "is_intact")]


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("module", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_file_swapped_at_any_step_gives_verified_content_or_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    step: str,
    moment: str,
    swap: Callable[[Path, bytes], None],
) -> None:
    path = ckptcore.save(tmp_path / "a.pt", state(OLD))
    other = ckptcore.save(tmp_path / "b.pt", state(NEW)).read_bytes()
    real = getattr(module, step)
    swapped: list[bool] = []

    def hooked(*args: Any, **kwargs: Any) -> Any:
        if moment == "before" and not swapped:
            swapped.append(True)
            swap(path, other)
        found = real(*args, **kwargs)
        if moment == "after" and not swapped:
            swapped.append(True)
            swap(path, other)
        return found

    monkeypatch.setattr(module, step, hooked)
    try:
        found = ckptcore.load(path)
    except DamagedCheckpoint:
        assert swap is not by_rename
    else:
        assert set(found["w"].tolist()) == {float(found["epoch"])}
        if swap is by_rename:
            assert found["epoch"] == OLD
    assert swapped


@pytest.mark.parametrize(
    ("module", "step", "swap"),
    [
        pytest.param(module, step, swap, id=f"{step}-{swap.__name__}")
        for module, step in MAPPED_STEPS
        for swap in SWAPS
        # A mapped file that is cut while it is hashed ends the process, as the documentation of load says.
        if (step, swap) != ("is_intact", cut)
    ],
)
def test_a_mapped_file_swapped_before_it_is_verified_gives_verified_content_or_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    step: str,
    swap: Callable[[Path, bytes], None],
) -> None:
    path = ckptcore.save(tmp_path / "a.pt", state(OLD))
    other = ckptcore.save(tmp_path / "b.pt", state(NEW)).read_bytes()
    os.utime(path, (1, 1))
    real = getattr(module, step)
    swapped: list[bool] = []

    def hooked(*args: Any, **kwargs: Any) -> Any:
        if not swapped:
            swapped.append(True)
            swap(path, other)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, step, hooked)
    try:
        found = ckptcore.load(path, mmap=True)
    except DamagedCheckpoint:
        assert swap is not by_rename
    else:
        assert set(found["w"].tolist()) == {float(found["epoch"])}
    assert swapped


def test_a_mapped_file_changed_while_it_is_hashed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ckptcore.save(tmp_path / "a.pt", state(OLD))
    other = ckptcore.save(tmp_path / "b.pt", state(NEW)).read_bytes()
    os.utime(path, (1, 1))
    real = hashing.is_intact

    def hooked(stretch: Any) -> bool:
        good = real(stretch)
        in_place(path, other)
        return good

    monkeypatch.setattr(hashing, "is_intact", hooked)
    monkeypatch.setattr(loading, "intact", lambda stretches: [hooked(one) for one in stretches])
    with pytest.raises(DamagedCheckpoint, match="changed while it was read"):
        ckptcore.load(path, mmap=True)


@pytest.mark.parametrize("swap", [by_rename, in_place, cut], ids=lambda swap: swap.__name__)
def test_a_foreign_file_swapped_after_its_check_is_read_as_it_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / "a.pt"
    torch.save(state(OLD), path)
    torch.save(state(NEW), tmp_path / "b.pt")
    other = (tmp_path / "b.pt").read_bytes()
    real = foreign.zip_findings

    def hooked(*args: Any) -> Any:
        found = real(*args)
        swap(path, other)
        return found

    monkeypatch.setattr(foreign, "zip_findings", hooked)
    assert set(ckptcore.load(path)["w"].tolist()) == {OLD}


def test_a_file_rewritten_all_the_time_never_gives_a_mixture(tmp_path: Path) -> None:
    path = ckptcore.save(tmp_path / "a.pt", state(OLD))
    versions = [path.read_bytes(), ckptcore.save(tmp_path / "b.pt", state(NEW)).read_bytes()]
    stop = threading.Event()

    def rewrite() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            in_place(path, versions[turn % 2])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(150):
            try:
                found = ckptcore.load(path)
            except CheckpointError:
                continue
            assert set(found["w"].tolist()) == {float(found["epoch"])}
    finally:
        stop.set()
        writer.join()


def test_changes_to_the_file_after_loading_do_not_reach_what_was_loaded(tmp_path: Path) -> None:
    path = ckptcore.save(tmp_path / "a.pt", state(OLD))
    found = ckptcore.load(path)
    in_place(path, ckptcore.save(tmp_path / "b.pt", state(NEW)).read_bytes())
    cut(path, b"")
    assert set(found["w"].tolist()) == {OLD}
