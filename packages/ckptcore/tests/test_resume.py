"""Which checkpoint a run goes on from, and what becomes of those it cannot use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forgery import Parts

from ckptcore import CheckpointManager, load, pin, resume, save, verify
from ckptcore.catalogue import Catalogue
from ckptcore.errors import DiskFull, NewerFormat, UsageError
from ckptcore.history import write_history
from ckptcore.layouts import Layout, plain, saved_models
from ckptcore.rules import Best, EveryEpochs

LAYOUT = plain("loss", "min", last=9)


def state(value: float) -> dict[str, Any]:
    return {"model_state_dict": {"w": torch.full((64,), float(value))}}


def run(folder: Path, losses: list[float], layout: Layout = LAYOUT, **more: Any) -> None:
    with CheckpointManager(folder, layout, asynchronous=False, handle_signals=False, **more) as manager:
        found = manager.resume()
        for epoch, loss in enumerate(losses, 0 if found is None else found.epochs_finished or 0):
            manager.step(state(epoch + 1), epoch=epoch, metrics={"loss": loss})


def opened(folder: Path) -> CheckpointManager:
    return CheckpointManager(folder, LAYOUT, asynchronous=False, handle_signals=False)


def resumed(folder: Path, layout: Layout = LAYOUT, key: str | None = None) -> int | None:
    """How many epochs the checkpoint has that is resumed from."""
    found = resume.newest(folder, layout, key)
    return None if found is None else found.epochs_finished


def flip(path: Path) -> None:
    """Damage a byte of a tensor: the header stays whole."""
    data = path.read_bytes()
    at = data.index(torch.full((64,), float(load(path)["model_state_dict"]["w"][0])).numpy().tobytes())
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zeros(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))


damages = pytest.mark.parametrize("damage", [flip, cut, empty, zeros])


def test_nothing_there_means_a_fresh_start(tmp_path: Path) -> None:
    assert resumed(tmp_path) is None


def test_a_run_under_another_layouts_names_is_told_with_how_to_go_on_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, [0.5, 0.4], saved_models("net", "loss", "min"))
    with opened(tmp_path) as manager:
        assert manager.resume() is None
        assert "training starts afresh" in caplog.text and "net_latest.pth" in caplog.text
        name = caplog.text.partition("resume('")[2].partition("'")[0]
        found = manager.resume(name)
    assert found is not None and found.epochs_finished == 2


def test_a_run_of_another_key_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, [0.5], run_key="mine")
    assert resumed(tmp_path, key="mien") is None
    assert "no checkpoint of the run 'mien'" in caplog.text and "latest.pt" in caplog.text


def test_files_saved_by_hand_versions_and_failed_states_are_no_run_to_tell_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "by_hand.pt", state(1))
    save(tmp_path / "net_v1.0.0_best.pt", state(1), {"run_key": "a"})
    save(tmp_path / "broken.pt", state(1), {"run_key": "a", "reason": "exception"})
    assert resumed(tmp_path) is None
    assert caplog.text == ""


def test_a_wrong_place_for_the_tensors_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    run(tmp_path, [0.5])
    with opened(tmp_path) as manager, pytest.raises(UsageError, match="map_location"):
        manager.resume(map_location="bogus")


@damages
def test_a_damaged_latest_is_set_aside_under_all_its_names_and_the_one_before_is_used(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, [0.5, 0.4, 0.3])
    damage(tmp_path / "latest.pt")  # and so best.pt and epoch_3.pt, which are the same file
    assert resumed(tmp_path) == 2
    assert {p.name for p in tmp_path.glob("*.damaged")} == {
        "best.pt.damaged",
        "epoch_3.pt.damaged",
        "latest.pt.damaged",
    }
    assert "latest.pt.damaged" in caplog.text and "damaged" in caplog.text
    assert [p.name for p in sorted(tmp_path.glob("*.pt"))] == ["epoch_1.pt", "epoch_2.pt"]


@damages
def test_a_run_goes_on_after_several_damaged_ones_and_has_best_and_latest_again(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    run(tmp_path, [0.5, 0.4, 0.3, 0.2, 0.6])
    for name in ("epoch_5.pt", "epoch_4.pt", "epoch_3.pt"):
        damage(tmp_path / name)
    run(tmp_path, [0.45])
    assert load(tmp_path / "latest.pt").epochs_finished == 3
    assert load(tmp_path / "best.pt").epochs_finished == 2
    assert all(verify(path).ok for path in tmp_path.glob("*.pt"))
    run(tmp_path, [0.1])
    assert load(tmp_path / "best.pt").epochs_finished == 4


def test_everything_damaged_is_kept_aside_and_the_run_starts_afresh(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4])
    before = {path.name: path.stat().st_size for path in tmp_path.glob("*.pt")}
    for name in ("epoch_1.pt", "epoch_2.pt"):
        flip(tmp_path / name)
    assert resumed(tmp_path) is None
    assert {p.name.removesuffix(".damaged"): p.stat().st_size for p in tmp_path.glob("*.damaged")} == before


def test_a_second_damaged_file_of_a_name_does_not_replace_the_first(tmp_path: Path) -> None:
    (tmp_path / "latest.pt.damaged").write_bytes(b"first")
    (tmp_path / "latest.pt").write_bytes(b"second")
    assert resume.set_aside(tmp_path / "latest.pt").name == "latest.pt.damaged2"
    assert (tmp_path / "latest.pt.damaged").read_bytes() == b"first"


def test_a_file_that_cannot_be_read_is_passed_over_but_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, [0.5, 0.4])
    real = resume.load

    def load_or_fail(path: Path, *rest: Any, **named: Any) -> Any:
        if path.name in bad:
            raise OSError(5, "Input/output error")
        return real(path, *rest, **named)

    monkeypatch.setattr(resume, "load", load_or_fail)
    bad = {"latest.pt", "best.pt", "epoch_2.pt"}
    assert resumed(tmp_path) == 1
    bad |= {"epoch_1.pt"}
    with pytest.raises(OSError, match="Input/output"):  # not a fresh start
        resumed(tmp_path)
    assert not list(tmp_path.glob("*.damaged"))


@pytest.mark.parametrize("name", ["latest.pt", "epoch_7.pt"])
def test_a_foreign_file_under_a_name_of_the_layout_is_resumed_from(name: str, tmp_path: Path) -> None:
    torch.save({"epoch": 6, "model_state_dict": {"w": torch.ones(2)}}, tmp_path / name)
    with CheckpointManager(tmp_path, LAYOUT, asynchronous=False, handle_signals=False) as manager:
        found = manager.resume()
        assert found is not None and found["epoch"] == 6
        manager.step(state(8), epoch=7)
    (moved,) = (tmp_path / "archived").glob(f"*/{name}")
    assert torch.load(moved)["epoch"] == 6
    assert load(tmp_path / "latest.pt").header.metadata["parent"]["file"] == name


def test_our_own_files_come_before_foreign_ones(tmp_path: Path) -> None:
    run(tmp_path, [0.5])
    torch.save({"epoch": 99}, tmp_path / "epoch_100.pt")
    assert resumed(tmp_path) == 1


def test_a_foreign_file_that_asks_for_code_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "latest.pt")
    assert resumed(tmp_path) is None
    assert "cannot be resumed from" in caplog.text
    assert (tmp_path / "latest.pt").exists()


def test_another_runs_files_are_not_resumed_from_when_the_key_is_given(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4], run_key="theirs")
    assert resumed(tmp_path, key="mine") is None
    assert resumed(tmp_path, key="theirs") == resumed(tmp_path) == 2


def test_weights_alone_are_resumed_from_only_when_there_is_nothing_else(tmp_path: Path) -> None:
    layout = Layout(
        name="light",
        templates={"latest": "latest.pt", "best": "best.pt", "periodic": "epoch_{epochs_finished}.pt"},
        save=(EveryEpochs(1, role="latest"), EveryEpochs(1), Best("loss", "min")),
        metric="loss",
        mode="min",
        weights_only=frozenset({"best"}),
    )
    run(tmp_path, [0.5, 0.4], layout)
    flip(tmp_path / "latest.pt")
    assert resumed(tmp_path, layout) == 1
    (tmp_path / "epoch_1.pt").unlink()
    found = resume.newest(tmp_path, layout, None)
    assert found is not None and found.path.name == "best.pt"


def test_the_last_save_is_the_newest_whatever_epoch_it_says(tmp_path: Path) -> None:
    for number, epochs in enumerate((5, 6, 3)):
        name = "latest.pt" if epochs == 3 else f"epoch_{epochs}.pt"
        save(tmp_path / name, state(epochs), {"run_key": "a", "epochs_finished": epochs, "sequence": number})
    assert resumed(tmp_path) == 3


def test_files_without_a_count_of_saves_are_ordered_by_epoch_and_step(tmp_path: Path) -> None:
    for epochs, step in ((2, 20), (1, 10), (2, 15)):
        found = state(step) | {"global_step": step}
        save(tmp_path / f"epoch_{step}.pt", found, {"run_key": "a", "epochs_finished": epochs})
    (newest, *_) = resume.candidates(Catalogue.scan(tmp_path), LAYOUT, None)
    assert newest.name == "epoch_20.pt"


@pytest.mark.parametrize(
    "names", [["../evil.pt"], ["/tmp/evil.pt"], [3], "latest.pt", ["model_v1.0.0_best.pt"], ["no.txt"]]
)
def test_names_that_a_header_has_no_right_to_ask_for_are_not_given(names: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(folder / "latest.pt", state(1), {"run_key": "a", "sequence": 1, "names": names})
    assert resume.finish(load(folder / "latest.pt"), LAYOUT) == []
    assert [p.name for p in tmp_path.rglob("*.pt")] == ["latest.pt"]


def test_a_missing_name_does_not_take_the_place_of_a_later_save_or_a_stranger(tmp_path: Path) -> None:
    wanted = ["latest.pt", "best.pt", "epoch_4.pt", "epoch_5.pt"]
    for name, key, sequence in (
        ("latest.pt", "a", 5),
        ("best.pt", "a", 6),
        ("epoch_4.pt", "b", 1),
        ("epoch_5.pt", "a", 2),
    ):
        save(tmp_path / name, state(sequence), {"run_key": key, "sequence": sequence, "names": wanted})
    assert resume.finish(load(tmp_path / "latest.pt"), LAYOUT) == ["epoch_5.pt"]
    assert load(tmp_path / "best.pt").header.metadata["sequence"] == 6
    assert load(tmp_path / "epoch_4.pt").header.run_key == "b"


def test_links_that_are_moved_away_still_lead_where_they_did(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(tmp_path / "elsewhere" / "best.pt", state(7))
    save(folder / "epoch_1.pt", state(1))
    aims = {"best.pt": "../elsewhere/best.pt", "latest.pt": "epoch_1.pt", "final.pt": str(tmp_path / "x.pt")}
    for name, aim in aims.items():
        (folder / name).symlink_to(aim)
    moved = resume.make_way(folder, "mine", ["epoch_1.pt", *aims])
    assert moved is not None and [path.name for path in folder.glob("*.pt")] == []
    assert load(moved / "best.pt")["model_state_dict"]["w"][0] == 7
    assert os.readlink(moved / "best.pt") == "../../../elsewhere/best.pt"
    assert os.readlink(moved / "latest.pt") == "epoch_1.pt"
    assert os.readlink(moved / "final.pt") == aims["final.pt"]


def test_a_link_to_a_file_that_stays_leads_there_from_its_new_place(tmp_path: Path) -> None:
    save(tmp_path / "mine.pt", state(7))
    (tmp_path / "real").mkdir()
    (tmp_path / "archived").symlink_to("real")
    (tmp_path / "latest.pt").symlink_to("mine.pt")
    moved = resume.make_way(tmp_path, "mine", ["latest.pt"])
    assert moved is not None and load(moved / "latest.pt")["model_state_dict"]["w"][0] == 7


def test_two_runs_started_in_the_same_second_are_archived_apart(tmp_path: Path) -> None:
    for _ in range(3):
        with CheckpointManager(tmp_path, LAYOUT, asynchronous=False, handle_signals=False) as manager:
            manager.step(state(1), epoch=0)
    moved = sorted((tmp_path / "archived").iterdir())
    assert len(moved) == 2 and all((folder / "latest.pt").exists() for folder in moved)


def test_a_run_continued_by_a_newer_ckptcore_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    run(tmp_path, [3, 2])
    for path in tmp_path.glob("*.pt"):
        parts = Parts.of(path)
        parts.summary["format"] = 2
        path.write_bytes(parts.build(version=2))
    before = sorted(path.name for path in tmp_path.iterdir())
    with opened(tmp_path) as manager, pytest.raises(NewerFormat, match="Update ckptcore"):
        manager.resume()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@damages
def test_a_folder_whose_only_save_is_damaged_starts_afresh(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run(tmp_path, [3])
    damage(tmp_path / "latest.pt")
    with opened(tmp_path) as manager:
        assert manager.resume() is None
    assert {path.name for path in tmp_path.glob("*.damaged")} == {
        "best.pt.damaged",
        "epoch_1.pt.damaged",
        "latest.pt.damaged",
    }


def test_an_in_place_overwrite_of_the_file_resumed_from_changes_no_tensor(tmp_path: Path) -> None:
    run(tmp_path, [3, 2])
    with opened(tmp_path) as manager:
        found = manager.resume()
        assert found is not None
        os.truncate(tmp_path / "latest.pt", 0)
        assert torch.equal(found["model_state_dict"]["w"], torch.full((64,), 2.0))


def test_a_file_is_found_by_its_name_in_the_folder(tmp_path: Path) -> None:
    run(tmp_path, [3, 2, 1])
    with opened(tmp_path) as manager:
        found = manager.resume("epoch_1.pt")
    assert found is not None and found.epochs_finished == 1


def test_a_promoted_version_under_a_name_the_layout_needs_stays_and_is_named(tmp_path: Path) -> None:
    layout = replace(
        plain("loss", "min"), templates={**plain("loss", "min").templates, "best": "net_v1.0.0_best.pt"}
    )
    version = save(tmp_path / "net_v1.0.0_best.pt", state(9), {"run_key": "mine"})
    version.chmod(0o444)
    before = version.read_bytes()
    with pytest.raises(UsageError, match="promoted version"):
        run(tmp_path, [1], layout, run_key="mine")
    assert version.read_bytes() == before


def test_a_history_that_is_nobodys_is_moved_away_before_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "training_history.json").write_text("precious")
    layout = saved_models("net", "loss", "min")
    run(tmp_path, [0.5], layout)
    assert [p.read_text() for p in tmp_path.glob("archived/*/*.json")] == ["precious"]
    run(tmp_path, [0.4], layout)
    assert len(list(tmp_path.glob("archived/*"))) == 1


def test_pinned_files_of_another_run_stay_where_they_are(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.4])
    pin(tmp_path / "epoch_2.pt", "paper")
    with opened(tmp_path) as manager:
        manager.step(state(1), epoch=0, metrics={"loss": 3.0})
    assert load(tmp_path / "epoch_2.pt").epochs_finished == 2
    assert {p.name for p in tmp_path.glob("archived/*/*")} == {"epoch_1.pt", "best.pt", "latest.pt"}


@pytest.mark.parametrize("layout", [plain("acc", "max"), plain("loss", "max")], ids=["renamed", "turned"])
def test_the_best_by_another_metric_or_the_other_way_round_is_kept(
    layout: Layout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, [0.5, 0.1, 0.3])
    with CheckpointManager(tmp_path, layout, asynchronous=False, handle_signals=False) as manager:
        manager.resume()
        manager.step(state(9), epoch=3, metrics={"loss": 9.0, "acc": 0.1})
    assert load(tmp_path / "best.pt").epochs_finished == 4
    (kept,) = tmp_path.glob("archived/*/best.pt")
    assert load(kept).epochs_finished == 2
    assert "the best was chosen by loss (min)" in caplog.text
    run(tmp_path, [], layout)
    assert len(list(tmp_path.glob("archived/*"))) == 1


@pytest.mark.parametrize("left", ["an epoch behind", "cut off", "gone"])
def test_a_history_that_a_kill_left_behind_its_checkpoint_is_completed(left: str, tmp_path: Path) -> None:
    layout = saved_models("net", "val_loss", mode="min")
    with CheckpointManager(tmp_path, layout, asynchronous=False, handle_signals=False) as manager:
        for epoch, loss in enumerate([3.0, 2.0]):
            manager.step(state(epoch), epoch=epoch, metrics={"val_loss": loss})
    file = tmp_path / "training_history.json"
    whole = file.read_bytes()
    if left == "an epoch behind":
        write_history(file, {"val_loss": [3.0]})
    elif left == "cut off":
        file.write_bytes(whole[:9])
    else:
        file.unlink()
    with CheckpointManager(tmp_path, layout, asynchronous=False, handle_signals=False) as manager:
        assert manager.resume() is not None
    assert file.read_bytes() == whole
    before = file.stat().st_mtime_ns
    with CheckpointManager(tmp_path, layout, asynchronous=False, handle_signals=False) as manager:
        manager.resume()
    assert file.stat().st_mtime_ns == before, "nothing is written where nothing lacks"


def test_a_history_that_did_not_fit_at_the_last_save_is_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptcore import manager as place

    layout = saved_models("net", "val_loss", mode="min")
    with CheckpointManager(tmp_path, layout, asynchronous=False, handle_signals=False) as manager:
        manager.step(state(0), epoch=0, metrics={"val_loss": 3.0})
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise DiskFull("training_history.json", 9, 0)

            patch.setattr(place, "write_history", full)
            manager.step(state(1), epoch=1, metrics={"val_loss": 2.0})
        assert json.loads((tmp_path / "training_history.json").read_text())["val_loss"] == [3.0]
    assert json.loads((tmp_path / "training_history.json").read_text())["val_loss"] == [3.0, 2.0]
