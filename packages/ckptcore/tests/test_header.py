import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forgery import Parts
from hypothesis import given
from hypothesis import strategies as st

import ckptcore
from ckptcore.errors import DamagedCheckpoint, UnknownFormat, UnsavableValue
from ckptcore.header import (
    MAX_TABLE,
    RecordEntry,
    TensorEntry,
    canonical_json,
    decode_table,
    derive_content,
    encode_table,
    jsonable,
    model_digest,
)

ROWS = [
    TensorEntry("model_state_dict/w", "float32", (2, 3), 0, "ab" * 32),
    TensorEntry("é/\ud800", "int8", (), 1, "cd" * 32),
]
RECORDS = [RecordEntry("data.pkl", 5, 0xFF, "ef" * 32)]


def test_the_table_comes_back_as_it_was() -> None:
    assert decode_table(encode_table(ROWS, RECORDS)) == (ROWS, RECORDS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"tensors":1,"records":[]}',
        b'{"tensors":[[]],"records":[]}',
        b'{"tensors":[["a","int8",["x"],0,"d"]],"records":[]}',
        b'{"tensors":[],"records":[["\xc3\xa9",1,"00","d"]]}',
        b'{"tensors":[],"records":[["a",-1,"00","d"]]}',
        b'{"tensors":[],"records":[["a",4611686018427387904,"00","d"]]}',
        b'{"tensors":[],"records":[["a",1,"fffffffff","d"]]}',
        b'{"tensors":[],"records":[["a",1e400,"00","d"]]}',
        b'{"tensors":[],"records":[["a",NaN,"00","d"]]}',
        b'{"tensors":[],"records":[["a",1,5,"d"]]}',
        b'{"tensors":[],"records":[["a",' + b"9" * 5000 + b',"00","d"]]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_table_of_another_form_is_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_table(data)


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.integers()
        | st.floats()
        | st.text(max_size=300)
        | st.none()
        | st.booleans()
        | st.complex_numbers(),
    )
)
def test_any_plain_state_has_content_that_json_can_say(tree: dict[str, Any]) -> None:
    content = derive_content({**tree, "val_metrics": tree})
    assert json.loads(canonical_json(content)) == content
    for value in content["scalars"].values():
        assert value in ("nan", "inf", "-inf") or math.isfinite(value)
    assert content["keys"] == [*tree, "val_metrics"] or "val_metrics" in tree


def test_content_is_bounded_however_large_the_state_is() -> None:
    tree = {f"key {i}": i for i in range(10_000)} | {"t" * 1000: "v" * 1000}
    assert len(canonical_json(derive_content(tree))) < 20_000


def test_the_model_digest_is_that_of_its_tensors_whatever_their_order() -> None:
    assert model_digest(ROWS) == model_digest([ROWS[1]._replace(storage=7), ROWS[0]._replace(storage=3)])
    assert model_digest(ROWS) != model_digest([ROWS[0]._replace(shape=(3, 2)), ROWS[1]])
    assert model_digest(ROWS) != model_digest([ROWS[0]._replace(dtype="int32"), ROWS[1]])
    assert model_digest(ROWS[1:]) is None


def test_metadata_takes_json_values_and_names_what_it_does_not_take() -> None:
    assert jsonable({"a": (1, float("nan")), "b": {"x", "y"}}) == {"a": [1, "nan"], "b": ["x", "y"]}
    with pytest.raises(UnsavableValue, match="metadata/a/b: bytes"):
        jsonable({"a": {"b": b""}})


def test_a_header_says_what_state_and_writer_said(tmp_path: Path) -> None:
    state = {"epoch": 4, "global_step": 99, "val_auc": 0.5, "val_metrics": {"f1": 0.25}, "timestamp": "now"}
    metadata = {"roles": ["best", "latest"], "run_key": "k", "metrics": {"f1": 0.75}, "reason": "signal"}
    header = ckptcore.read_header(ckptcore.save(tmp_path / "a.pt", state, metadata))
    assert (header.epoch, header.epochs_finished, header.global_step) == (4, 5, 99)
    assert header.metrics == {"val_auc": 0.5, "f1": 0.75}
    assert (header.roles, header.run_key, header.reason) == (("best", "latest"), "k", "signal")
    assert (header.format, header.format_version, header.file_size) == (
        "ckptcore",
        1,
        (tmp_path / "a.pt").stat().st_size,
    )
    assert header.created is not None
    assert header.created.endswith("+00:00")
    assert header.content["texts"] == {"timestamp": "now"}


def test_a_header_counts_tensors_bytes_and_parameters(tmp_path: Path, small_state: dict[str, Any]) -> None:
    header = ckptcore.read_header(ckptcore.save(tmp_path / "a.pt", small_state))
    found = ckptcore.load(tmp_path / "a.pt")
    assert header.parameters == sum(t.numel() for t in found["model_state_dict"].values())
    assert header.tensor_count > header.parameters / 100
    assert header.tensor_bytes > 0


@pytest.mark.parametrize(
    "metadata",
    [
        {"metrics": {"a": 10**400, "b": "x", "c": None, "d": True, "e": [1]}},
        {"metrics": [1], "roles": "best", "run_key": 5, "reason": [], "epochs_finished": "x"},
        {"roles": [1, None], "global_step": "x", "epoch_counts": 7},
    ],
)
def test_odd_metadata_never_breaks_the_header(tmp_path: Path, metadata: dict[str, Any]) -> None:
    header = ckptcore.read_header(ckptcore.save(tmp_path / "a.pt", {"epoch": 1}, metadata))
    assert isinstance(header.metrics, dict)
    assert isinstance(header.roles, tuple)
    assert header.run_key is None or isinstance(header.run_key, str)
    assert header.reason is None
    assert header.global_step is None
    assert header.epochs_finished in (2, None)


def test_a_header_is_read_without_torch_and_without_numpy(tiny_file: Path) -> None:
    code = (
        "import sys, ckptcore; h = ckptcore.read_header(sys.argv[1]); assert ckptcore.verify(sys.argv[1]).ok"
    )
    code += "; assert h.epoch == 2 and not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tiny_file)], check=True, timeout=60)


def test_a_summary_larger_than_one_read_is_found_too(tmp_path: Path) -> None:
    path = ckptcore.save(tmp_path / "a.pt", {"epoch": 1}, {"notes": "x" * 100_000})
    assert ckptcore.read_header(path).metadata["notes"] == "x" * 100_000
    assert ckptcore.verify(path).ok
    assert ckptcore.load(path)["epoch"] == 1


def test_a_later_format_version_is_unknown_and_not_damaged(tiny_file: Path) -> None:
    parts = Parts.of(tiny_file)
    parts.summary["format"] = 2
    tiny_file.write_bytes(parts.build(version=2))
    for read in (ckptcore.read_header, ckptcore.load):
        with pytest.raises(UnknownFormat, match=r"version 2; .* reads up to 1\. Update"):
            read(tiny_file)
    assert not ckptcore.verify(tiny_file).ok


@pytest.mark.parametrize(("format_version", "seal_version"), [(2, 1), (1, 2), (0, 0), (True, 1)])
def test_format_versions_that_do_not_agree_are_damage(
    tiny_file: Path, format_version: int, seal_version: int
) -> None:
    parts = Parts.of(tiny_file)
    parts.summary["format"] = format_version
    tiny_file.write_bytes(parts.build(version=seal_version))
    with pytest.raises(DamagedCheckpoint, match="version"):
        ckptcore.read_header(tiny_file)


def test_the_table_limit_is_what_memory_can_bear() -> None:
    assert MAX_TABLE <= 32 << 20
