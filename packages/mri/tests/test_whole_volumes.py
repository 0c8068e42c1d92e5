"""Volumes larger than a window, by the exported network: answered as MONAI does with the network itself."""

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy.ndimage import gaussian_filter

from radfuse.engine.export.exportable import Exportable
from radfuse.engine.export.graph import ExportGraph
from radfuse.engine.export.writing import write
from radfuse.mri import MODALITY
from radfuse.mri.settings import MriPrepareSettings, MriTrainSettings
from radfuse.serving import Predictor
from radfuse.serving.preprocess import Geometry, Prepared

CLASSES = ("background", "core", "oedema", "enhancing")
PREPARE, TRAIN = MriPrepareSettings(), MriTrainSettings(patch_size=(32, 48, 32))
SIZE = (40, 64, 80)
"""(D, H, W), larger than a window along every axis, and along two no multiple of its steps."""
SPACING_MM = (2.0, 1.0, 1.5)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MODALITY.network(PREPARE, TRAIN, len(CLASSES)).eval()


@pytest.fixture(scope="module")
def volume():
    """(C, D, H, W) as the preparation leaves it: smooth tissue with noise, nothing outside of the head."""
    random = np.random.default_rng(0)
    tissue = np.stack([gaussian_filter(random.normal(size=SIZE), 3) * 30 for _ in PREPARE.sequences])
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, length) for length in SIZE], indexing="ij"))
    outside = (places**2).sum(axis=0) > 1.5
    return np.where(outside, 0, tissue + random.normal(scale=0.3, size=tissue.shape)).astype(np.float16)


@pytest.fixture(scope="module")
def predictor(network, volume, tmp_path_factory):
    """The network after the project's own export, with the window that the task says of its settings."""
    task = MODALITY.task(PREPARE, CLASSES)
    graph = ExportGraph(MODALITY.normalisation(PREPARE), network, torch.nn.Identity(), task.activation())
    card = {
        "modality": "mri", "name": MODALITY.model_name, "version": "", "model_digest": "1" * 64,
        "split_digest": "2" * 64, "inputs": PREPARE.sequences, "task": "segmentation", "classes": CLASSES,
        "preprocessing": MODALITY.preprocessing(PREPARE), "regions": task.regions,
        "sliding_window": task.window(TRAIN),
    }  # fmt: skip
    sample = torch.from_numpy(volume[:, :32, :32, :32].astype(np.float32))
    model = Exportable("mri", {"onnx": "mri_onnx.onnx"}, graph.eval(), [sample], card, step=16)
    [written] = write(model, tmp_path_factory.mktemp("exports"), ["onnx"], 1e-4)
    return Predictor(written.file, threads=1)


def by_monai(network, volume, overlap, mode="gaussian"):
    """(classes, D, H, W) logits."""
    image = torch.from_numpy(volume.astype(np.float32))[None]
    with torch.inference_mode():
        return sliding_window_inference(image, TRAIN.patch_size, 1, network, overlap, mode)[0]


def test_row_4_5_a_volume_larger_than_the_window_is_segmented_as_by_monai(network, volume, predictor):
    assert predictor.card.sliding_window == {"size": [32, 48, 32], "overlap": 0.25}
    affine = np.diag([*SPACING_MM, 1.0])
    found = predictor.predict_prepared(Prepared(volume, Geometry(SIZE, affine, SIZE, affine)))
    logits = by_monai(network, volume, TRAIN.overlap)
    labels, expected = found.label_map.voxels, logits.argmax(dim=0).numpy()
    # No other class but where two are alike up to rounding, which windows' order may decide.
    best, second = logits.topk(2, dim=0).values.numpy()
    assert ((labels == expected) | (best - second < 1e-4)).all()
    assert (labels == expected).mean() > 0.9999
    voxels = np.bincount(labels.ravel(), minlength=len(CLASSES))
    for name, indices in predictor.card.regions.items():
        assert found.volumes_mm3[name] == pytest.approx(voxels[list(indices)].sum() * np.prod(SPACING_MM))


def test_the_volume_tells_overlap_and_weights_of_windows_apart(network, volume):
    """Else the comparison above would be of little worth."""
    expected = by_monai(network, volume, TRAIN.overlap).argmax(dim=0)
    assert (torch.bincount(expected.ravel(), minlength=len(CLASSES)) > 0.05 * expected.numel()).all()
    for other in ({"overlap": 0.0}, {"overlap": TRAIN.overlap, "mode": "constant"}):
        assert (by_monai(network, volume, **other).argmax(dim=0) != expected).float().mean() > 0.001
