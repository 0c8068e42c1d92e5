import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfuse.engine.keys import PUBLIC, Key, KeyRefused, private_key

text = st.text(max_size=20)


@given(text, text, text, text)
def test_ids_tell_namespace_and_number_apart(a: str, b: str, c: str, d: str) -> None:
    assert (PUBLIC.patient(a, b) == PUBLIC.patient(c, d)) == ((a, b) == (c, d))


def test_ids_have_the_forms_that_tables_promise() -> None:
    ids = (PUBLIC.patient("s", "1"), PUBLIC.study("s", "1", "1"), PUBLIC.sample("s", "ct", "1"))
    assert [(name[0], len(name)) for name in ids] == [("p", 13), ("s", 13), ("i", 13)]


def test_ids_of_public_data_never_change() -> None:
    assert PUBLIC.patient("phantom", "PH000001") == "pd94b109598c9"
    assert PUBLIC.fingerprint == "public"


def test_key_is_made_for_its_owner_alone_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "home" / "key"
    made = private_key(path, tmp_path / "pipeline")
    assert path.stat().st_mode & 0o777 == 0o600
    assert private_key(path, tmp_path / "pipeline") == made
    assert made.fingerprint != Key(b"another" * 5).fingerprint
    assert made.secret.hex() not in made.fingerprint


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    private_key(path, tmp_path / "pipeline")
    os.chmod(path, mode)
    with pytest.raises(KeyRefused, match="chmod 600"):
        private_key(path, tmp_path / "pipeline")


def test_key_inside_the_repository_is_refused_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    pipeline = tmp_path / "repository" / "pipelines" / "mine"
    pipeline.mkdir(parents=True)
    for path in (tmp_path / "repository" / "key", Path("secrets/key")):
        with pytest.raises(KeyRefused, match="outside"):
            private_key(path, pipeline)
    assert not (tmp_path / "repository" / "key").exists()


def test_file_that_holds_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    with pytest.raises(KeyRefused, match="at least 32"):
        private_key(path, tmp_path / "pipeline")
