"""What `dvc push` would send, wherever a pipeline's stages stand and however they are written."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from radfuse.engine import pushing
from radfuse.engine.places import Places

REAL = Path(__file__).parents[4] / "pipelines" / "real_samples" / "dvc.yaml"
TABLE = "data/cohort/cohort.parquet"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A DVC repository with a folder for two pipelines, one in the other."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "several" / "mine").mkdir(parents=True)
    return tmp_path


def write(folder: Path, *stages: Mapping[str, Any]) -> None:
    named = {f"stage{place}": {"cmd": "true", **stage} for place, stage in enumerate(stages)}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": named}))


def check(repository: Path) -> None:
    pushing.check(Places(repository / "several" / "mine"), allowed=False)


def each(**stage: Any) -> dict[str, Any]:
    return {"foreach": ["mine", "other"], "do": {"cmd": "true", **stage}}


REFUSED = {
    "a stage of its own": (".", {"outs": [TABLE]}),
    "for each": (".", each(outs=["data/predictions/${item}.parquet"])),
    "a matrix": (".", {"matrix": {"name": ["xray"]}, "outs": ["data/prepared/${item.name}"]}),
    "a folder with tables in it": (".", {"outs": ["data/cohort"]}),
    "a folder above them all": (".", {"outs": ["data"]}),
    "a file inside prepared images": (".", {"outs": ["data/prepared/xray/manifest.parquet"]}),
    "metrics": (".", {"metrics": [TABLE]}),
    "one file above, for each": ("..", each(wdir="${item}", outs=[TABLE])),
    "one file above, a key": ("..", each(wdir="./${key}", outs=[{TABLE: {"cache": True}}])),
    "one file above, by name": ("..", {"wdir": "mine", "outs": [TABLE]}),
    "one file above, without wdir": ("..", {"outs": [f"mine/{TABLE}"]}),
    "one file above, from beside": ("..", {"wdir": "other", "outs": [f"../mine/{TABLE}"]}),
    "at the top, for each": ("../..", each(wdir="several/${item}", outs=[TABLE])),
    "at the top, a whole path": ("../..", each(wdir="${item.folder}", outs=[TABLE])),
}


@pytest.mark.parametrize(("place", "stage"), REFUSED.values(), ids=list(REFUSED))
def test_tables_about_patients_are_found_wherever_their_stage_is(
    repository: Path, place: str, stage: Mapping[str, Any]
) -> None:
    write(repository / "several" / "mine" / place, stage)
    named = f"{place}/dvc.yaml".removeprefix("./").replace(".", r"\.")
    with pytest.raises(pushing.PushedTables, match=rf"^{named} lets `dvc push` send "):
        check(repository)


KEPT = {
    "not pushed": (".", {"outs": [{TABLE: {"push": False}}]}),
    "not cached, for each": (".", each(outs=[{"data/prepared/${item}": {"cache": False}}])),
    "no rows about patients": (".", {"outs": ["data/cohort/splits.json", {"reports": {"cache": True}}]}),
    "nothing": (".", {}),
    "another pipeline's": ("..", {"wdir": "other", "outs": [TABLE]}),
    "another pipeline's, for each": ("..", each(wdir="other/${item}", outs=[TABLE])),
    "of the folder above": ("..", {"outs": [TABLE]}),
}


@pytest.mark.parametrize(("place", "stage"), KEPT.values(), ids=list(KEPT))
def test_what_stays_here_or_is_of_others_is_not_refused(
    repository: Path, place: str, stage: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    write(repository / "several" / "mine" / place, stage)
    check(repository)
    assert caplog.records == []


def test_the_pipelines_of_real_images_keep_their_tables_and_would_be_found_not_to(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = repository / "several" / "dvc.yaml"
    stages.write_text(REAL.read_text())
    check(repository)
    assert caplog.records == []
    for table in ("cohort.parquet", "predictions/${item.modality}.parquet"):
        stages.write_text(REAL.read_text().replace(f"{table}: {{push: false}}", table))
        with pytest.raises(pushing.PushedTables, match=r"^\.\./dvc\.yaml "):
            check(repository)


UNCHECKED = {
    "no YAML": "stages: [",
    "a list": "[1, 2]",
    "stages that are a list": "stages: [1]",
    "a stage that is text": "stages: {cohort: text}",
    "outputs that are a number": "stages: {cohort: {outs: 3}}",
    "an output without a name": "stages: {cohort: {outs: [{}]}}",
    "an output that anything may be": "stages: {cohort: {outs: ['${table}']}}",
    "an output in a folder that anything may be": "stages: {cohort: {outs: ['${folder}/cohort.parquet']}}",
    "no text": b"\xff\xfe\xfa",
}


@pytest.mark.parametrize("content", UNCHECKED.values(), ids=list(UNCHECKED))
def test_what_cannot_be_checked_is_said(
    repository: Path, content: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = repository / "several" / "mine" / "dvc.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    check(repository)
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert said.getMessage().startswith("dvc.yaml: ")
    assert "nobody checked that `dvc push` sends no rows about patients" in said.getMessage()


def test_whole_paths_are_followed(repository: Path) -> None:
    mine = repository / "several" / "mine"
    for stage in ({"wdir": str(mine), "outs": [TABLE]}, {"outs": [str(mine / TABLE)]}):
        write(repository, stage)
        with pytest.raises(pushing.PushedTables):
            check(repository)


def test_names_of_folders_are_no_patterns(repository: Path) -> None:
    odd = repository / "several" / "mine[1]"
    odd.mkdir()
    write(odd, {"outs": [TABLE]})
    with pytest.raises(pushing.PushedTables):
        pushing.check(Places(odd), allowed=False)


def test_a_stage_that_cannot_be_checked_hides_no_other(repository: Path) -> None:
    file = repository / "several" / "mine" / "dvc.yaml"
    file.write_text(f"stages: {{a: text, b: {{outs: ['${{it}}']}}, c: {{outs: [{TABLE}]}}}}")
    with pytest.raises(pushing.PushedTables):
        check(repository)


def test_stages_outside_of_the_repository_are_of_others(repository: Path) -> None:
    (repository / "several" / ".dvc").mkdir()
    write(repository, each(wdir="several/${item}", outs=[TABLE]))
    check(repository)


@pytest.mark.parametrize("content", ["", "vars: [datasets.yaml]", "stages: {}"])
def test_a_file_without_stages_pushes_nothing(
    repository: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (repository / "several" / "mine" / "dvc.yaml").write_text(content)
    check(repository)
    assert caplog.records == []


def test_whoever_allows_it_is_not_asked(repository: Path) -> None:
    write(repository / "several" / "mine", {"outs": [TABLE]})
    pushing.check(Places(repository / "several" / "mine"), allowed=True)
