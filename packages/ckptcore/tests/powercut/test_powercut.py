"""Whatever a power cut leaves on the disk opens, and holds all that a caller was told is saved."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from powercut import Recording, State, recorded, survey
from trainee import digest_of

import ckptcore
from ckptcore import CheckpointManager, archive, load, verify, versions
from ckptcore.cards import check_version, list_versions
from ckptcore.catalogue import Catalogue
from ckptcore.layouts import Layout, plain
from ckptcore.rules import Best, EveryEpochs, Final, LastK

LOSSES = [0.5, 0.4, 0.6, 0.3, float("nan"), 0.35]


def state_at(epochs: int) -> dict[str, Any]:
    return {
        "model_state_dict": {"w": torch.full((3,), float(epochs))},
        "optimizer_state_dict": {"momentum": torch.full((2,), epochs / 3)},
        "seen": [f"batch {epochs}", epochs / 7, None],
    }


def seen_in(state: Mapping[str, Any]) -> str:
    """What names the state of an epoch; a file of weights alone has no optimizer."""
    return digest_of(state, [key for key in state_at(1) if key in state])


DIGESTS = {epochs: seen_in(state_at(epochs)) for epochs in range(1, 30)}
LIGHT_DIGESTS = {
    epochs: seen_in({key: value for key, value in state_at(epochs).items() if key != "optimizer_state_dict"})
    for epochs in range(1, 30)
}

scored = Layout(
    name="scored",
    templates={
        "best": "best_{metric:.4f}.pt",
        "latest": "latest.pt",
        "periodic": "epoch_{epochs_finished}.pt",
    },
    save=(EveryEpochs(1, role="latest"), EveryEpochs(1), Best("loss", "min")),
    keep=LastK(2),
    metric="loss",
    mode="min",
)
light = Layout(
    name="light",
    templates={"latest": "latest.pt", "best": "best.pt", "final": "final.pt"},
    save=(EveryEpochs(1, role="latest"), Best("loss", "min"), Final()),
    metric="loss",
    mode="min",
    weights_only=frozenset({"best"}),
)
crowded = Layout(
    name="crowded",
    templates=dict(plain("loss", "min").templates) | {f"copy{n}": f"copy{n}.pt" for n in range(4)},
    save=(*plain("loss", "min").save, *(EveryEpochs(1, role=f"copy{n}") for n in range(4))),
    keep=LastK(2),
    metric="loss",
    mode="min",
)
LAYOUTS = {"plain": plain("loss", "min", last=2), "scored": scored, "light": light, "crowded": crowded}


def opened(root: Path, layout: Layout) -> CheckpointManager:
    return CheckpointManager(root / "run", layout, asynchronous=False, handle_signals=False)


def run_epochs(root: Path, layout: Layout, count: int, record: Recording | None = None) -> None:
    """Train on for some epochs, telling the record what is saved."""
    with opened(root, layout) as manager:
        found = manager.resume("auto")
        first = 0 if found is None else found.epochs_finished or 0
        for epoch in range(first, first + count):
            manager.step(state_at(epoch + 1), epoch=epoch, metrics={"loss": LOSSES[epoch % len(LOSSES)]})
            if record is not None:
                record.mark(("saved", epoch + 1))


def check_run(root: Path, layout: Layout, told: tuple[Any, ...], least: int = 0) -> None:
    """The newest saved is there, bit-equal; so are the best and the last ones; nothing shown is damaged."""
    newest = max([least, *(mark[1] for mark in told if mark[0] == "saved")])
    if not (root / "run").exists():
        assert newest == 0
        return
    with opened(root, layout) as manager:
        found = manager.resume("auto")
    assert found is not None or newest == 0
    files = {file.name: file for file in Catalogue.scan(root / "run")}
    for name in files:
        assert verify(root / "run" / name).ok, name
    if found is None or newest == 0:
        return
    epochs = found.epochs_finished or 0
    assert epochs >= newest
    assert seen_in(found) == DIGESTS[epochs]
    assert "latest.pt" in files
    if "periodic" in layout.templates:
        assert {f"epoch_{number}.pt" for number in range(max(1, epochs - 1), epochs + 1)} <= set(files)
    losses = [LOSSES[epoch % len(LOSSES)] for epoch in range(max(newest, 1))]
    best = [load(f.path) for f in files.values() if f.name.startswith("best")]
    assert any(c.header.metrics["loss"] <= min(x for x in losses if x == x) for c in best)
    wanted = LIGHT_DIGESTS if "best" in layout.weights_only else DIGESTS
    assert all(seen_in(c) == wanted[c.epochs_finished or 0] for c in best)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of states are made in it."""
    memory = Path("/dev/shm")
    at = (
        memory if os.access(memory, os.W_OK) else tmp_path
    ) / f"ckptcore-powercut-{os.getpid()}-{tmp_path.name}"
    at.mkdir()
    yield at
    shutil.rmtree(at)


