import importlib
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines import Pipeline, write_csv, write_png, xray_table

from radfuse.engine import code, config, modality, pushing, scaffold
from radfuse.engine.blocks import SplitSettings
from radfuse.engine.commented import block
from radfuse.engine.places import Places
from radfuse.engine.preparing import jobs
from radfuse.engine.sources import open_sources
from radfuse.serving.preprocess import kind as kinds

FILES = ("params.yaml", "dvc.yaml", ".gitignore", "README.md")


def test_new_pipeline_has_parameters_that_load_and_are_the_defaults(
    radfuse: Callable[..., Any], tmp_path: Path
) -> None:
    ran = radfuse("init", tmp_path / "mine")
    assert ran.code == 0
    assert all((tmp_path / "mine" / name).is_file() for name in FILES)
    params = config.load(tmp_path / "mine" / "params.yaml")
    defaults = config.Params()
    assert params.split == defaults.split
    assert params.export == defaults.export
    xray = modality.modality("xray")
    assert params.prepare_of(xray) == xray.prepare_settings()
    assert params.train_of(xray) == xray.train_settings()


def test_every_key_of_new_parameters_has_a_remark(radfuse: Callable[..., Any], tmp_path: Path) -> None:
    names = ("xray", "ct", "mri")
    radfuse("init", tmp_path / "mine", *(word for name in names for word in ("--modality", name)))
    lines = (tmp_path / "mine" / "params.yaml").read_text().partition("\nsplit:\n")[2].splitlines()
    for above, line in pairwise(["  #", *lines]):
        key = re.match(r" +(\w+):", line)
        if key and key[1] not in names and "epochs" not in line and "learning_rate" not in line:
            assert above.strip().startswith(("#", "learning_rates:")) or key[1] == "layers", line


@pytest.mark.parametrize("kind", ["table", "nih_chestxray14", "brats", "decathlon", "phantom"])
def test_new_pipeline_of_every_kind_has_stages_for_its_modalities(
    radfuse: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    assert radfuse("init", tmp_path / "mine", "--source", kind, "--root", tmp_path).code == 0
    stages = yaml.safe_load((tmp_path / "mine" / "dvc.yaml").read_text())["stages"]
    names = scaffold.MODALITIES_OF[kind]
    wanted = {"cohort", "ensemble", "evaluate", "export"}
    wanted |= {f"{stage}_{name}" for stage in ("prepare", "train", "predict") for name in names}
    assert set(stages) - {"phantom"} == wanted
    params = config.load(tmp_path / "mine" / "params.yaml")
    assert {item["kind"] for item in params.sources} == {kind}
    open_sources(params.sources, tmp_path / "mine", params.origin)


@pytest.mark.parametrize("kind", ["nih_chestxray14", "brats", "decathlon", "phantom"])
def test_stages_follow_the_folder_of_the_images(
    radfuse: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    radfuse("init", tmp_path / "mine", "--source", kind, "--root", "../images")
    stages = yaml.safe_load((tmp_path / "mine" / "dvc.yaml").read_text())["stages"]
    reading = {name: stage for name, stage in stages.items() if name.startswith(("cohort", "prepare"))}
    assert len(reading) == 1 + len(scaffold.MODALITIES_OF[kind])
    assert all("../images" in stage["deps"] for stage in reading.values())
    assert ("../images/ceilings.json" in stages["evaluate"]["deps"]) == (kind == "phantom")
    assert "under their old names" not in (tmp_path / "mine" / "README.md").read_text()


def test_stages_of_tables_follow_the_tables_and_the_readme_says_what_they_do_not(
    radfuse: Callable[..., Any], tmp_path: Path
) -> None:
    radfuse("init", tmp_path / "mine", "--modality", "xray", "--modality", "ct")
    stages = yaml.safe_load((tmp_path / "mine" / "dvc.yaml").read_text())["stages"]
    for name in ("cohort", "prepare_xray", "prepare_ct"):
        assert {"data/raw/xray.csv", "data/raw/ct.csv"} <= set(stages[name]["deps"])
        assert "data/raw" not in stages[name]["deps"]
    assert "sources" in stages["evaluate"]["params"]
    assert "under their old names" in (tmp_path / "mine" / "README.md").read_text()


def test_the_readme_says_what_an_upgrade_asks_for(radfuse: Callable[..., Any], tmp_path: Path) -> None:
    """The packages are no part of the folder's checkout, so that DVC follows none of their code."""
    radfuse("init", tmp_path / "mine")
    stages = yaml.safe_load((tmp_path / "mine" / "dvc.yaml").read_text())["stages"]
    assert not [dep for stage in stages.values() for dep in stage["deps"] if "packages/" in dep]
    assert "After an upgrade of radfuse" in (tmp_path / "mine" / "README.md").read_text()
    assert "`dvc repro -f`" in (tmp_path / "mine" / "README.md").read_text()


@pytest.fixture
def restarted() -> Iterator[Callable[[], None]]:
    """Has the code read again, as a new process does; one process reads it once."""
    yield jobs._code.cache_clear
    jobs._code.cache_clear()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("radfuse.serving.images", "volume.py"),
        ("radfuse.serving.preprocess", "radiograph.py"),
        ("radfuse.engine.preparing.decoding", ""),
    ],
)
def test_arrays_of_older_reading_code_are_made_anew(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    restarted: Callable[[], None],
    tmp_path: Path,
    name: str,
    file: str,
) -> None:
    pipeline.sources(xray_table(pipeline.root / "raw", patients=3, images_each=2))
    pipeline.cohort()
    first = pipeline.prepare("xray")
    restarted()
    assert pipeline.prepare("xray").kept == first.prepared == 6
    installed, upgraded = code.place_of, tmp_path / "upgraded"
    if file:
        shutil.copytree(installed(name), upgraded)
    else:
        shutil.copy(installed(name), upgraded)
    with (upgraded / file).open("a") as stream:
        stream.write("MENDED = True\n")
    monkeypatch.setattr(code, "place_of", lambda one: upgraded if one == name else installed(one))
    restarted()
    last = pipeline.prepare("xray")
    assert (last.kept, last.prepared, last.digest) == (0, 6, first.digest)


