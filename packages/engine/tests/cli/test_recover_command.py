"""`radfuse recover`: DVC starts again after a kill within its own writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from radfuse.engine.cli import run
from radfuse.engine.recovering import DvcAtWork, NoRepository, recover

make_lock = pytest.importorskip("dvc.lock").make_lock
COMPILED_LOCKFILE_SCHEMA = pytest.importorskip("dvc.schema").COMPILED_LOCKFILE_SCHEMA
LOCK = """\
schema: '2.0'
stages:
  phantom:
    cmd: radfuse phantom
    outs:
    - path: data/phantom
      hash: md5
      md5: 4b1ad8e2a1b0f4f1fd33f9a2dca8d4a5.dir
      size: 1234567
      nfiles: 12
  cohort@one:
    cmd: radfuse cohort
    deps:
    - path: data/phantom
      hash: md5
      md5: 4b1ad8e2a1b0f4f1fd33f9a2dca8d4a5.dir
      size: 1234567
      nfiles: 12
    params:
      params.yaml:
        seed: 0
        split:
          fractions: {train: 0.6, test: 0.4}
          none_of_it:
    outs:
    - path: data/cohort/cohort.parquet
      hash: md5
      md5: '00000000000000000000000000000012'
      size: 99
      isexec: true
  report:
    cmd:
    - radfuse evaluate
    - echo done
    deps:
    - path: data/cohort/cohort.parquet
      hash: md5
      md5: '00000000000000000000000000000012'
      size: 99
"""
STAGES = yaml.safe_load(LOCK)["stages"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    return tmp_path


def rwlock(repository: Path, content: Any) -> Path:
    file = repository / ".dvc" / "tmp" / "rwlock"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


NAMED = {"pid": 1, "cmd": "dvc repro"}
NOTED = {"write": {"/a/model.pth": NAMED}, "read": {"/a/params.yaml": [NAMED]}}


def test_rwlock_that_was_cut_off_anywhere_is_removed(repository: Path) -> None:
    whole = json.dumps(NOTED)
    for size in range(len(whole)):
        file = rwlock(repository, whole[:size])
        assert recover(repository) == [".dvc/tmp/rwlock: removed, as it was cut off; DVC begins a new one"]
        assert not file.exists()


@pytest.mark.parametrize("content", ["{}", json.dumps(NOTED)])
def test_rwlock_that_is_whole_stays_whoever_it_names(repository: Path, content: str) -> None:
    file = rwlock(repository, content)
    assert recover(repository) == []
    assert file.read_text(encoding="utf-8") == content


def test_lock_that_was_cut_off_anywhere_keeps_the_stages_before_and_dvc_reads_it(repository: Path) -> None:
    file = repository / "dvc.lock"
    names = list(STAGES)
    for size in range(len(LOCK)):
        file.write_text(LOCK[:size], encoding="utf-8")
        recover(repository)
        if not file.exists():
            assert LOCK[:size].count("\n    cmd") < 2
            continue
        text = file.read_text(encoding="utf-8")
        assert LOCK.startswith(text) and text.endswith("\n")
        found = yaml.safe_load(text)
        COMPILED_LOCKFILE_SCHEMA(found)
        stages = found.get("stages", {})
        assert list(stages) == names[: len(stages)]
        # The last one may be a part that reads like a whole: DVC finds it changed, and runs it.
        for name in list(stages)[:-1]:
            assert stages[name] == STAGES[name]
        complete = sum(LOCK[:size].find(f"  {name}:\n") >= 0 for name in names) - 1
        assert len(stages) >= complete, LOCK[:size]


@pytest.mark.parametrize("word", ["yes", "off", "12:30", "1e3"])
def test_words_that_an_older_yaml_takes_for_something_else_are_words(repository: Path, word: str) -> None:
    file = repository / "dvc.lock"
    text = LOCK.replace(
        "path: data/cohort/cohort.parquet", f"path: {word!r}" if word == "1e3" else f"path: {word}"
    )
    file.write_text(text.replace("none_of_it", word), encoding="utf-8")
    assert recover(repository) == []


def test_whole_lock_stays_byte_for_byte(repository: Path) -> None:
    file = repository / "dvc.lock"
    file.write_text(LOCK, encoding="utf-8")
    before = file.stat()
    assert recover(repository) == []
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.read_text(encoding="utf-8") == LOCK


def test_locks_of_all_pipelines_of_this_repository_are_mended_and_no_others(repository: Path) -> None:
    mine, data, other = (repository / name for name in ("pipelines/mine", "data/mine", "other"))
    loose = repository / "tests"
    for folder in (mine, data, other, loose):
        folder.mkdir(parents=True)
        (folder / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
        (folder / "dvc.lock").write_text(LOCK[:-120], encoding="utf-8")
    (other / ".dvc").mkdir()
    (loose / "dvc.yaml").unlink()
    assert recover(mine) == [
        "pipelines/mine/dvc.lock: cut off within report, so it and the stages after it are looked at again; "
        "2 are kept"
    ]
    for folder in (data, other, loose):
        assert (folder / "dvc.lock").read_text(encoding="utf-8") == LOCK[:-120]


@pytest.mark.parametrize(
    "text",
    [
        LOCK.replace("  cohort@one:\n", "<<<<<<< mine\n  cohort@one:\n"),
        LOCK.replace("    cmd: radfuse phantom\n", "    cmd: [\n"),
        "hello: [\n",
    ],
    ids=["merge", "within", "another file"],
)
def test_lock_that_is_broken_otherwise_is_left_as_it_is(repository: Path, text: str) -> None:
    file = repository / "dvc.lock"
    file.write_text(text, encoding="utf-8")
    [told] = recover(repository)
    assert told.startswith("dvc.lock: left as it is") and "git checkout" in told
    assert file.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("size", [0, 200, 900])
def test_zeros_that_a_power_cut_left_are_cut_off(repository: Path, size: int) -> None:
    file = repository / "dvc.lock"
    file.write_text(LOCK[:size] + "\0" * 100, encoding="utf-8")
    assert len(recover(repository)) == 1
    assert recover(repository) == []


def test_what_dvc_did_not_finish_in_its_cache_of_runs_is_removed(repository: Path) -> None:
    runs = repository / ".dvc" / "cache" / "runs" / "ab" / "abcd"
    runs.mkdir(parents=True)
    whole, left = runs / "0123", runs / ".Xy12.tmp"
    for file in (whole, left):
        file.write_text("cmd: echo\n", encoding="utf-8")
    assert recover(repository) == [
        ".dvc/cache/runs/ab/abcd/.Xy12.tmp: removed, as DVC did not come to the end of it"
    ]
    assert whole.exists() and not left.exists()


UNFINISHED = ".zuXOaZ_VaGhkm1L-cvxPNA.tmp"
PIPELINE = """\
stages:
  train:
    cmd: train
    outs: [models/net.pth, pages: {cache: true}, data/arrays: {cache: false}]
    metrics: [scores/test.json: {push: false}]
  elsewhere: {cmd: there, wdir: sub, outs: [net.pth]}
  outside: {cmd: out, outs: [../net.pth]}
  several: {foreach: [a, b], do: {cmd: more, outs: ["models/${item}/net.pth"]}}
