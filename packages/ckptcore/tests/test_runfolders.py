"""Run folders without Lightning: the folder, its JSON files, the tracker. Test names give the requirement."""

import dataclasses
import enum
import json
import logging
import socket
import types
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import numpy
import pytest
import torch

from ckptcore import layouts, runfolders
from ckptcore.errors import FolderNotWritable, UsageError
from ckptcore.manager import CheckpointManager as Writer
from ckptcore.runfolders import (
    BinaryClassificationCheckpointManager,
    CheckpointManager,
    MulticlassFlareCheckpointManager,
)

NUMBER = (int, float)
NONE = type(None)
SUMMARY = {
    "start_time": datetime,
    "end_time": datetime,
    "model_name": str,
    "loss_function": str,
    "root_name": str,
    "best_epoch": (int, NONE),
    "best_val_f1": (float, NONE),
    "num_epochs_trained": (int, NONE),
    "early_stopping_triggered": bool,
    "test_results": {str: NUMBER},
}
REPORT = {
    "test_metrics": {str: NUMBER},
    "model_name": str,
    "loss_function": str,
    "class_names": ([str], NONE),
}
MINIMAL = {
    "timestamp": datetime,
    "best_epoch": (int, NONE),
    "best_val_f1": (float, NONE),
    "num_epochs_trained": (int, NONE),
    "early_stopping_triggered": bool,
}
TEST_RESULTS = {"test_loss": 0.412, "test_f1": 0.698, "test_accuracy": 0.77, "test_precision": 0.64}


def fits(value, schema):
    """Whether a JSON value has the form of a schema: types, [items], {keys: values}, datetime with offset."""
    if schema is datetime:
        return isinstance(value, str) and datetime.fromisoformat(value).utcoffset() is not None
    if isinstance(schema, list):
        return isinstance(value, list) and all(fits(item, schema[0]) for item in value)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return False
        if str in schema:
            return all(fits(item, schema[str]) for item in value.values())
        return set(value) == set(schema) and all(fits(value[key], schema[key]) for key in schema)
    if isinstance(schema, tuple):
        return any(fits(value, one) for one in schema)
    return type(value) is schema


def read(path):
    """With nothing but json, and strictly: NaN is no JSON."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.fixture
def run(tmp_path):
    return BinaryClassificationCheckpointManager(
        data_folder=tmp_path, model_name="convnext", loss_function="soft_dice"
    )


@pytest.fixture
def frozen(monkeypatch):
    """A clock that stands still."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 7, 3, 9, 8, 7, 650_000, tzinfo=UTC).astimezone(tz)

    monkeypatch.setattr(runfolders, "datetime", Clock)


def test_row_3_1_the_folder_is_named_by_start_model_and_loss_below_nested_roots(tmp_path, frozen):
    run = CheckpointManager("flares/binary_classification", tmp_path, "convnext", "soft_dice")
    below = "checkpoints/flares/binary_classification/2026-07-03_09-08-07_convnext_soft_dice"
    assert run.directory == tmp_path / below and run.directory.is_dir()


def test_row_3_1_of_two_runs_in_the_same_second_the_second_ends_in_2(tmp_path, frozen):
    folders = [CheckpointManager("a", tmp_path, "m", "l").directory for _ in range(3)]
    assert [folder.name.removeprefix("2026-07-03_09-08-07") for folder in folders] == [
        "_m_l",
        "_m_l_2",
        "_m_l_3",
    ]
    assert len({folder.resolve() for folder in folders}) == 3


@pytest.mark.parametrize(
    "root", ["", "..", "a/../../b", "/etc", "a//b", "a/.", ".hidden", "a\\b", "nul\0", None]
)
def test_row_3_1_a_root_that_leads_out_of_the_data_folder_is_refused(tmp_path, root):
    with pytest.raises(UsageError, match="root_name"):
        CheckpointManager(root, tmp_path / "data", "m", "l")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("org/model", "org_model"),
        ("../../x", "_.._x"),
        ("a b\n", "a_b_"),
        ("efficientnet_b0", "efficientnet_b0"),
    ],
)
def test_row_3_1_names_of_models_make_no_folders_of_their_own(tmp_path, frozen, name, part):
    run = CheckpointManager("a", tmp_path, name, "focal")
    assert run.directory == tmp_path / f"checkpoints/a/2026-07-03_09-08-07_{part}_focal"
    assert read(run.save_training_metadata())["model_name"] == name


@pytest.mark.parametrize("name", ["", "...", "x" * 101])
def test_row_3_1_names_that_leave_nothing_or_too_much_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="Give a short one"):
        CheckpointManager("a", tmp_path, name, "l")


def test_row_3_1_a_data_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(FolderNotWritable, match="Give a folder"):
        CheckpointManager("a", tmp_path / "data", "m", "l")


