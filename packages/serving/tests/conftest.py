"""Files for the tests: DICOM objects, series and ONNX graphs, as scanners and `radfuse export` write them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

NAME, BORN, CASE = "Musterfrau^Erika", "19640812", "MRN-4711"
"""What must never appear in a message."""


def dataset(pixels, **tags):
    """A data set with the array as its pixels; tags by keyword go over what it has, None takes one away."""
    made = Dataset()
    made.PatientName, made.PatientBirthDate, made.PatientID = NAME, BORN, CASE
    made.Modality = "DX"
    made.SOPClassUID = DigitalXRayImageStorageForPresentation
    made.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{np.random.default_rng().integers(1, 1 << 62)}"
    made.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    made.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.Rows, made.Columns = pixels.shape[:2]
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for keyword, value in tags.items():
        if value is None:
            made.pop(keyword, None)
        else:
            setattr(made, keyword, value)
    return made


def save(path, made, syntax=ExplicitVRLittleEndian):
    """Write a data set as a DICOM file with preamble."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = made.get("SOPClassUID", "")
    meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", "")
    file = FileDataset(str(path), made, file_meta=meta, preamble=b"\0" * 128)
    file.save_as(path, enforce_file_format=True)
    return Path(path)


class Builder:
    """Writes files into a folder of its own."""

    def __init__(self, folder):
        self.folder = folder

    def dicom(self, pixels, name="image.dcm", syntax=ExplicitVRLittleEndian, **tags):
        return save(self.folder / name, dataset(pixels, **tags), syntax)

    def slice(self, path, pixels, position, orientation=(1, 0, 0, 0, 1, 0), spacing=(0.5, 0.7), **tags):
        """One CT slice; stored values are HU + 1024."""
        defaults = {
            "Modality": "CT",
            "SOPClassUID": CTImageStorage,
            "ImagePositionPatient": [float(x) for x in position],
            "ImageOrientationPatient": [float(x) for x in orientation],
            "PixelSpacing": list(spacing),
            "SliceThickness": 2.0,
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        return save(path, dataset(np.asarray(pixels, np.int16) + 1024, **{**defaults, **tags}))

    def series(self, hu, step=2.0, name="series", order=None, origin=(-10.0, -20.0, 30.0), **tags):
        """An axial series of (D, H, W) HU, its files named against their order in space."""
        folder = self.folder / name
        for number, index in enumerate(order or reversed(range(len(hu)))):
            position = (origin[0], origin[1], origin[2] + index * step)
            self.slice(folder / f"{number:03d}.dcm", hu[index], position, InstanceNumber=index + 1, **tags)
        return folder

    def model(self, graph, card=None, name="model.onnx"):
        """An ONNX graph with its card beside it."""
        path = self.folder / name
        path.write_bytes(graph.SerializeToString())
        fields = card_fields(hashlib.sha256(path.read_bytes()).hexdigest()) | (card or {})
        path.with_suffix(".json").write_text(json.dumps(fields))
        return path


def card_fields(digest="0" * 64):
    """A card of a radiograph classifier with two labels, as JSON."""
    return {
        "format": 1,
        "modality": "xray",
        "name": "resnet50",
        "version": "1.1.0",
        "digest_sha256": digest,
        "model_digest": "m" * 64,
        "split_digest": "s" * 64,
        "opset": 20,
        "inputs": ["image"],
        "preprocessing": {"kind": "radiograph", "size": [8, 8]},
        "task": "classification",
        "labels": ["Effusion", "Mass"],
        "calibration": {"Effusion": {"method": "temperature", "temperature": 1.5, "bias": 0.0}},
        "thresholds": {"Effusion": 0.5},
        "parity": {"samples": 4, "max_abs_difference": 1e-6, "tolerance": 1e-4},
        "created": "2026-11-21T12:00:00+00:00",
    }


@pytest.fixture
def build(tmp_path):
    return Builder(tmp_path)


@pytest.fixture(scope="session")
def card_json():
    return card_fields


@pytest.fixture
def identity():
    """Texts that no message may hold."""
    return (NAME, "Musterfrau", BORN, CASE)


@pytest.fixture
def sequence_of():
    """A DICOM sequence of items, each a mapping of keywords."""

    def made(*items):
        found = []
        for item in items:
            one = Dataset()
            for keyword, value in item.items():
                setattr(one, keyword, value)
            found.append(one)
        return Sequence(found)

    return made


class Graphs:
    """Tiny ONNX graphs with the inputs and outputs of an export."""

    @staticmethod
    def _model(nodes, constants, taken, answered):
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, taken)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, answered)],
            [
                numpy_helper.from_array(np.asarray(value, np.float32), name)
                for name, value in constants.items()
            ],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def classifier(self, shape=(3, 8, 8), biases=(0.0, 1.0)):
        """Sigmoid of the input's mean plus a bias, for each label."""
        axes = list(range(2, len(shape) + 1))
        nodes = [
            helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("ReduceMean", ["flat"], ["mean"], keepdims=1),
            helper.make_node("Add", ["mean", "bias"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["output"]),
        ]
        constants = {"bias": np.array([biases])}
        assert axes
        return self._model(nodes, constants, ["batch", *shape], ["batch", len(biases)])

    def segmenter(self, channels=1, classes=3, size=("d", "h", "w"), reach=1):
        """Class k where the first channel's mean over a small cube is nearest to k, with softmax inside."""
        length = 2 * reach + 1
        kernel = np.zeros((classes, channels, length, length, length))
        kernel[:, 0] = (2 * np.arange(classes) / length**3)[:, None, None, None]
        nodes = [
            helper.make_node("Conv", ["input", "kernel", "bias"], ["scores"], pads=[reach] * 6),
            helper.make_node("Softmax", ["scores"], ["output"], axis=1),
        ]
        constants = {"kernel": kernel, "bias": -(np.arange(classes) ** 2)}
        return self._model(nodes, constants, ["batch", channels, *size], ["batch", classes, *size])

    def features(self, columns, diseases=2):
        """Sigmoid of the sum of the columns, the n-th weighted by n + 1, for each disease."""
        nodes = [
            helper.make_node("MatMul", ["input", "weights"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["output"]),
        ]
        weights = np.repeat(np.arange(1.0, columns + 1)[:, None], diseases, axis=1)
        return self._model(nodes, {"weights": weights}, ["batch", columns], ["batch", diseases])


@pytest.fixture
def graphs():
    return Graphs()