SHOW: list[Callable[[str, object], None]] = []
"""`record_property` of the running test."""


@pytest.fixture(autouse=True)
def _show_counts(record_property: Callable[[str, object], None]) -> None:
    SHOW[:] = [record_property]


def cut_everywhere(record: Recording, scratch: Path, check: Callable[[Path, State], None], title: str) -> int:
    """Open every state that a cut may leave; returns how many there are."""
    found = survey(record)
    SHOW[0](
        "shown",
        f"{title}: {len(record.operations)} operations, {found.moments} moments ({found.sampled} sampled), "
        f"{found.replays} replays, {len(found.states)} different states",
    )
    for number, state in enumerate(found.states):
        at = scratch / f"state{number}"
        state.materialise(at)
        try:
            check(at, state)
        except BaseException as error:
            error.add_note(f"the disk held {sorted(state.names.items())}; told: {state.told}")
            raise
        shutil.rmtree(at)
    return len(found.states)


@pytest.mark.parametrize(
    "name", ["plain", "scored", "light", pytest.param("crowded", marks=pytest.mark.slow)]
)
def test_saved_checkpoints_survive_a_cut_at_any_moment_of_a_run(
    name: str, tmp_path: Path, scratch: Path
) -> None:
    layout = LAYOUTS[name]
    with recorded(tmp_path) as record:
        run_epochs(tmp_path, layout, 4, record)
        run_epochs(tmp_path, layout, 2, record)
    cut_everywhere(record, scratch, lambda at, state: check_run(at, layout, state.told), f"run {name}")


def test_a_file_saved_over_another_is_the_old_one_or_the_new_one(tmp_path: Path, scratch: Path) -> None:
    ckptcore.save(tmp_path / "a.pt", state_at(1))
    with recorded(tmp_path) as record:
        for epochs in (2, 3):
            ckptcore.save(tmp_path / "a.pt", state_at(epochs))
            record.mark(epochs)

    def check(at: Path, state: State) -> None:
        assert seen_in(load(at / "a.pt")) in [DIGESTS[epochs] for epochs in range(max([1, *state.told]), 4)]

    cut_everywhere(record, scratch, check, "save")


def test_a_promoted_version_is_whole_with_its_card_and_its_checkpoint_untouched(
    tmp_path: Path, scratch: Path
) -> None:
    run_epochs(tmp_path, LAYOUTS["plain"], 4)
    with recorded(tmp_path) as record:
        for number in ("1.0.0", "1.1.0"):
            card = versions.promote(tmp_path / "run" / "best.pt", version=number)
            record.mark(("promoted", card.file_name, card.sha256))
        run_epochs(tmp_path, LAYOUTS["plain"], 1, record)

    def check(at: Path, state: State) -> None:
        cards = {card.file_name: card for card in list_versions(at / "run")}
        for card in cards.values():
            assert card.status in ("whole", "incomplete"), card
        for mark in state.told:
            if mark[0] == "promoted":
                assert cards[mark[1]].sha256 == mark[2]
                assert check_version(cards[mark[1]]) == ()
        check_run(at, LAYOUTS["plain"], state.told, least=4)

    cut_everywhere(record, scratch, check, "promote")