def test_arrays_of_an_older_kind_of_preprocessing_are_made_anew_whoever_brings_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, restarted: Callable[[], None], tmp_path: Path
) -> None:
    module = tmp_path / "brought_kind.py"
    module.write_text(
        "from radfuse.serving.preprocess.radiograph import RadiographKind\n"
        "class Brought(RadiographKind): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(kinds._kinds, "brought", importlib.import_module("brought_kind").Brought())
    pipeline.sources(xray_table(pipeline.root / "raw", patients=3))
    pipeline.cohort()
    spec = {"kind": "brought", "size": [16, 16]}
    pipeline.prepare("xray", spec)
    assert pipeline.prepare("xray", spec).kept == 3
    module.write_text(module.read_text() + "MENDED = True\n")
    restarted()
    assert pipeline.prepare("xray", spec).kept == 0


def test_the_exports_of_the_ensemble_are_outputs_of_every_new_pipeline(
    radfuse: Callable[..., Any], tmp_path: Path
) -> None:
    radfuse("init", tmp_path / "mine", "--source", "brats", "--root", tmp_path)
    stages = yaml.safe_load((tmp_path / "mine" / "dvc.yaml").read_text())["stages"]
    names = ("onnx.onnx", "onnx.json", "traced.pt", "traced.json")
    assert {f"saved_models/exports/ensemble_{name}" for name in names} <= set(stages["export"]["outs"])


@pytest.mark.parametrize("kind", ["table", "nih_chestxray14", "brats", "decathlon", "phantom"])
def test_new_pipeline_has_every_parameter_that_its_stages_name(
    radfuse: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    """DVC stops at the first one that is missing."""
    assert radfuse("init", tmp_path / "mine", "--source", kind, "--root", tmp_path).code == 0
    params = yaml.safe_load((tmp_path / "mine" / "params.yaml").read_text())
    stages = yaml.safe_load((tmp_path / "mine" / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        for key in stage.get("params", ()):
            found: Any = params
            for part in key.split("."):
                assert part in found, f"{name}: {key}"
                found = found[part]


def test_tables_of_several_modalities_share_their_patients(
    radfuse: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "St. Mary's"
    assert radfuse("init", folder, "--modality", "xray", "--modality", "ct").code == 0
    raw = folder / "data" / "raw"
    write_png(raw / "a.png")
    write_csv(raw / "xray.csv", ("path", "patient_id", "finding"), [("a.png", 1, 1)])
    header = ("path", "patient_id", "malignant", "x_mm", "y_mm", "z_mm")
    write_csv(raw / "ct.csv", header, [("a.png", 1, 1, 0, 0, 0)])
    params = config.load(folder / "params.yaml")
    first, second = open_sources(params.sources, folder, params.origin)
    assert first.namespace == second.namespace
    assert not first.public
    assert len([*first.scan(), *second.scan()]) == 2


def test_nothing_is_overwritten(radfuse: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    ran = radfuse("init", tmp_path)
    assert ran.code == 1
    assert "README.md already" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_kind_and_modality_that_are_none_are_refused(radfuse: Callable[..., Any], tmp_path: Path) -> None:
    assert "'brats'" in radfuse("init", tmp_path / "a", "--source", "brast").err
    assert radfuse("init", tmp_path / "a", "--modality", "xry").code == 2
    assert not (tmp_path / "a").exists()


def test_commented_block_reads_back_as_its_settings() -> None:
    settings = SplitSettings(seed=3)
    text = block(settings)
    assert SplitSettings.model_validate(yaml.safe_load(text)) == settings
    assert "  # Another one deals all patients anew.\n  seed: 3\n" in text


def test_pushed_tables_about_patients_stop_the_cohort_unless_allowed(
    radfuse: Callable[..., Any], tmp_path: Path
) -> None:
    radfuse("init", tmp_path / "mine", "--source", "phantom")
    places = Places(tmp_path / "mine")
    pushing.check(places, allowed=False)
    stages = tmp_path / "mine" / "dvc.yaml"
    stages.write_text(stages.read_text().replace("cohort.parquet: {push: false}", "cohort.parquet"))
    with pytest.raises(pushing.PushedTables, match=r"send data/cohort/cohort\.parquet, which"):
        pushing.check(places, allowed=False)
    pushing.check(places, allowed=True)
    assert "push_patient_tables" in radfuse("cohort", "--params", tmp_path / "mine" / "params.yaml").err
