"""`radfuse export` on a pipeline of two tiny modalities, after the stages before it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from killed_in_publish import KILLED_IN_PUBLISH

import ckptcore
from ckptcore import durable
from ckptcore.lease import Lease
from radfuse.engine import predictions
from radfuse.engine.cli import run
from radfuse.engine.export import onnx
from radfuse.engine.export.cards import UntrustedExport
from radfuse.engine.export.torchscript import load_torchscript
from radfuse.engine.prepared import Prepared
from radfuse.serving import Card, CardError, FeaturePredictor, Predictor
from radfuse.serving.preprocess import to_input

TOY = Path(__file__).parent / "toy"
FILM = ["film_onnx.json", "film_onnx.onnx", "film_torchscript.json", "film_torchscript.pt"]
FUSION = ["fusion_onnx.json", "fusion_onnx.onnx", "fusion_traced.json", "fusion_traced.pt"]
SCAN = ["scan_onnx.json", "scan_onnx.onnx", "scan_torchscript.json", "scan_torchscript.pt"]

Export = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def tiny_modalities() -> Iterator[None]:
    """The toy package on the path, for this module alone."""
    from radfuse.engine import modality

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOY))
        modality.modalities.cache_clear()
        yield
    modality.modalities.cache_clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    from trained_pipeline import TrainedPipeline

    pipeline = TrainedPipeline(tmp_path_factory.mktemp("trained") / "pipeline")
    pipeline.add_film()
    pipeline.add_scan()
    (pipeline.places.root / "fusion.txt").write_text("ready")
    return pipeline


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory: pytest.TempPathFactory):
    """The pipeline after ``radfuse export``."""
    pipeline = copied(trained, tmp_path_factory.mktemp("exported"))
    assert run(["export", "--params", str(pipeline.file)]) == 0
    return pipeline


@pytest.fixture
def pipeline(trained, tmp_path: Path):
    """A pipeline of one's own, before the export."""
    return copied(trained, tmp_path)


