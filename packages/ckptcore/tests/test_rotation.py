"""What rotation keeps and deletes, decided from what is on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptcore import durable, save
from ckptcore.catalogue import Catalogue
from ckptcore.errors import UsageError
from ckptcore.folder import write_pins
from ckptcore.layouts import Layout, plain
from ckptcore.rotation import best_name, best_values, drop_former_bests, plan_folder, rotate
from ckptcore.rules import Best, ByteBudget, EveryEpochs, KeepAll, LastK

LAYOUT = plain("loss", "min", last=2)
SCORED = Layout(
    name="scored",
    templates={"best": "best_{metric:.2f}.pt", "periodic": "epoch_{epochs_finished}.pt"},
    save=(EveryEpochs(1), Best("loss", "min")),
    keep=LastK(2),
    metric="loss",
    mode="min",
)


def put(path: Path, epochs: int, loss: float = 0.5, key: str | None = "run", size: int = 2) -> Path:
    metadata: dict[str, Any] = {"epochs_finished": epochs, "metrics": {"loss": loss}}
    if key is not None:
        metadata["run_key"] = key
    return save(path, {"model_state_dict": {"w": torch.ones(size)}}, metadata)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.p*"))


def test_the_last_ones_stay_and_every_decision_has_its_reason(tmp_path: Path) -> None:
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs)
    os.link(tmp_path / "epoch_1.pt", tmp_path / "best.pt")
    os.link(tmp_path / "epoch_4.pt", tmp_path / "latest.pt")
    found = plan_folder(tmp_path, LAYOUT, "run")
    assert found.doomed == ["epoch_1.pt", "epoch_2.pt"]
    reasons = {d.name: d.reason for d in found.decisions}
    assert (
        reasons["best.pt"] == "best"
        and reasons["latest.pt"] == "latest"
        and reasons["epoch_4.pt"] == "last 2"
    )
    assert rotate(tmp_path, LAYOUT, "run") == found.doomed
    assert names(tmp_path) == ["best.pt", "epoch_3.pt", "epoch_4.pt", "latest.pt"]


def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    plan_folder(tmp_path, LAYOUT, "run")
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_damaged_foreign_and_other_runs_files_are_named_and_left_alone(tmp_path: Path) -> None:
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs)
    os.truncate(put(tmp_path / "epoch_10.pt", 10), 2000)
    torch.save({"epoch": 1}, tmp_path / "epoch_11.pt")
    put(tmp_path / "epoch_12.pt", 12, key="other")
    put(tmp_path / "epoch_13.pt", 13, key=None)
    put(tmp_path / "mine.pt", 1)
    found = plan_folder(tmp_path, LAYOUT, "run")
    assert found.doomed == ["epoch_1.pt", "epoch_2.pt"]
    reasons = dict(found.untouched)
    assert reasons["epoch_10.pt"].startswith("damaged")
    assert reasons["epoch_11.pt"].startswith("not written by ckptcore")
    assert reasons["epoch_12.pt"] == "of another run (other)"
    assert reasons["epoch_13.pt"] == "of another run (saved by hand)"
    assert reasons["mine.pt"] == "no name of the layout plain"


def test_versions_and_pinned_files_stay(tmp_path: Path) -> None:
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs)
    put(tmp_path / "resnet50_v1.0.0_best.pt", 1)
    write_pins(tmp_path, {"epoch_1.pt": "for the paper"})
    found = plan_folder(tmp_path, LAYOUT, "run")
    assert found.doomed == ["epoch_2.pt"]
    assert "for the paper" in next(d.reason for d in found.decisions if d.name == "epoch_1.pt")


def test_of_several_scored_bests_only_the_best_stays(tmp_path: Path) -> None:
    for epochs, loss in ((1, 0.5), (2, 0.3), (3, 0.3)):
        put(tmp_path / f"best_{loss:.2f}.pt", epochs, loss)
        put(tmp_path / f"epoch_{epochs}.pt", epochs, loss)
    put(tmp_path / "best_0.40.pt", 4, 0.4)
    rotate(tmp_path, SCORED, "run", spare=[])
    assert names(tmp_path) == ["best_0.30.pt", "epoch_2.pt", "epoch_3.pt"]


def test_what_is_spared_stays_whatever_the_rules_say(tmp_path: Path) -> None:
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs)
    rotate(tmp_path, LAYOUT, "run", spare=["epoch_1.pt"])
    assert names(tmp_path) == ["epoch_1.pt", "epoch_3.pt", "epoch_4.pt"]


def test_a_nan_in_a_best_file_beats_nothing(tmp_path: Path) -> None:
    put(tmp_path / "best_nan.pt", 1, float("nan"))
    put(tmp_path / "best_-inf.pt", 2, float("-inf"))
    put(tmp_path / "best_0.70.pt", 3, 0.7)
    files = list(Catalogue.scan(tmp_path))
    assert best_name(files, SCORED) == "best_0.70.pt"
    assert best_values(files, SCORED) == {"loss": 0.7}


def test_names_of_one_file_count_its_bytes_once(tmp_path: Path) -> None:
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs, size=10_000)
    os.link(tmp_path / "epoch_4.pt", tmp_path / "latest.pt")
    size = (tmp_path / "epoch_1.pt").stat().st_size
    budget = ByteBudget(3 * size + 100, KeepAll())
    found = plan_folder(tmp_path, LAYOUT, "run", budget)
    assert found.doomed == ["epoch_1.pt"]
    assert {d.name: d.size > 0 for d in found.decisions if d.name in ("latest.pt", "epoch_4.pt")} == {
        "latest.pt": True,
        "epoch_4.pt": False,
    }


def test_broken_pins_stop_rotation_before_anything_is_deleted(tmp_path: Path) -> None:
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs)
    (tmp_path / ".ckptcore").mkdir()
    (tmp_path / ".ckptcore" / "pins.json").write_text("not json")
    with pytest.raises(UsageError, match="JSON"):
        rotate(tmp_path, LAYOUT, "run")
    assert len(names(tmp_path)) == 4


def test_without_a_key_the_newest_run_is_planned_for(tmp_path: Path) -> None:
    put(tmp_path / "epoch_9.pt", 9, key="old")
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs, key="new")
    assert plan_folder(tmp_path, LAYOUT, None).doomed == ["epoch_1.pt", "epoch_2.pt"]


def test_a_file_somebody_deleted_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epochs in range(1, 5):
        put(tmp_path / f"epoch_{epochs}.pt", epochs)
    real = durable.remove

    def remove(path: Path) -> None:
        path.unlink(missing_ok=True)
        real(path)

    monkeypatch.setattr(durable, "remove", remove)
    assert rotate(tmp_path, LAYOUT, "run") == ["epoch_1.pt", "epoch_2.pt"]


def test_what_a_pinned_symlink_stands_for_stays(tmp_path: Path) -> None:
    for epochs in range(1, 6):
        put(tmp_path / f"epoch_{epochs}.pt", epochs, loss=epochs / 10)
    (tmp_path / "best.pt").symlink_to("epoch_1.pt")
    (tmp_path / "paper.pt").symlink_to("epoch_2.pt")
    (tmp_path / "mine.pt").symlink_to("epoch_3.pt")
    write_pins(tmp_path, {"paper.pt": "figure 3"})
    found = plan_folder(tmp_path, LAYOUT, "run")
    assert found.doomed == ["epoch_3.pt"]
    reasons = {d.name: d.reason for d in found.decisions}
    assert reasons["epoch_1.pt"] == "best.pt is a link to it"


def test_pins_that_cannot_be_read_are_no_reason_not_to_open_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "best_0.30.pt", 1, 0.3)
    put(tmp_path / "best_0.50.pt", 2, 0.5)
    (tmp_path / ".ckptcore").mkdir()
    (tmp_path / ".ckptcore" / "pins.json").write_text("not json")
    assert drop_former_bests(tmp_path, SCORED) == []
    assert "pin the files again" in caplog.text
    assert len(names(tmp_path)) == 2
