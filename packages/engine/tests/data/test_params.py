from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from radfuse.engine import config
from radfuse.engine.errors import SettingsError
from radfuse.engine.settings import Settings
from radfuse.engine.validation import validated


def written(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        config.load(path, overrides)
    return str(caught.value)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    for text in ("", "split:\n", "# seed: 1\n"):
        assert config.load(written(tmp_path, text)).model_dump() == config.Params().model_dump()


def test_unknown_parameter_is_refused_with_file_key_and_nearest_known_one(tmp_path: Path) -> None:
    said = refused(written(tmp_path, "prepare: {max_skiped_fraction: 0.1}\n"))
    assert "prepare.max_skiped_fraction" in said
    assert "'max_skipped_fraction'" in said or "no modality" in said
    assert "params.yaml" in said


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("splitt: {}", "splitt", "split"),
        ("split: {fractions: {trian: 0.6}}", "split.fractions.trian", "train"),
        ("export: {formts: [onnx]}", "export.formts", "formats"),
        ("train: {workrs: 2}", "train.workrs", "workers"),
        ("train: {xry: {}}", "train.xry", "xray"),
    ],
)
def test_unknown_key_at_any_depth_names_the_nearest(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    said = refused(written(tmp_path, text))
    assert f"unknown key {key}" in said
    assert f"did you mean {nearest!r}?" in said


def test_several_troubles_are_named_together(tmp_path: Path) -> None:
    said = refused(written(tmp_path, "sede: 1\nexport: {samples: none}\npredict: {workers: -1}\n"))
    assert all(part in said for part in ("sede", "export.samples", "predict.workers"))


def test_wrong_type_says_what_came(tmp_path: Path) -> None:
    assert "'many'" in refused(written(tmp_path, "split: {minimum_positives: many}"))


def test_shares_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    assert "add up to 1, got 1.3" in refused(written(tmp_path, "split: {fractions: {train: 0.9}}"))


def test_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "stands twice" in refused(written(tmp_path, "seed: 1\nseed: 2\n"))


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    assert "radfuse init" in refused(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "seed: {"])
def test_what_is_no_mapping_in_yaml_is_refused(tmp_path: Path, text: str) -> None:
    assert "params.yaml" in refused(written(tmp_path, text))


def test_set_changes_values_at_any_depth(tmp_path: Path) -> None:
    path = written(tmp_path, "sources: [{kind: phantom, root: a}]\n")
    params = config.load(
        path,
        ["seed=7", "split.fractions={train: 1.0, val: 0, calibration: 0, test: 0}", "sources.0.root=b"],
    )
    assert (params.seed, params.split.fractions.train, params.sources[0]["root"]) == (7, 1.0, "b")


@pytest.mark.parametrize(
    "assignment", ["seed", "=1", "a..b=1", "seed.a=1", "sources.x=1", "sources.0.kind=a"]
)
def test_set_that_leads_nowhere_is_refused(tmp_path: Path, assignment: str) -> None:
    assert "--set" in refused(written(tmp_path, "seed: 3\nsources: []\n"), assignment)


def test_unknown_key_given_by_set_is_blamed_on_it(tmp_path: Path) -> None:
    said = refused(written(tmp_path, "seed: 3\n"), "sed=4")
    assert "with --set sed" in said
    assert "'seed'" in said


def test_origin_is_shown_with_the_settings_of_a_modality(tmp_path: Path) -> None:
    class Block(Settings):
        rates: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    with pytest.raises(SettingsError, match=r"params\.yaml: train\.toy\.rates\.fc: .*got -1"):
        validated(Block, {"rates": {"fc": -1}}, "params.yaml", ("train", "toy"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, min_size=2))
def test_digest_does_not_depend_on_the_order_of_keys(tree: dict[str, object]) -> None:
    assert config.digest(tree) == config.digest(dict(reversed(tree.items())))


def test_digest_tells_values_apart() -> None:
    block = config.Params().split
    assert config.digest(block) == config.digest(block.model_dump())
    assert config.digest(block) != config.digest(block.model_copy(update={"seed": 1}))