def test_row_3_2_the_four_files_have_the_pages_fields_and_types(run):
    metadata = {
        "best_epoch": 17,
        "best_val_f1": 0.713,
        "num_epochs_trained": 23,
        "early_stopping_triggered": True,
    }
    summary = read(run.save_training_metadata({**metadata, "test_results": TEST_RESULTS}))
    report = read(run.save_classification_report({"test_metrics": TEST_RESULTS}))
    minimal = read(run.save_minimal_logging(17, 0.713, "val_f1", 23, True))
    assert fits(summary, SUMMARY) and fits(report, REPORT) and fits(minimal, MINIMAL)
    assert {key: summary[key] for key in metadata} == {key: minimal[key] for key in metadata} == metadata
    assert summary["test_results"] == report["test_metrics"] == TEST_RESULTS
    assert summary["root_name"] == "flares/binary_classification" and report["class_names"] is None
    assert summary["start_time"] < summary["end_time"]
    assert sorted(path.name for path in run.directory.iterdir()) == [
        *("classification_report.json", "minimal_logging.json", "training_summary.json"),
    ]


def test_row_3_2_what_is_not_known_is_null_and_every_field_is_there(run):
    assert fits(read(run.save_training_metadata()), SUMMARY)
    assert fits(read(run.save_minimal_logging()), MINIMAL)
    assert fits(read(run.save_classification_report({})), REPORT)


def test_row_3_2_tensors_numpy_and_nan_become_plain_json(run):
    results = {"test_loss": torch.tensor(0.5), "test_f1": numpy.float32(0.25), "test_auc": float("nan")}
    told = read(run.save_training_metadata({"test_results": results, "best_epoch": numpy.int64(3)}))
    assert told["test_results"] == {"test_loss": 0.5, "test_f1": 0.25, "test_auc": None}
    assert told["best_epoch"] == 3 and type(told["best_epoch"]) is int


def test_row_3_2_the_best_is_called_by_its_metric(run):
    told = read(run.save_minimal_logging(best_metric_name="val_auc", best_metric_value=0.9))
    assert told["best_val_auc"] == 0.9 and "best_val_f1" not in told


def test_row_3_2_a_loop_that_is_not_lightnings_saves_its_best_here_too(run):
    with Writer(run.directory, layouts.run_folder("val_f1", "max", latest=False)) as writer:
        for epoch, score in enumerate((0.2, 0.5, 0.713, 0.6)):
            writer.step({"model_state_dict": {"w": torch.ones(2)}}, epoch=epoch, metrics={"val_f1": score})
    assert [path.name for path in run.directory.glob("*.ckpt")] == ["best-epoch02-val_f1-0.713.ckpt"]


def test_row_3_3_a_manager_is_specialised_by_one_line(tmp_path):
    class HaleManager(CheckpointManager, root_name="cutouts/hale"): ...

    run = HaleManager(data_folder=tmp_path, model_name="vit", loss_function="focal")
    assert run.directory.parent == tmp_path / "checkpoints" / "cutouts" / "hale"
    assert MulticlassFlareCheckpointManager(data_folder=tmp_path).root_name == "flares/multiclass"


def test_row_3_3_a_subclass_written_as_on_the_page_works(tmp_path):
    class ActiveRegions(CheckpointManager):
        def __init__(self, data_folder=tmp_path, model_name="unknown", loss_function="unknown"):
            name = "active_regions/classification"
            super().__init__(
                root_name=name, data_folder=data_folder, model_name=model_name, loss_function=loss_function
            )

    assert ActiveRegions(model_name="m").directory.parent.name == "classification"


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Augmentation:
    flips: tuple[str, ...] = ("x", "y")
    noise: float = 0.1


EXPECTED = {
    "LR": 0.001,
    "DATA": "/data",
    "AUGMENTATION": {"flips": ["x", "y"], "noise": 0.1},
    "COLOUR": "red",
}


def a_module():
    module = types.ModuleType("config")
    lines = ("from __future__ import annotations", "import os", "from typing import Any", "Names = list[str]")
    exec("\n".join((*lines, "def f(): ...")), vars(module))
    given = {"LR": 1e-3, "DATA": Path("/data"), "AUGMENTATION": Augmentation(), "COLOUR": Colour.RED}
    vars(module).update(
        given, _private=1, log=logging.getLogger("x"), Colour=Colour, thing=object(), pick=max
    )
    return module


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(a_module, id="module"),
        pytest.param(lambda: vars(a_module()), id="variables of a module"),
        pytest.param(lambda: type("Config", (), {**EXPECTED, "method": lambda self: 0}), id="class"),
        pytest.param(lambda: dict(EXPECTED), id="mapping"),
    ],
)
def test_row_3_4_save_config_takes_settings_and_leaves_out_what_is_none(run, source):
    assert read(run.save_config(source())) == EXPECTED


def test_row_3_4_save_config_takes_a_dataclass(run):
    @dataclasses.dataclass
    class Config:
        lr: float = 1e-3
        data: Path = Path("/data")
        augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    assert read(run.save_config(Config())) == {
        "lr": 0.001,
        "data": "/data",
        "augmentation": {"flips": ["x", "y"], "noise": 0.1},
    }


