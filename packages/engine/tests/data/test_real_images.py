"""Small parts of real data sets, in the layouts of their publishers, from files to arrays."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pipelines import MR_VOLUME, Pipeline
from sklearn.metrics import roc_auc_score

from radfuse.engine import split
from radfuse.engine.errors import TooManySkipped


def link(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def test_nih_images_become_arrays_and_keep_their_official_test_patients(
    pipeline: Pipeline, real_data: Path
) -> None:
    nih, raw = real_data / "nih_chestxray14", pipeline.root / "raw"
    test = (nih / "test_list.txt").read_text().split()[:12]
    learn = (nih / "train_val_list.txt").read_text().split()[:20]
    for name in (*test, *learn):
        link(raw / "images" / name, nih / "images" / name)
    with open(nih / "Data_Entry_2017_v2020.csv", newline="") as stream:
        header, *rows = csv.reader(stream)
    chosen = [row for row in rows if row[0] in {*test, *learn}]
    with open(raw / "Data_Entry_2017_v2020.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([header, *chosen])
    for name, listed in (("test_list.txt", test), ("train_val_list.txt", learn)):
        (raw / name).write_text("\n".join(listed))
    pipeline.sources({"kind": "nih_chestxray14", "root": "raw", "official": True})
    samples = pipeline.cohort().samples
    assert (samples.split == "test").sum() == 12
    assert len(samples) == 32
    pipeline.prepare("xray")
    rows_made = pipeline.prepared("xray").rows()
    arrays = [pipeline.prepared("xray").array(name) for name in rows_made.sample_id]
    assert {array.shape for array in arrays} == {(16, 16)}
    assert all(array.std() > 10 for array in arrays)


def test_untouched_1024_files_with_four_channels_are_read(pipeline: Pipeline, real_data: Path) -> None:
    original = real_data / "nih_chestxray14_original_1024"
    names = sorted(path.name for path in original.glob("*.png"))
    for name in names:
        link(pipeline.root / "raw" / "images_001" / name, original / name)
    header = (real_data / "nih_chestxray14" / "Data_Entry_2017_v2020.csv").read_text().splitlines()[0]
    rows = [f"{name},No Finding,0,{name[:8]},50,F,PA" for name in names]
    (pipeline.root / "raw" / "Data_Entry_2017.csv").write_text("\n".join([header, *rows]))
    pipeline.sources({"kind": "nih_chestxray14", "root": "raw"})
    pipeline.cohort()
    assert pipeline.prepare("xray").prepared == len(names)


def test_brats_cases_become_four_sequences_and_class_indices(pipeline: Pipeline, real_data: Path) -> None:
    cases = sorted(path for path in (real_data / "brats18_2mm").iterdir() if path.is_dir())[:2]
    for case in cases:
        link(pipeline.root / "raw" / case.name, case)
    pipeline.sources({"kind": "brats", "root": "raw", "public": True})
    pipeline.cohort()
    pipeline.prepare("mri")
    prepared = pipeline.prepared("mri")
    for name in prepared.rows().sample_id:
        array, mask = prepared.array(name), prepared.mask(name)
        assert array.shape == (4, 77, 120, 120)
        assert mask.shape == array.shape[1:]
        assert set(np.unique(mask)) <= {0, 1, 2, 3}
        assert (mask > 0).sum() > 100
        assert array[:, mask > 0].mean() > array[:, array[0] != 0].mean()
    assert prepared.rows().spacing_mm_h.tolist() == pytest.approx([2, 2])


def test_hippocampus_is_read_by_its_dataset_json(pipeline: Pipeline, real_data: Path) -> None:
    shutil.copytree(
        real_data / "msd_hippocampus", pipeline.root / "raw",
        ignore=lambda _, names: [name for name in names if name.endswith(".gz") and name > "hippocampus_009"],
    )  # fmt: skip
    pipeline.sources(
        {"kind": "decathlon", "root": "raw", "public": True}, prepare={"max_skipped_fraction": 0.99}
    )
    made = pipeline.cohort()
    assert set(made.left_out.reason) == {"a file that dataset.json lists is missing"}
    pipeline.prepare("mri", {**MR_VOLUME, "sequences": ["mri"]})
    prepared = pipeline.prepared("mri")
    assert prepared.classes == {1: "anterior", 2: "posterior"}
    assert len(prepared.rows()) == len(made.samples) >= 3
    for name in prepared.rows().sample_id:
        assert set(np.unique(prepared.mask(name))) == {0, 1, 2}


@pytest.mark.parametrize(
    ("folder", "patients"), [("lidc_nodule_cubes", 105), ("lidc_nodule_stacks", None)]
)  # fmt: skip
def test_lidc_nodules_are_read_as_a_table(
    pipeline: Pipeline, real_data: Path, folder: str, patients: int | None
) -> None:
    table = {"kind": "table", "root": str(real_data / folder), "modality": "ct", "csv": "nodules.csv"}
    pipeline.sources({**table, "name": folder, "labels": ["malignant"], "public": True})
    made = pipeline.cohort()
    listed = pd.read_csv(real_data / folder / "nodules.csv")
    assert len(made.samples) == len(listed)
    assert len(made.patients) == listed.patient_id.nunique() == (patients or listed.patient_id.nunique())
    assert made.samples["label:malignant"].sum() == listed.malignant.sum()
    assert made.samples["label:malignant"].isna().sum() == listed.malignant.isna().sum()
    split.check_disjoint({"ct": made.samples})


def test_size_of_a_real_nodule_is_a_reference_that_ranks_malignancy(
    pipeline: Pipeline, real_data: Path
) -> None:
    params = Path(__file__).parents[4] / "pipelines" / "real_samples" / "lidc_nodule_stacks" / "params.yaml"
    (source,) = yaml.safe_load(params.read_text())["sources"]
    pipeline.sources({**source, "root": str(real_data / "lidc_nodule_stacks")})
    samples = pipeline.cohort().samples.dropna(subset=["label:malignant", "reference:diameter_mm"])
    auc = roc_auc_score(samples["label:malignant"], samples["reference:diameter_mm"])
    assert auc == pytest.approx(0.865, abs=5e-4)


def first_nodules(pipeline: Pipeline, real_data: Path, number: int) -> dict[str, Any]:
    lidc = real_data / "lidc_nodule_cubes"
    rows = (lidc / "nodules.csv").read_text().splitlines()[: number + 1]
    link(pipeline.root / "raw" / "volumes", lidc / "volumes")
    (pipeline.root / "raw" / "nodules.csv").write_text("\n".join(rows))
    return {
        "kind": "table", "name": "lidc", "root": "raw", "modality": "ct", "csv": "nodules.csv",
        "labels": ["malignant"], "public": True,
    }  # fmt: skip


def test_lidc_cubes_become_patches(pipeline: Pipeline, real_data: Path) -> None:
    pipeline.sources(first_nodules(pipeline, real_data, 4))
    pipeline.cohort()
    spec = {"kind": "ct_patch", "size": [32, 32, 32], "spacing_mm": None, "window_hu": None}
    pipeline.prepare("ct", spec)
    prepared = pipeline.prepared("ct")
    for name in prepared.rows().sample_id:
        array = prepared.array(name)
        assert (array.shape, array.dtype) == ((32, 32, 32), np.int16)
        assert 0 <= array.min() < array.max() <= 255


def chest_ct(pipeline: Pipeline, real_data: Path) -> Path:
    folder = pipeline.root / "raw" / "series"
    shutil.copytree(real_data / "ct_chest_dicom_series", folder)
    (pipeline.root / "raw" / "ct.csv").write_text("path,x,y,z\nseries,{},{},{}\n".format(*centre(folder)))
    pipeline.sources(
        {"kind": "table", "root": "raw", "modality": "ct", "csv": "ct.csv", "point_mm": ["x", "y", "z"]}
    )
    pipeline.cohort()
    return folder


def centre(folder: Path) -> tuple[float, float, float]:
    from radfuse.serving.images.series import read_series

    volume = read_series(folder)
    x, y, z, _ = volume.affine @ [*(np.array(volume.shape) - 1) / 2, 1]
    return float(x), float(y), float(z)


def test_real_dicom_series_becomes_a_patch_about_its_point(pipeline: Pipeline, real_data: Path) -> None:
    chest_ct(pipeline, real_data)
    pipeline.prepare("ct")
    (name,) = pipeline.prepared("ct").rows().sample_id
    assert pipeline.prepared("ct").array(name).shape == (8, 8, 8)


def test_real_dicom_series_without_one_slice_is_refused(pipeline: Pipeline, real_data: Path) -> None:
    folder = chest_ct(pipeline, real_data)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[len(names) // 2]).unlink()
    pipeline.cohort()
    with pytest.raises(TooManySkipped, match=r"\n  series: .*slice"):
        pipeline.prepare("ct")


def test_real_dicom_file_that_was_cut_off_is_refused(pipeline: Pipeline, real_data: Path) -> None:
    folder = chest_ct(pipeline, real_data)
    path = sorted(folder.iterdir())[3]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TooManySkipped, match=rf"\n  series/{path.name}: "):
        pipeline.prepare("ct")
