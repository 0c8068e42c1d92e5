"""An exported file answers for images by itself, and only the file that its card describes."""

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import onnx
import pytest
from PIL import Image

from radfuse.serving import FeaturePredictor, Predictor
from radfuse.serving.errors import CardError, InputError, ModelError
from radfuse.serving.images.errors import UnreadableImage
from radfuse.serving.images.nifti import read_nifti

LPS = np.diag([-1.0, -1, 1, 1])
CT = {
    "modality": "ct",
    "preprocessing": {
        "kind": "ct_patch",
        "size": [8, 8, 8],
        "spacing_mm": [1, 1, 1],
        "window_hu": [-1000, 400],
    },
    "labels": ["malignant"],
    "thresholds": {},
    "calibration": {},
}
MRI = {
    "modality": "mri",
    "task": "segmentation",
    "inputs": ["t1"],
    "labels": [],
    "thresholds": {},
    "calibration": {},
    "preprocessing": {"kind": "mr_volume", "sequences": ["t1"]},
    "classes": ["background", "core", "oedema"],
    "regions": {"whole": [1, 2], "core": [1]},
    "sliding_window": {"size": [16, 16, 16], "overlap": 0.5},
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_picture_is_answered_with_calibrated_probabilities(build, graphs):
    path = build.model(graphs.classifier())
    Image.fromarray(np.full((8, 8), 51, np.uint8)).save(build.folder / "a.png")
    prediction = Predictor(path).predict({"image": build.folder / "a.png"})
    assert prediction.probabilities == pytest.approx(
        {"Effusion": sigmoid(0.2), "Mass": sigmoid(1.2)}, abs=1e-6
    )
    assert prediction.thresholds == {"Effusion": 0.5}
    assert prediction.decisions == {"Effusion": True}
    assert (prediction.modality, prediction.name, prediction.version) == ("xray", "resnet50", "1.1.0")


def test_a_dicom_radiograph_is_answered(build, graphs):
    path = build.model(graphs.classifier())
    image = build.dicom(np.full((16, 16), 102, np.uint8))
    assert Predictor(path).predict({"image": image}).probabilities["Mass"] == pytest.approx(
        sigmoid(1.4), abs=1e-6
    )


def test_the_answer_as_json_is_plain(build, graphs):
    path = build.model(graphs.classifier())
    image = build.dicom(np.full((16, 16), 0, np.uint8))
    answer = json.loads(json.dumps(Predictor(path).predict({"image": image}).as_json()))
    assert answer["model"]["version"] == "1.1.0"
    assert answer["labels"]["Effusion"] == {"probability": 0.5, "threshold": 0.5, "positive": True}
    assert answer["labels"]["Mass"]["positive"] is None


def test_a_ct_series_is_answered_about_a_point(build, graphs):
    path = build.model(graphs.classifier((1, 8, 8, 8), biases=(800.0,)), CT)
    folder = build.series(np.full((20, 40, 40), -800, np.int16), origin=(0.0, 0.0, 0.0))
    predictor = Predictor(path)
    answer = predictor.predict({"image": folder}, point_mm=(10, 10, 20)).probabilities
    assert answer == pytest.approx({"malignant": 0.5}, abs=1e-3)
    with pytest.raises(UnreadableImage, match="whole scan"):
        Predictor(
            build.model(
                graphs.classifier((1, 4, 4, 4), (0.0,)),
                {**CT, "preprocessing": {**CT["preprocessing"], "size": [4, 4, 4]}},
                "b.onnx",
            )
        ).predict({"image": folder})


def volume(tmp_path, shape=(40, 20, 24), affine=LPS):
    """Three blocks of the values whose classes they are, in a field whose z-scores are known."""
    voxels = np.ones(shape, np.float32)
    voxels[8:20, 4:12, 6:14] = 2
    voxels[24:32, 4:16, 6:18] = 3
    path = tmp_path / "case_t1.nii.gz"
    nibabel.Nifti1Image(voxels, affine).to_filename(path)
    return path, voxels


def test_a_segmentation_comes_on_the_files_own_grid_with_volumes_in_mm3(build, graphs):
    affine = np.array([[0, 0, 2.0, 5], [-1, 0, 0, 6], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    path, voxels = volume(build.folder, affine=affine)
    model = build.model(graphs.segmenter(size=("d", "h", "w")), MRI)
    prediction = Predictor(model).predict({"t1": path})
    original = read_nifti(path)
    assert prediction.label_map.shape == original.shape
    assert prediction.label_map.affine == pytest.approx(original.affine)
    assert prediction.label_map.voxels.dtype == np.uint8
    scored = (voxels - voxels.mean()) / voxels.std()
    labels = prediction.label_map.voxels
    interior = np.zeros(voxels.shape, bool)
    interior[26:30, 6:14, 8:16] = True
    assert (labels[interior.transpose(2, 1, 0)] == min(2, round(scored.max()))).all()
    counts = np.bincount(labels.ravel(), minlength=3)
    assert prediction.volumes_mm3 == pytest.approx({"whole": counts[1:].sum() * 3, "core": counts[1] * 3})
    answer = prediction.as_json()
    assert set(answer) == {"model", "classes", "volumes_mm3"}
    json.dumps(answer)


def test_windows_give_what_the_whole_volume_gives_away_from_its_edges(build, graphs):
    path, _ = volume(build.folder)
    whole = Predictor(build.model(graphs.segmenter(), {**MRI, "sliding_window": None}, "whole.onnx"))
    parts = Predictor(build.model(graphs.segmenter(), MRI, "parts.onnx"))
    first, second = (each.predict({"t1": path}).label_map.voxels for each in (whole, parts))
    assert (first == second).mean() > 0.99
    assert len(np.unique(first)) > 1


def test_a_graph_of_one_size_is_given_windows_of_that_size(build, graphs):
    path, _ = volume(build.folder)
    fixed = Predictor(build.model(graphs.segmenter(size=(32, 16, 16)), {**MRI, "sliding_window": None}))
    assert fixed.predict({"t1": path}).label_map.shape == read_nifti(path).shape


def test_a_changed_file_is_not_loaded(build, graphs):
    path = build.model(graphs.classifier())
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ModelError, match="the two do not belong together"):
        Predictor(path)


def test_missing_files_are_said(build, graphs, tmp_path):
    with pytest.raises(CardError, match="belongs beside its model file"):
        Predictor(tmp_path / "absent.onnx")
    path = build.model(graphs.classifier())
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        Predictor(path)


def test_what_is_no_onnx_is_refused(build, graphs):
    class Junk:
        def SerializeToString(self):  # noqa: N802
            return b"this is no graph"

    with pytest.raises(ModelError, match="onnxruntime cannot load it"):
        Predictor(build.model(Junk()))


def test_weights_in_another_file_are_refused(build, graphs):
    graph = graphs.classifier()
    onnx.save(graph, build.folder / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    with pytest.raises(ModelError, match="without external data"):
        Predictor(build.model(onnx.load(build.folder / "e.onnx", load_external_data=False)))


def test_a_graph_that_does_not_fit_its_card_is_refused(build, graphs):
    with pytest.raises(ModelError, match="its card's preprocessing gives"):
        Predictor(build.model(graphs.classifier((3, 16, 16))))
    with pytest.raises(ModelError, match="its card's preprocessing gives"):
        Predictor(build.model(graphs.segmenter(channels=2), MRI, "b.onnx"))
    three = Predictor(build.model(graphs.classifier(biases=(0, 0, 0)), name="c.onnx"))
    with pytest.raises(ModelError, match="for 2 labels"):
        three.predict({"image": build.dicom(np.zeros((8, 8), np.uint8))})
    four = Predictor(build.model(graphs.segmenter(classes=4), MRI, "d.onnx"))
    with pytest.raises(ModelError, match="expected an answer of shape"):
        four.predict({"t1": volume(build.folder)[0]})


def test_an_answer_that_is_not_finite_is_refused(build, graphs):
    path = build.model(graphs.classifier(biases=(float("nan"), 0)))
    with pytest.raises(ModelError, match="NaN or infinity"):
        Predictor(path).predict({"image": build.dicom(np.zeros((8, 8), np.uint8))})


def test_errors_of_reading_pass_through(build, graphs):
    predictor = Predictor(build.model(graphs.classifier()))
    with pytest.raises(UnreadableImage):
        predictor.predict({"image": build.folder / "absent.dcm"})
    with pytest.raises(InputError):
        predictor.predict({"t1": build.folder / "absent.dcm"})


FEATURES = ["ct:malignant:max", "xray:Mass:mean", "xray:Mass:max", "available:ct", "available:xray"]
FEATURE_CARD = {
    "modality": "ensemble",
    "task": "features",
    "inputs": FEATURES,
    "preprocessing": {},
    "labels": ["cancer", "pneumonia"],
    "thresholds": {"cancer": 0.3},
    "calibration": {},
}


@pytest.fixture
def ensemble(build, graphs):
    return FeaturePredictor(build.model(graphs.features(5), FEATURE_CARD))


def test_missing_modalities_enter_as_0_and_are_masked(ensemble):
    given = {"xray:Mass:mean": 0.5, "xray:Mass:max": -0.25}
    assert ensemble.predict(given).probabilities["cancer"] == pytest.approx(sigmoid(2 * 0.5 - 3 * 0.25 + 5))
    given = {"ct:malignant:max": -1.0, "xray:Mass:mean": None, "xray:Mass:max": float("nan")}
    prediction = ensemble.predict(given)
    assert prediction.probabilities["cancer"] == pytest.approx(sigmoid(-1 + 4))
    assert prediction.decisions == {"cancer": True}


def test_availability_may_be_said(ensemble):
    given = {"ct:malignant:max": -1.0, "available:ct": 0}
    assert ensemble.predict(given).probabilities["cancer"] == pytest.approx(sigmoid(-1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "no feature is given"),
        ({"available:ct": 1}, "no feature is given"),
        ({"mri:whole": 1}, "does not know: mri:whole"),
        ({"ct:malignant:max": float("inf")}, "infinite"),
        ({"xray:Mass:mean": 1}, "xray is given in part; missing: xray:Mass:max"),
    ],
)
def test_features_that_make_no_sense_are_refused(ensemble, values, expected):
    with pytest.raises(InputError, match=expected):
        ensemble.predict(values)


def test_images_and_features_are_not_mixed_up(build, graphs):
    path = build.model(graphs.features(5), FEATURE_CARD)
    with pytest.raises(ModelError, match="use FeaturePredictor"):
        Predictor(path)
    with pytest.raises(ModelError, match="use Predictor"):
        FeaturePredictor(build.model(graphs.classifier(), name="b.onnx"))
    with pytest.raises(ModelError, match="its card names 5 features"):
        FeaturePredictor(build.model(graphs.features(4), FEATURE_CARD, "c.onnx"))


WHOLE_BRAIN = r"""
import re, sys
from pathlib import Path
import numpy as np
from radfuse.serving import Predictor, preprocess

predictor = Predictor(sys.argv[1], threads=1)
geometry = preprocess.Geometry((155, 240, 240), np.eye(4), (155, 240, 240), np.eye(4))
volume = np.random.default_rng(0).standard_normal((4, 155, 240, 240), np.float32).astype(np.float16)
prediction = predictor.predict_prepared(preprocess.Prepared(volume, geometry))
assert prediction.label_map.shape == (155, 240, 240)
# Not ru_maxrss: that of a child begins with the peak of the process that started it.
print(1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]))
"""


def test_row_4_5_a_whole_volume_of_four_sequences_takes_under_3_gib(build, graphs):
    names = ["t1", "t1ce", "t2", "flair"]
    card = {
        **MRI,
        "inputs": names,
        "preprocessing": {"kind": "mr_volume", "sequences": names},
        "classes": ["background", "core", "oedema", "enhancing"],
        "sliding_window": {"size": [128, 128, 128], "overlap": 0.0},
    }
    path = build.model(graphs.segmenter(4, 4, reach=0), card)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WHOLE_BRAIN, path]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout) < 3 << 30