def test_row_3_4_values_that_json_does_not_know(run):
    told = read(
        run.save_config(
            {
                "device": torch.device("cpu"),
                "dtype": torch.float16,
                "weights": torch.tensor([1.0, 2.0]),
                "table": numpy.arange(4).reshape(2, 2),
                "large": torch.zeros(100, 100),
                "classes": {"b", "a"},
                "steps": range(3),
                "limit": float("inf"),
                "started": datetime(2025, 1, 2, tzinfo=UTC),
                "by_number": {1: "one"},
            }
        )
    )
    assert told == {
        "device": "cpu",
        "dtype": "torch.float16",
        "weights": [1.0, 2.0],
        "table": [[0, 1], [2, 3]],
        "large": "Tensor of shape (100, 100), torch.float32",
        "classes": ["a", "b"],
        "steps": [0, 1, 2],
        "limit": None,
        "started": "2025-01-02T00:00:00+00:00",
        "by_number": {"1": "one"},
    }


def test_row_3_4_keys_of_services_are_not_written_into_a_file_that_is_passed_around(run, caplog):
    told = read(
        run.save_config({"COMET_API_KEY": "abc", "db_password": "x", "PAD_TOKEN": "<pad>", "max_tokens": 8})
    )
    assert told == {"PAD_TOKEN": "<pad>", "max_tokens": 8}
    assert "COMET_API_KEY" in caplog.text and "abc" not in caplog.text


def test_row_3_4_what_is_no_configuration_is_refused(run):
    looped = {}
    looped["again"] = looped
    for wrong in (3, [1, 2], looped):
        with pytest.raises(UsageError, match=r"expected a module|holds itself"):
            run.save_config(wrong)


def test_row_3_5_per_class_metrics_either_way_round(run):
    names = ["quiet", "C", "M"]
    wanted = {"quiet": {"f1": 0.1}, "C": {"f1": 0.2}, "M": {"f1": 0.3}}
    by_metric = read(run.save_classification_report({}, names, {"f1": numpy.array([0.1, 0.2, 0.3])}))
    by_class = read(run.save_classification_report({"class_names": names, "per_class_metrics": wanted}))
    assert by_metric["per_class_metrics"] == by_class["per_class_metrics"] == wanted
    assert by_metric["class_names"] == by_class["class_names"] == names
    assert fits(by_metric, REPORT | {"per_class_metrics": {str: {str: NUMBER}}})


def test_row_3_5_too_few_values_for_the_classes_are_refused(run):
    with pytest.raises(UsageError, match="expected 3 values of f1"):
        run.save_classification_report({}, ["a", "b", "c"], {"f1": [0.1, 0.2]})
    with pytest.raises(UsageError, match="names of the classes"):
        run.save_classification_report({}, per_class_metrics={"f1": [0.1, 0.2]})


def test_row_3_6_a_tracker_is_told_the_same(tmp_path):
    told = {}
    run = CheckpointManager("a", tmp_path, "m", "l", tracker=told.__setitem__)
    path = run.save_minimal_logging(3, 0.5, "val_f1", 4)
    assert told == {"minimal_logging.json": read(path)}


def test_row_3_6_a_tracker_that_cannot_be_reached_stops_nothing(tmp_path, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"  # nobody listens there

        class Remote:
            def log(self, name, content):
                urllib.request.urlopen(url, json.dumps(content).encode(), timeout=5)

        run = CheckpointManager("a", tmp_path, "m", "l", tracker=Remote())
        run.save_config({"lr": 0.1})
        run.save_training_metadata({"test_results": TEST_RESULTS})
        run.save_classification_report({"test_metrics": TEST_RESULTS})
        run.save_minimal_logging(3, 0.5, "val_f1", 4)
    assert caplog.text.count("Connection refused") == 4
    assert fits(read(run.directory / "training_summary.json"), SUMMARY)
    assert len(list(run.directory.glob("*.json"))) == 4


def test_row_3_6_what_is_no_tracker_is_refused(tmp_path):
    with pytest.raises(UsageError, match="tracker"):
        CheckpointManager("a", tmp_path, "m", "l", tracker="comet")


def test_only_the_first_process_of_a_distributed_run_makes_and_fills_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    run = CheckpointManager("a", tmp_path, "m", "l")
    run.save_config({"lr": 0.1})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert CheckpointManager("a", tmp_path, "m", "l").directory.is_dir()


def test_a_best_epoch_that_contradicts_the_file_is_noticed(run, caplog):
    run.callback = types.SimpleNamespace(
        best_epoch=2, best_model_score=0.8, monitor="val_f1", epochs_trained=5, early_stopping_triggered=True
    )
    told = read(run.save_minimal_logging(best_epoch=4))
    assert (
        told["best_epoch"] == 4
        and told["num_epochs_trained"] == 5
        and told["early_stopping_triggered"] is True
    )
    assert "best_epoch 4 was given, and the best checkpoint is of epoch 2" in caplog.text