@pytest.fixture
def export(pipeline, capsys: pytest.CaptureFixture[str]) -> Export:
    """Runs ``radfuse export`` in this process: exit code, standard output, standard error."""

    def called(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["export", *arguments, "--params", str(pipeline.file)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return called


def copied(pipeline, folder: Path):
    from trained_pipeline import Places, TrainedPipeline

    shutil.copytree(pipeline.places.root, folder / "pipeline")
    copy = object.__new__(TrainedPipeline)
    copy.places, copy.file = Places(folder / "pipeline"), folder / "pipeline" / "params.yaml"
    return copy


def files(pipeline) -> list[str]:
    folder = pipeline.places.exports
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def calibrated(pipeline, names: list[str]) -> np.ndarray:
    frame, stamp = predictions.read(pipeline.places.predictions("film"))
    columns = [f"calibrated:{label}" for label in stamp.labels]
    return frame.set_index("sample_id").loc[names, columns].to_numpy()


def test_row_4_9_everything_trained_is_exported_in_both_formats(exported) -> None:
    assert files(exported) == sorted([*FILM, *SCAN, *FUSION])


def test_row_4_9_exports_answer_what_the_prediction_table_says(exported) -> None:
    prepared = Prepared(exported.places, "film")
    names = prepared.samples("test") + prepared.samples("val")
    batch = np.stack([to_input(prepared.spec, prepared.array(name)) for name in names])
    session = onnxruntime.InferenceSession(
        exported.places.exports / "film_onnx.onnx", providers=["CPUExecutionProvider"]
    )
    traced = load_torchscript(exported.places.exports / "film_torchscript.pt")
    expected = calibrated(exported, names)
    np.testing.assert_allclose(session.run(None, {"input": batch})[0], expected, atol=1e-5)
    np.testing.assert_allclose(traced(torch.from_numpy(batch)).numpy(), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0


def test_card_of_a_classification_says_where_it_comes_from(exported) -> None:
    card = Card.read(exported.places.exports / "film_onnx.json")
    stamp = predictions.read_stamp(exported.places.predictions("film"))
    assert (card.modality, card.name, card.version) == ("film", "filmnet", "")
    assert (card.model_digest, card.split_digest) == (stamp.model_digest, stamp.split_digest)
    assert card.labels == stamp.labels == ("Mass", "Nodule")
    told = json.loads(exported.places.calibration("film").read_text())["labels"]
    assert card.thresholds == {label: one["threshold"] for label, one in told.items()}
    assert {label: one["temperature"] for label, one in card.calibration.items()} == {
        label: one["temperature"] for label, one in told.items()
    }
    assert card.parity["samples"] == 3


def test_card_of_a_segmentation_has_classes_regions_and_window(exported) -> None:
    card = Card.read(exported.places.exports / "scan_onnx.json")
    assert card.classes == ("background", "core", "rim") and card.regions == {"lesion": (1, 2)}
    assert card.inputs == ("t1", "t2") and card.labels == () and card.calibration == {}
    assert card.sliding_window == {"size": [32, 32, 32], "overlap": 0.25}


def test_exports_are_taken_by_the_predictor(exported) -> None:
    for name in ("film", "scan"):
        assert Predictor(exported.places.exports / f"{name}_onnx.onnx").card.modality == name
    fusion = FeaturePredictor(exported.places.exports / "fusion_onnx.onnx")
    assert 0 < fusion.predict({"film:Mass": 0.3}).probabilities["pneumonia"] < 1


def test_model_of_another_package_in_training_mode_is_refused(
    export: Export, pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_modalities

    monkeypatch.setattr(tiny_modalities.Fusion, "eval", tiny_modalities.Fusion.train)
    code, _, err = export("fusion")
    assert code == 1 and "layers in training mode" in err and files(pipeline) == []


def test_no_output_has_a_path_of_this_machine(exported) -> None:
    traces = [os.fsencode(str(path)) for path in (exported.places.root, Path.home(), Path(__file__).parent)]
    for path in exported.places.exports.iterdir():
        if not path.name.endswith((".pt", ".pth")):
            assert [trace for trace in traces if trace in path.read_bytes()] == [], path.name


def test_torchscript_holds_no_path_of_this_machine_and_no_sample(exported) -> None:
    import zipfile

    traces = [os.fsencode(str(path)) for path in (exported.places.root, Path.home(), Path(__file__).parent)]
    with zipfile.ZipFile(exported.places.exports / "film_torchscript.pt") as archive:
        assert [name for name in archive.namelist() if "traced_inputs" in name] == []
        for name in archive.namelist():
            assert [trace for trace in traces if trace in archive.read(name)] == [], name


def test_second_export_has_the_same_bytes_also_of_a_model_alone(exported, export: Export, pipeline) -> None:
    assert export("scan")[0] == 0
    for name in ("scan_onnx.onnx", "scan_torchscript.pt"):
        assert (pipeline.places.exports / name).read_bytes() == (exported.places.exports / name).read_bytes()


def test_one_modality_is_exported_when_named(export: Export, pipeline) -> None:
    code, out, err = export("film", "--set", "export.formats=[torchscript]")
    assert (code, err) == (0, "")
    assert files(pipeline) == FILM[2:]
    assert "film_torchscript.pt" in out and "tolerated: 1e-04" in out


def test_unknown_name_is_wrong_usage_and_names_the_nearest(export: Export) -> None:
    code, _, err = export("flim")
    assert code == 2 and "did you mean 'film'?" in err


def make_not_applicable(pipeline) -> None:
    (pipeline.places.root / "fusion.txt").write_text("none")
    folder = pipeline.places.saved_models("fusion")
    folder.mkdir(exist_ok=True)
    told = {"status": "not_applicable", "why": "No patient has two modalities."}
    (folder / "weighted_average.json").write_text(json.dumps(told))


def test_model_that_is_not_applicable_leaves_empty_files_whose_cards_say_why(
    export: Export, pipeline
) -> None:
    make_not_applicable(pipeline)
    code, _, err = export("fusion")
    assert code == 0 and files(pipeline) == FUSION
    assert "fusion: not exported, as it is not applicable here. No patient has two modalities." in err
    folder = pipeline.places.exports
    for name in FUSION:
        if name.endswith(".json"):
            told = json.loads((folder / name).read_text())
            assert (told["status"], told["why"]) == ("not_applicable", "No patient has two modalities.")
        else:
            assert (folder / name).stat().st_size == 0
    with pytest.raises(CardError, match="not applicable here: No patient has two modalities"):
        FeaturePredictor(folder / "fusion_onnx.onnx")
    with pytest.raises(UntrustedExport, match="not applicable here: No patient has two modalities"):
        load_torchscript(folder / "fusion_traced.pt")
    assert run(["predict", "--model", str(folder / "fusion_onnx.onnx"), "any.png"]) == 1


def test_real_model_and_the_lack_of_one_replace_each_other(export: Export, pipeline) -> None:
    folder = pipeline.places.exports
    assert export("fusion")[0] == 0
    before = (folder / "fusion_onnx.onnx").read_bytes()
    make_not_applicable(pipeline)
    assert export("fusion")[0] == 0
    assert {path.stat().st_size for path in folder.iterdir() if path.suffix != ".json"} == {0}
    (pipeline.places.root / "fusion.txt").write_text("ready")
    assert export("fusion")[0] == 0
    assert (folder / "fusion_onnx.onnx").read_bytes() == before
    assert FeaturePredictor(folder / "fusion_onnx.onnx").predict({"film:Mass": 0.3}).probabilities
    assert load_torchscript(folder / "fusion_traced.pt") is not None


def test_export_of_a_modality_by_name_writes_nothing_of_other_models(export: Export, pipeline) -> None:
    make_not_applicable(pipeline)
    assert export("film", "--set", "export.formats=[torchscript]")[0] == 0
    assert files(pipeline) == FILM[2:]


def test_more_samples_than_there_are_is_said_and_all_of_them_are_taken(export: Export, pipeline) -> None:
    code, _, err = export("film", "--set", "export.samples=500", "--set", "export.formats=[torchscript]")
    assert code == 0
    assert "film: tried on 24 samples and not on 500, as export.samples asks" in " ".join(err.split())
    assert Card.read(pipeline.places.exports / "film_torchscript.json").parity["samples"] == 24


def test_model_that_was_never_made_is_left_out_unless_asked_for(export: Export, pipeline) -> None:
    (pipeline.places.root / "fusion.txt").unlink()
    shutil.rmtree(pipeline.places.saved_models("scan"))
    code, _, err = export("--set", "export.formats=[torchscript]")
    assert code == 0 and files(pipeline) == FILM[2:]
    assert "fusion: not exported, as expected fusion.txt" in err
    code, _, err = export("fusion")
    assert code == 1 and "expected fusion.txt" in err


def test_nothing_trained_is_an_error(export: Export, pipeline) -> None:
    shutil.rmtree(pipeline.places.saved_models_folder)
    code, _, err = export()
    assert code == 1 and "radfuse train" in err
    code, _, err = export("film")
    assert code == 1 and "radfuse train film" in err


def test_calibration_of_another_model_is_refused(export: Export, pipeline) -> None:
    pipeline.train("film", seed=1)
    code, _, err = export("film")
    assert code == 1 and files(pipeline) == []
    assert "the calibration of film is stale" in err and "radfuse predict-split film" in err


def test_calibration_that_was_changed_is_refused(export: Export, pipeline) -> None:
    path = pipeline.places.calibration("film")
    told = json.loads(path.read_text())
    told["labels"]["Mass"]["temperature"] = 3.0
    path.write_text(json.dumps(told))
    code, _, err = export("film")
    assert code == 1 and "calibration file" in err


def test_missing_predictions_are_named(export: Export, pipeline) -> None:
    pipeline.places.predictions("film").unlink()
    code, _, err = export("film")
    assert code == 1 and "radfuse predict-split film" in err


def test_graph_that_the_prediction_table_contradicts_is_refused(export: Export, pipeline) -> None:
    path = pipeline.places.predictions("film")
    frame, stamp = predictions.read(path)
    frame["calibrated:Nodule"] += 0.01
    predictions.write(path, frame, stamp)
    code, _, err = export("film")
    assert code == 1 and files(pipeline) == []
    assert "the graph of film differs from its prediction table by 0.01" in err


def test_tolerance_that_nothing_meets_leaves_no_file(export: Export, pipeline) -> None:
    code, _, err = export("scan", "--set", "export.tolerance=1.0e-12")
    assert code == 1 and files(pipeline) == []
    assert "scan_onnx.onnx differs from its checkpoint by" in err


def test_damaged_checkpoint_is_refused(export: Export, pipeline) -> None:
    path = pipeline.places.saved_models("film") / "filmnet_best.pth"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, _, err = export("film")
    assert code == 1 and "filmnet_best.pth" in err and files(pipeline) == []


def test_array_that_was_changed_is_named_and_nothing_is_exported(export: Export, pipeline) -> None:
    (sample,) = Prepared(pipeline.places, "film").samples("val")[:1]
    path = pipeline.places.arrays("film") / f"{sample}.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-5] + bytes(255 - byte for byte in data[-5:]))
    code, _, err = export("film")
    assert code == 1 and sample in err and "radfuse prepare film" in err and files(pipeline) == []


def test_promoted_version_stands_on_the_card(export: Export, pipeline) -> None:
    best = pipeline.places.saved_models("film") / "filmnet_best.pth"
    ckptcore.promote(best, version="1.2.0")
    assert export("film", "--set", "export.formats=[onnx]")[0] == 0
    assert Card.read(pipeline.places.exports / "film_onnx.json").version == "1.2.0"
    session = onnxruntime.InferenceSession(
        pipeline.places.exports / "film_onnx.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.get_modelmeta().custom_metadata_map["version"] == "1.2.0"


def test_averaged_weights_are_what_is_exported(export: Export, pipeline) -> None:
    from radfuse.engine.predicting import predict_split

    other = torch.load(pipeline.train("film", seed=5))["model_state_dict"]
    average = torch.load(pipeline.train("film", seed=7))["model_state_dict"]
    pipeline.train("film", seed=5, ema_state_dict=average)
    assert any((other[key] != average[key]).any() for key in other)
    predict_split(pipeline.params(), pipeline.places, "film")
    assert export("film", "--set", "export.formats=[torchscript]")[0] == 0
    traced = load_torchscript(pipeline.places.exports / "film_torchscript.pt")
    weights = dict(traced.named_parameters())
    torch.testing.assert_close(weights["network.0.weight"], average["0.weight"])


def killed_in_publishing(pipeline, name: str, *arguments: str) -> None:
    """``radfuse export`` as a process that is killed as it is about to give a file its name."""
    words = ["export", "film", *arguments, "--params", str(pipeline.file)]
    found = subprocess.run(
        [sys.executable, "-c", KILLED_IN_PUBLISH, name, *words],
        env={**os.environ, "PYTHONPATH": str(TOY)}, start_new_session=True, check=False,
    )  # fmt: skip
    assert found.returncode == -signal.SIGKILL
    assert any(durable.is_temporary(left) for left in files(pipeline))


def test_export_that_was_killed_as_it_gave_files_their_names_is_refused_and_leaves_nothing_the_next_time(
    export: Export, pipeline
) -> None:
    folder = pipeline.places.exports
    killed_in_publishing(pipeline, "film_onnx.json")
    there = [name for name in files(pipeline) if not durable.is_temporary(name)]
    assert there == ["film_onnx.onnx", "film_torchscript.pt"]
    with pytest.raises(CardError):
        Predictor(folder / "film_onnx.onnx")
    with pytest.raises(UntrustedExport):
        load_torchscript(folder / "film_torchscript.pt")
    assert export("film")[0] == 0
    assert files(pipeline) == FILM
    assert load_torchscript(folder / "film_torchscript.pt") is not None


def of_export(pipeline, name: str) -> list[Path]:
    """The folders in which an unfinished export keeps its files."""
    root = pipeline.places.work(name) / "exports"
    return sorted(root.iterdir()) if root.is_dir() else []


def never_made(monkeypatch: pytest.MonkeyPatch, *forms: str) -> None:
    for form in forms:
        what = f"radfuse.engine.export.{form}.{form}_bytes"
        monkeypatch.setattr(what, lambda *_: pytest.fail("it was finished before the stop"))


def test_finished_files_of_an_export_that_was_stopped_are_not_made_again_though_dvc_has_deleted_them(
    export: Export, pipeline, exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in_publishing(pipeline, "film_onnx.json")
    shutil.rmtree(pipeline.places.exports)
    never_made(monkeypatch, "onnx", "torchscript")
    code, out, _ = export("film")
    assert code == 0 and "film_onnx.onnx" in out
    assert files(pipeline) == FILM
    assert load_torchscript(pipeline.places.exports / "film_torchscript.pt") is not None
    assert Predictor(pipeline.places.exports / "film_onnx.onnx") is not None
    for name in (FILM[1], FILM[3]):
        assert (pipeline.places.exports / name).read_bytes() == (exported.places.exports / name).read_bytes()
    assert of_export(pipeline, "film") == []


def test_models_that_were_exported_are_kept_until_the_last_one_is(
    export: Export, pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = onnx.onnx_bytes, []

    def stopped(*arguments):
        if made:
            raise KeyboardInterrupt
        return counted(*arguments)

    def counted(*arguments):
        made.append("onnx")
        return real(*arguments)

    monkeypatch.setattr(onnx, "onnx_bytes", stopped)
    assert export("film", "scan")[0] == 130
    assert files(pipeline) == FILM and len(of_export(pipeline, "film")) == 1
    monkeypatch.setattr(onnx, "onnx_bytes", counted)
    assert export("film", "scan")[0] == 0
    assert made == ["onnx", "onnx"]
    assert files(pipeline) == [*FILM, *SCAN]
    assert of_export(pipeline, "film") == of_export(pipeline, "scan") == []


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_finished_file_that_was_damaged_since_is_made_again(export: Export, pipeline, harm: str) -> None:
    killed_in_publishing(pipeline, "film_torchscript.json")
    (folder,) = of_export(pipeline, "film")
    file = folder / "onnx.bin"
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-1], "changed": data[:-1] + b"?", "gone": b""}[harm])
    if harm == "gone":
        file.unlink()
    assert export("film")[0] == 0
    assert Predictor(pipeline.places.exports / "film_onnx.onnx") is not None
    assert files(pipeline) == FILM


def test_finished_files_of_another_model_are_not_taken_over_which_is_said(export: Export, pipeline) -> None:
    killed_in_publishing(pipeline, "film_torchscript.json")
    pipeline.train("film", seed=3)
    assert run(["predict-split", "film", "--params", str(pipeline.file)]) == 0
    code, _, said = export("film")
    assert code == 0
    assert "what was kept of unfinished exports of film is not taken over, as it differs in:" in said
    card = Card.read(pipeline.places.exports / "film_onnx.json")
    best = pipeline.places.saved_models("film") / "filmnet_best.pth"
    assert card.model_digest == ckptcore.read_header(best).model_digest


def test_a_second_export_at_once_is_told_who_is_at_it(
    export: Export, pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in_publishing(pipeline, "film_torchscript.json")
    (folder,) = of_export(pipeline, "film")
    monkeypatch.setattr("radfuse.engine.kept.LONGEST_WAIT", 0.1)
    lease = Lease(folder)
    lease.acquire()
    try:
        code, _, said = export("film")
    finally:
        lease.release()
    assert code == 1
    assert f"another process is at exactly these exports of film (pid {os.getpid()}, host " in said


def test_earlier_export_of_another_model_is_not_taken_for_that_of_a_killed_one(
    export: Export, pipeline
) -> None:
    form = ("--set", "export.formats=[torchscript]")
    assert export("film", *form)[0] == 0
    pipeline.train("film", seed=3)
    assert run(["predict-split", "film", "--params", str(pipeline.file)]) == 0
    killed_in_publishing(pipeline, "film_torchscript.json", *form)
    with pytest.raises(UntrustedExport):
        load_torchscript(pipeline.places.exports / "film_torchscript.pt")
    assert export("film", *form)[0] == 0
    assert files(pipeline) == FILM[2:]