"""


def unfinished(repository: Path, *places: str) -> list[Path]:
    files = [repository / place for place in places]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half a model")
    return files


def test_copies_that_dvc_did_not_finish_are_removed_beside_outputs_and_in_its_cache(repository: Path) -> None:
    (repository / "pipelines" / "mine").mkdir(parents=True)
    for folder in (repository, repository / "pipelines" / "mine"):
        (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    places = [
        f".dvc/cache/files/md5/0d/599f0ec05c3bda8c3b8a68c32a1b47{UNFINISHED}",
        f".dvc/cache/files/md5/{UNFINISHED}",
        f"models/{UNFINISHED}",
        f"models/net.pth{UNFINISHED}",
        f"pages/deep/{UNFINISHED}",
        f"pipelines/mine/models/{UNFINISHED}",
        f"scores/{UNFINISHED}",
        f"sub/{UNFINISHED}",
    ]
    gone = unfinished(repository, *places)
    stay = unfinished(
        repository,
        f"data/arrays/{UNFINISHED}",
        f"notes/{UNFINISHED}",
        f"../{UNFINISHED}",
        "models/.ckptcore-zuXOaZ_VaGhkm1L-cvxPNA.tmp",
        "models/.mine.tmp",
        "models/net.pth",
    )
    told = recover(repository)
    what = "removed, as DVC did not come to the end of it"
    assert sorted(told) == sorted(f"{place}: {what}" for place in places)
    assert not [path for path in gone if path.exists()] and all(path.exists() for path in stay)
    assert recover(repository) == []


def test_a_cache_that_others_may_share_stays_as_it_is(repository: Path, tmp_path: Path) -> None:
    (file,) = unfinished(tmp_path, f"shared/files/md5/{UNFINISHED}")
    (repository / ".dvc" / "cache").symlink_to(tmp_path / "shared")
    assert recover(repository) == [] and file.exists()


def test_copies_are_left_to_a_dvc_that_is_at_work(repository: Path) -> None:
    own = repository / ".dvc" / "tmp"
    (repository / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (file,) = unfinished(repository, f"models/{UNFINISHED}")
    with make_lock(str(own / "lock"), tmp_dir=str(own)):
        assert recover(repository) == [] and file.exists()
    assert recover(repository) and not file.exists()


@pytest.mark.parametrize(
    "text", ["", "stages: [", "stages: [a, b]", "- a", "stages: {a: null}", "stages: {a: {outs: 3}}", "\0"]
)
def test_a_pipeline_that_nobody_can_read_is_for_dvc_to_tell_of(repository: Path, text: str) -> None:
    (repository / "dvc.yaml").write_text(text, encoding="utf-8")
    assert recover(repository) == []


def test_data_whose_own_file_is_cut_off_are_named(repository: Path) -> None:
    whole = "outs:\n- md5: 4b1ad8e2a1b0f4f1fd33f9a2dca8d4a5\n  size: 3\n  hash: md5\n  path: raw.zip\n"
    file = repository / "raw.zip.dvc"
    file.write_text(whole, encoding="utf-8")
    assert recover(repository) == []
    file.write_text(whole[:-12], encoding="utf-8")
    [told] = recover(repository)
    assert told.startswith("raw.zip.dvc: left as it is") and "git checkout" in told
    assert file.read_text(encoding="utf-8") == whole[:-12]


def test_file_of_data_without_a_line_feed_at_its_end_is_no_cut_off_one(repository: Path) -> None:
    file = repository / "raw.zip.dvc"
    file.write_text("outs:\n- md5: 4b1ad8e2a1b0f4f1fd33f9a2dca8d4a5\n  path: raw.zip", encoding="utf-8")
    assert recover(repository) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LOCK, "cut off within report, so it and the stages after it are looked at again; 2 are kept"),
        (
            LOCK.partition("  cohort")[0],
            "removed, as it was cut off in its first stage; every stage is looked at again",
        ),
    ],
    ids=["three stages", "one"],
)
def test_lock_that_lacks_its_last_line_feed_alone_is_not_told_as_surely_cut_off(
    repository: Path, text: str, told: str
) -> None:
    file = repository / "dvc.lock"
    file.write_text(text.removesuffix("\n"), encoding="utf-8")
    perhaps = " (perhaps only its last line feed was missing: nobody can tell)"
    assert recover(repository) == [f"dvc.lock: {told}{perhaps}"]
    assert not file.exists() or LOCK.startswith(file.read_text(encoding="utf-8"))
    assert recover(repository) == []


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("name", ["lock", "rwlock.lock"])
def test_nothing_is_touched_while_a_dvc_writes(repository: Path, name: str, links: bool) -> None:
    own = repository / ".dvc" / "tmp"
    (repository / ".dvc" / "config").write_text(f"[core]\nhardlink_lock = {str(links).lower()}\n", "utf-8")
    file = rwlock(repository, "")
    with make_lock(str(own / name), tmp_dir=str(own), hardlink_lock=links):
        with pytest.raises(DvcAtWork, match="another DVC is at work here"):
            recover(repository)
        assert file.exists()
    assert len(recover(repository)) == 1
    # As DVC leaves it: in its way of links the file itself is the lock.
    assert (own / name).exists() is not links


def test_folder_without_dvc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRepository, match=r"no \.dvc there or above"):
        recover(tmp_path)


def test_command_says_what_was_cut_off(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rwlock(repository, "")
    assert run(["recover", str(repository)]) == 0
    assert capsys.readouterr().out == ".dvc/tmp/rwlock: removed, as it was cut off; DVC begins a new one\n"
    assert run(["recover", str(repository)]) == 0
    assert capsys.readouterr().out == "Nothing was cut off.\n"
    assert run(["recover", "--quiet", str(repository)]) == 0
    assert capsys.readouterr().out == ""
    assert run(["recover", "--json", str(repository)]) == 0
    assert json.loads(capsys.readouterr().out) == {"cut_off": []}