def test_setting_a_damaged_checkpoint_aside_loses_neither_it_nor_the_others(
    tmp_path: Path, scratch: Path
) -> None:
    run_epochs(tmp_path, LAYOUTS["plain"], 3)
    broken = bytearray((tmp_path / "run" / "latest.pt").read_bytes())
    broken[len(broken) // 4] ^= 1
    with open(tmp_path / "run" / "latest.pt", "r+b") as file:  # epoch_3.pt is the same file
        file.write(broken)
    with recorded(tmp_path) as record:
        run_epochs(tmp_path, LAYOUTS["plain"], 2, record)

    def check(at: Path, state: State) -> None:
        assert any(path.read_bytes() == bytes(broken) for path in (at / "run").glob("*.pt*"))
        with opened(at, LAYOUTS["plain"]) as manager:
            found = manager.resume("auto")
        assert found is not None
        epochs = found.epochs_finished or 0
        assert epochs >= max([2, *(mark[1] for mark in state.told)])
        assert seen_in(found) == DIGESTS[epochs]

    cut_everywhere(record, scratch, check, "set aside")


def test_files_of_another_run_are_moved_and_never_lost(tmp_path: Path, scratch: Path) -> None:
    run_epochs(tmp_path, LAYOUTS["plain"], 3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    with recorded(tmp_path) as record, opened(tmp_path, LAYOUTS["plain"]) as manager:
        manager.step(state_at(1), epoch=0, metrics={"loss": LOSSES[0]})
        record.mark(("saved", 1))

    def check(at: Path, state: State) -> None:
        for name, content in before.items():
            places = [at / "run" / name, *(at / "run").glob(f"archived/*/{name}")]
            assert any(place.exists() and place.read_bytes() == content for place in places), name
        if state.told:
            check_run(at, LAYOUTS["plain"], state.told)

    cut_everywhere(record, scratch, check, "other run")


def test_going_back_leaves_the_abandoned_files_somewhere(tmp_path: Path, scratch: Path) -> None:
    run_epochs(tmp_path, LAYOUTS["plain"], 5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    with recorded(tmp_path) as record, opened(tmp_path, LAYOUTS["plain"]) as manager:
        manager.resume(tmp_path / "run" / "best.pt")  # epoch 4
        manager.step(state_at(4), epoch=3, metrics={"loss": 0.9})
        record.mark(("saved", 4))

    def check(at: Path, state: State) -> None:
        for name in ("best.pt", "epoch_5.pt"):
            places = [at / "run" / name, *(at / "run").glob(f"archived/*/{name}")]
            assert any(place.exists() and place.read_bytes() == before[name] for place in places), name
        with opened(at, LAYOUTS["plain"]) as manager:
            found = manager.resume("auto")
        assert found is not None
        assert found.epochs_finished == 4 if state.told else found.epochs_finished in (4, 5)

    cut_everywhere(record, scratch, check, "going back")


def test_an_archive_is_proven_before_its_originals_go(tmp_path: Path, scratch: Path) -> None:
    ckptcore.save(tmp_path / "old" / "a.pth", state_at(1))
    os.link(tmp_path / "old" / "a.pth", tmp_path / "old" / "b.pth")
    ckptcore.save(tmp_path / "old" / "c.pth", state_at(2))
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "old").iterdir()}
    with recorded(tmp_path) as record:
        archive.archive(tmp_path / "old", tmp_path / "old.tar.gz")
        record.mark("archived")

    def check(at: Path, state: State) -> None:
        from killing import unpacked

        packed = at / "old.tar.gz"
        if packed.exists():
            found = unpacked(packed)
            assert {f"old/{name}": digest for name, digest in digests.items()} == found
            return
        assert not state.told
        for name, digest in digests.items():
            assert hashlib.sha256((at / "old" / name).read_bytes()).hexdigest() == digest

    cut_everywhere(record, scratch, check, "archive")


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_a_forgotten_fsync_would_be_found(
    forgotten: str, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(tmp_path) as record, monkeypatch.context() as patched:
        watched = os.fsync

        def fsync(fd: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}") != (forgotten == "folder"):
                watched(fd)

        patched.setattr(os, "fsync", fsync)
        run_epochs(tmp_path, light, 2, record)

    def check(at: Path, state: State) -> None:
        check_run(at, light, state.told)

    with pytest.raises(AssertionError):
        cut_everywhere(record, scratch, check, f"no fsync of the {forgotten}")
